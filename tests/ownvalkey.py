"""A Valkey of a test's own, to kill, freeze and fill: settings and environment point at it meanwhile."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from config.redis import store
from config.supervisor.valkey import EmbeddedValkey
from gateway import catalog
from tests.processes import wait_until
from usage import guardian


class OwnValkey(EmbeddedValkey):
    """The embedded Valkey with the blows that a test deals it."""

    @property
    def pid(self) -> int:
        assert self.child
        return self.child.identity.pid

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.child
        self.child.stop(5)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It keeps its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@contextlib.contextmanager
def own_valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnValkey]:
    """Starts one that knows every tenant and the catalog, and admits."""
    with tempfile.TemporaryDirectory(prefix="gateway-valkey-") as folder:
        valkey = OwnValkey(Path(folder))
        valkey.start()
        monkeypatch.setattr(settings, "REDIS_URL", valkey.url)
        monkeypatch.setenv("REDIS_URL", valkey.url)
        store.cache_clear()
        try:
            # A worker that was killed a moment ago may still hold the guardian's lock in PostgreSQL.
            wait_until(lambda: guardian.confirm(wait=False) == "rebuilt", 10, "the store to be rebuilt")
            catalog.publish()
            yield valkey
        finally:
            store().close()
            monkeypatch.undo()
            store.cache_clear()
            valkey.stop(5)

"""Where several processes run tests: which files begin first, and which tests need the machine for themselves.

Whoever is free takes the next file of tests. The longest come first, otherwise one process would still be at one of
them when the other has nothing left.

Every test holds a lock while it runs, shared; one that is marked ``alone`` holds it alone. Whoever waits for it holds
the turnstile meanwhile, so that nobody overtakes. Both are locks on files of this folder that nobody writes.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

LONGEST_FIRST = (  # those over ten seconds
    *("test_make_run", "test_worker_health", "test_chaos", "test_exporting", "test_backup", "test_isolation"),
    *("test_crash_points", "test_csp", "test_canaries", "test_overload", "test_end_to_end", "test_days"),
    *("test_faults", "test_openapi", "test_scripts_oracle", "test_contract_bodies", "test_refusals", "test_commands"),
    *("test_management_document", "test_directory", "test_restore", "test_planted", "test_contract_provider"),
)
TURNSTILE, MACHINE = Path(__file__).with_name("__init__.py"), Path(__file__)


@contextlib.contextmanager
def _held(path: Path, operation: int) -> Iterator[None]:
    with path.open("rb") as file:
        fcntl.flock(file, operation)
        yield


@pytest.hookimpl(trylast=True)  # after they were put in random order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the others keep their order."""
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before a test's time is taken
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hold the lock around a test and its fixtures; nothing to do where one process runs them all."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with contextlib.ExitStack() as held:
        with _held(TURNSTILE, fcntl.LOCK_EX):
            held.enter_context(_held(MACHINE, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH))
        return (yield)

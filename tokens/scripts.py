"""The scripts that change records in the admission store, and the store's failures as StoreUnavailable."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import redis
from redis.commands.core import Script

from config.redis import store
from tokens.admission.connection import StoreUnavailable
from tokens.outbox import Entry

_FOLDER = Path(__file__).parent / "admission" / "lua"


@contextmanager
def answered() -> Iterator[None]:
    """Around calls of the store: turns each failure of it into StoreUnavailable, which names no key or value."""
    try:
        yield
    except redis.RedisError as exc:
        failed = "refused a command" if isinstance(exc, redis.ResponseError) else "did not answer"
        raise StoreUnavailable(f"The admission store {failed}.", sent=True) from exc


@cache
def script(name: str) -> Script:
    """The script of that name. Call it with `client=`, a pipeline or the store."""
    return store().register_script((_FOLDER / f"{name}.lua").read_text(encoding="utf-8"))


def control_field(entry: Entry) -> str:
    """A record's field in its shard's control hash: ``token:12``, ``tenant:3``."""
    return f"{entry.kind}:{entry.object_id}"

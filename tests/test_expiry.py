"""Calls whose process never ended them: each ends once, is counted, and none keeps another from its end."""

import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis
from django.conf import settings

from config.redis import parse_address
from gateway import metrics
from tokens.admission import keys
from usage import expiry

CALL = {"tenant": 7, "n": 2, "estimate": 4850}


@pytest.fixture
def own_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """A database of the store's server that no other test uses."""
    client = redis.Redis.from_url(parse_address(settings.REDIS_URL).url(15))
    client.flushdb()
    for module in (expiry, metrics):
        monkeypatch.setattr(module, "store", lambda: client)
    yield client
    client.flushdb()
    client.close()


def overdue(client: redis.Redis, shard: int, seconds: float = 1, **changes: Any) -> str:
    """A call whose lease ended `seconds` ago, as admission left it but for `changes`; None leaves a field out."""
    request_id, end = str(uuid.uuid4()), int((time.time() - seconds) * 1e6)
    fields = {"state": "RESERVED", "images": 2, "tokens": 4850, "lease_end": end, "admitted": end, "idempotency": ""}
    fields |= {"held": '{"use": [], "rates": [], "inflight": []}', "call": msgspec.json.encode(CALL), **changes}
    kept: Any = {name: value for name, value in fields.items() if value is not None}
    if kept:
        client.hset(keys.reservation(shard, request_id), mapping=kept)
    client.zadd(keys.deadlines(shard), {request_id: end})
    return request_id


def ended(client: redis.Redis, shard: int) -> list[str]:
    """The calls of the usage events of a shard."""
    entries: Any = client.xrange(keys.usage(shard))
    return [fields[b"request_id"].decode() for _, fields in entries]


def test_a_call_ends_once_and_is_counted(own_store: redis.Redis) -> None:
    calls = [overdue(own_store, shard) for shard in (0, 3)]
    overdue(own_store, 3, seconds=-60)
    assert expiry.expire_overdue() == 2
    assert expiry.expire_overdue() == 0
    assert [*ended(own_store, 0), *ended(own_store, 3)] == calls
    assert metrics.read_store(settings.SHARDS)[metrics.LEASES_ENDED] == 2
    assert own_store.zcard(keys.deadlines(3)) == 1, "a lease that still runs goes on"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"call": b"{"}, id="no JSON"),
        pytest.param({"call": b"{}"}, id="a figure is missing"),
        pytest.param({"call": b'{"tenant": "7", "n": 2, "estimate": 1}'}, id="a figure is text"),
        pytest.param({"call": b'{"tenant": "\xff"}'}, id="no UTF-8"),
        pytest.param({"held": "{"}, id="what it holds can't be read"),
    ],
)
def test_a_call_that_cannot_be_read_keeps_no_other_from_its_end(
    own_store: redis.Redis, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    bad = overdue(own_store, 0, seconds=9, **changes)
    good = [overdue(own_store, shard) for shard in (0, 1, settings.SHARDS - 1)]
    assert expiry.expire_overdue() == 3
    assert [ended(own_store, shard) for shard in (0, 1, settings.SHARDS - 1)] == [[name] for name in good]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.__dict__["request_id"] == bad
    assert metrics.read_store(settings.SHARDS)["gateway_reservations_overdue"] == 1, "it stays in sight"


def test_a_reservation_of_another_type_keeps_no_other_from_its_end(own_store: redis.Redis) -> None:
    bad = overdue(own_store, 0, seconds=9)
    own_store.delete(keys.reservation(0, bad))
    own_store.set(keys.reservation(0, bad), "text")
    overdue(own_store, 0)
    assert expiry.expire_overdue() == 1


def test_deadlines_of_calls_that_are_gone_never_block_the_list(
    own_store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "BATCH", 2)
    gone = dict.fromkeys(("state", "images", "tokens", "lease_end", "admitted", "idempotency", "held", "call"))
    for _ in range(2):
        overdue(own_store, 0, seconds=9, **gone)
    last = overdue(own_store, 0)
    assert (expiry.expire_overdue(), expiry.expire_overdue()) == (0, 1)
    assert ended(own_store, 0) == [last]
    assert own_store.zcard(keys.deadlines(0)) == 0


def test_a_full_store_still_ends_calls(own_store: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'")

    monkeypatch.setattr(own_store, "incr", refuse)
    for shard in (0, 1):
        overdue(own_store, shard)
    assert expiry.expire_overdue() == 2


def test_a_store_that_is_away_is_no_bad_call(monkeypatch: pytest.MonkeyPatch) -> None:
    away = redis.Redis.from_url("unix:///tmp/there-is-no-such-socket")
    monkeypatch.setattr(expiry, "store", lambda: away)
    with pytest.raises(redis.ConnectionError):
        expiry.expire_overdue()

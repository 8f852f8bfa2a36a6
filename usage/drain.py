"""From the shards' streams to the books: at least once out of the store, exactly once into the ledger.

An entry is acknowledged and deleted only after its event is committed, so a process that dies leaves its entries
pending and another claims them; what was already committed is recognised by the ledger.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

import redis
from django.conf import settings
from django.db import connection

from config.redis import store
from tokens.admission import keys
from usage.events import BadEventError, UsageEvent, parse
from usage.ledger import record
from usage.quarantine import quarantine_entry

logger = logging.getLogger(__name__)

BATCH = 500  # entries of one stream in one reading
DRAIN_SECONDS = 8.0
CLAIM_AFTER_MS = 10_000  # a consumer that has held an entry for so long is taken for dead
FORGET_AFTER_MS = 60_000

# Atomic, otherwise a consumer could read between the look and the deletion, and what it read would be lost.
FORGET_CONSUMERS = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local fact = {}
    for i = 1, #consumer, 2 do fact[consumer[i]] = consumer[i + 1] end
    if fact.pending == 0 and fact.idle > tonumber(ARGV[2]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], fact.name)
    end
end
"""

Entry = tuple[bytes, Mapping[bytes, bytes] | None]  # id, fields; None: claimed after it was deleted
Batch = dict[str, list[Entry]]

_one_at_a_time = threading.Lock()


def drain(claim_after_ms: int = CLAIM_AFTER_MS) -> int:
    """Book what waits in every shard's stream, for at most about 8 s; returns the number of entries dealt with.

    First come the entries that a dead process left: those pending for at least `claim_after_ms`. Entries that can't
    be read are quarantined. Several processes may drain at once; a second call in the same process returns 0.

    Raises django.db.OperationalError or redis.ConnectionError (or TimeoutError) when a server is out of reach;
    nothing is lost, what was read stays pending.
    """
    if not _one_at_a_time.acquire(blocking=False):
        return 0
    try:
        connection.ensure_connection()  # before anything is taken from the streams
        count = 0
        end = time.monotonic() + DRAIN_SECONDS
        for batch in _batches(claim_after_ms):
            _book(batch)
            count += sum(map(len, batch.values()))
            if time.monotonic() > end:
                break
        _forget_idle_consumers()
        return count
    finally:
        _one_at_a_time.release()


def streams() -> list[str]:
    """The stream of every shard."""
    return [keys.usage(shard) for shard in range(settings.SHARDS)]


def _batches(claim_after_ms: int) -> Iterator[Batch]:
    """What dead consumers left, then what nobody has read yet, until nothing is left."""
    try:
        yield from _abandoned(claim_after_ms)
    except redis.ResponseError as exc:
        if not str(exc).startswith("NOGROUP"):
            raise
        _create_groups()
    while batch := _unread():
        yield batch


def _abandoned(claim_after_ms: int) -> Iterator[Batch]:
    for stream in streams():
        start: bytes | str = "0-0"
        while True:
            answer = store().xautoclaim(stream, keys.GROUP, _consumer(os.getpid()), claim_after_ms, start, BATCH)
            start, entries = answer[:2]
            if entries:
                logger.warning("Claimed %d usage events that another process left", len(entries))
                yield {stream: entries}
            if start == b"0-0":
                break


def _unread() -> Batch:
    answer = store().xreadgroup(keys.GROUP, _consumer(os.getpid()), dict.fromkeys(streams(), ">"), count=BATCH)
    return {stream.decode(): entries for stream, entries in cast("list[Any]", answer)}


def _book(batch: Batch) -> None:
    events: list[UsageEvent] = []
    for entries in batch.values():
        for _, fields in entries:
            if fields:
                try:
                    events.append(parse(fields))
                except BadEventError as exc:
                    quarantine_entry(fields, exc)
    record(events)
    with store().pipeline(transaction=True) as pipeline:
        for stream, entries in batch.items():
            ids = [entry_id for entry_id, _ in entries]
            pipeline.xack(stream, keys.GROUP, *ids)
            pipeline.xdel(stream, *ids)
        pipeline.execute()


def _create_groups() -> None:
    with store().pipeline(transaction=False) as pipeline:
        for stream in streams():
            pipeline.xgroup_create(stream, keys.GROUP, id="0", mkstream=True)
        for answer in pipeline.execute(raise_on_error=False):
            if isinstance(answer, Exception) and not str(answer).startswith("BUSYGROUP"):
                raise answer


def _forget_idle_consumers() -> None:
    """Remove the names of processes that have gone; a living one that was removed comes back when it next reads."""
    with store().pipeline(transaction=False) as pipeline:
        for stream in streams():
            pipeline.eval(FORGET_CONSUMERS, 1, stream, keys.GROUP, FORGET_AFTER_MS)
        pipeline.execute()


@cache
def _consumer(pid: int) -> str:
    """This process's name among the consumers; a later process with the same pid has another one."""
    return f"{socket.gethostname()}:{pid}:{time.time_ns()}"

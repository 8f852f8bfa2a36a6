"""From the shards' streams to the books: at least once out of the store, exactly once into the ledger.

An entry is acknowledged and deleted only after its event is committed, so a process that dies leaves its entries
pending and another claims them; what was already committed is recognised by the ledger.

The store counts how often an entry was delivered, so how many processes died with it in hand: who lives to see the
books fail takes that delivery back. One that may be the cause is booked alone, and one that goes on killing is
quarantined unread. An event of a newer version than this
program knows is left for a newer worker: it belongs to a consumer named after that version, and no older one looks
at it again.
"""

import gc
import logging
import os
import re
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import redis
from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, connection

from config.redis import store
from tokens.admission import keys
from usage.events import VERSION, BadEventError, FutureEventError, UsageEvent, parse
from usage.ledger import record
from usage.quarantine import quarantine_entry

logger = logging.getLogger(__name__)

BATCH = 500  # entries of one stream in one reading
DRAIN_SECONDS = 8.0
CLAIM_AFTER_MS = 10_000  # a consumer that has held an entry for so long is taken for dead
LOCK_MS = 8_000  # for one lock of PostgreSQL: who waits for it must know in time that it isn't dead
FORGET_AFTER_MS = 60_000
ALONE_AFTER = 3  # deliveries; a batch of this many deaths holds one entry that causes them
GIVE_UP_AFTER = 6  # deliveries
BY_ITSELF = GIVE_UP_AFTER - ALONE_AFTER
SAY_AGAIN_SECONDS = 60.0
# What the machine, a server or a schema that isn't the program's does to any event; no event is the cause of it.
NOBODYS_FAULT = (DatabaseError, InterfaceError, redis.RedisError, SoftTimeLimitExceeded, OSError)
AN_EVENTS_FAULT = (DataError, IntegrityError)  # DatabaseErrors, too; they come here when the quarantine refuses it
OF_VERSION = re.compile(rb"version ([0-9]+)")  # the consumer that newer events are left to

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


class PoisonError(Exception):
    """An event that can't be booked, and that may be what ends processes; the message says how often it was tried."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries by stream, as they were taken, and how often they had been delivered before."""

    entries: Mapping[str, Sequence[Entry]]
    deliveries: int = 0


_one_at_a_time = threading.Lock()
_said_at: dict[int, float] = {}  # version of newer events -> when the log last told of them


def drain(claim_after_ms: int = CLAIM_AFTER_MS) -> int:
    """Book what waits in every shard's stream, for at most about 8 s; returns the number of entries dealt with.

    First come the entries that a dead process left: those pending for at least `claim_after_ms`. Entries that can't
    be read are quarantined, and so are those that have ended `GIVE_UP_AFTER` processes. Events of a newer version stay
    and aren't counted. Several processes may drain at once; a second call in the same process returns 0.

    Raises django.db.OperationalError or redis.ConnectionError (or TimeoutError) when a server is out of reach or a lock
    isn't free within `LOCK_MS`, django.db.ProgrammingError when the database isn't migrated, and whatever else keeps
    the books from being written. Nothing is lost, what was read stays pending.
    """
    if not _one_at_a_time.acquire(blocking=False):
        return 0
    gc.disable()  # a batch is many objects and no cycles; looking for some takes a quarter more
    try:
        count = 0
        with _short_waits():
            end = time.monotonic() + DRAIN_SECONDS
            for batch in _batches(claim_after_ms):
                count += _book(batch)
                if time.monotonic() > end:
                    break
        _forget_idle_consumers()
        return count
    finally:
        gc.enable()
        _one_at_a_time.release()


@contextmanager
def _short_waits() -> Iterator[None]:
    """Let no lock be waited for longer than `LOCK_MS`. Connects, so before anything is taken from the streams."""
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = %s", [LOCK_MS])
    try:
        yield
    finally:
        with suppress(DatabaseError, InterfaceError), connection.cursor() as cursor:  # a lost connection kept nothing
            cursor.execute("RESET lock_timeout")


def streams() -> list[str]:
    """The stream of every shard."""
    return [keys.usage(shard) for shard in range(settings.SHARDS)]


def oldest_seconds() -> float:
    """Age of the oldest event that isn't in the ledger, in seconds by the store's clock; 0 when there is none.

    Raises redis.RedisError when the store is out of reach.
    """
    seconds, micros = store().time()
    with store().pipeline(transaction=False) as pipeline:
        for stream in streams():
            pipeline.xrange(stream, count=1)
        begun = [int(entries[0][0].split(b"-")[0]) / 1000 for entries in pipeline.execute() if entries]
    return max(0.0, seconds + micros / 1e6 - min(begun)) if begun else 0.0


def _batches(claim_after_ms: int) -> Iterator[Batch]:
    """What dead consumers left, then what nobody has read yet, until nothing is left."""
    try:
        yield from _abandoned(claim_after_ms)
    except redis.ResponseError as exc:
        if "NOGROUP" not in str(exc):
            raise
        _create_groups()
    while batch := _unread():
        yield Batch(batch)


def _abandoned(claim_after_ms: int) -> Iterator[Batch]:
    """Takes over what was left, what was delivered least often first: whatever kills comes last."""
    for page in _pages_of_pending(claim_after_ms):
        for (deliveries, stream), ids in sorted(page.items()):
            size = BATCH if deliveries < ALONE_AFTER else 1
            for start in range(0, len(ids), size):
                entries = cast("list[Entry]", _claim(stream, ids[start : start + size], claim_after_ms))
                if entries:
                    text = "Claimed %d usage events that another process left after delivery %d"
                    logger.warning(text, len(entries), deliveries)
                    yield Batch({stream: entries}, deliveries)


def _claim(stream: str, ids: Sequence[bytes], claim_after_ms: int) -> Any:
    """Take entries that are still idle for so long; another process may have been faster."""
    return store().xclaim(stream, keys.GROUP, _consumer(os.getpid()), claim_after_ms, list(ids))


def _pages_of_pending(claim_after_ms: int) -> Iterator[Mapping[tuple[int, str], list[bytes]]]:
    """The ids of what is pending for so long, by deliveries and stream: at most `BATCH` of each stream in one page."""
    starts = dict.fromkeys(streams(), "-")
    while starts:
        with store().pipeline(transaction=False) as pipeline:
            for stream, start in starts.items():
                pipeline.xpending_range(stream, keys.GROUP, start, "+", BATCH, idle=claim_after_ms)
            answers = cast("list[list[dict[str, Any]]]", pipeline.execute())
        page: defaultdict[tuple[int, str], list[bytes]] = defaultdict(list)
        following = {}
        for stream, entries in zip(starts, answers, strict=True):
            for entry in entries:
                if not is_for_newer(entry["consumer"]):
                    page[entry["times_delivered"], stream].append(entry["message_id"])
            if len(entries) == BATCH:
                following[stream] = f"({entries[-1]['message_id'].decode()}"
        yield page
        starts = following


def is_for_newer(consumer: bytes) -> bool:
    """Whether what this consumer holds was left to a program that reads newer versions than this one."""
    match = OF_VERSION.fullmatch(consumer)
    return match is not None and int(match[1]) > VERSION


def _unread() -> dict[str, list[Entry]]:
    answer = store().xreadgroup(keys.GROUP, _consumer(os.getpid()), dict.fromkeys(streams(), ">"), count=BATCH)
    return {stream.decode(): entries for stream, entries in cast("list[Any]", answer)}


def _book(batch: Batch) -> int:
    """Book or quarantine the entries and acknowledge them; returns how many. Newer events are left."""
    done: dict[str, list[bytes]] = {}
    try:
        events = []
        for stream, entries in batch.entries.items():
            done[stream], newer = [], defaultdict(list)
            for entry_id, fields in entries:
                try:
                    if fields:
                        events.extend(_readable(fields, batch.deliveries))
                    done[stream].append(entry_id)
                except FutureEventError as exc:
                    newer[exc.version].append(entry_id)
            _leave(stream, newer)
        record(events)
    except BaseException as exc:
        _forgive(batch, exc)
        raise
    with store().pipeline(transaction=True) as pipeline:
        for stream, ids in done.items():
            if ids:
                pipeline.xack(stream, keys.GROUP, *ids)
                pipeline.xdel(stream, *ids)
        pipeline.execute()
    return sum(map(len, done.values()))


def _readable(fields: Mapping[bytes, bytes], deliveries: int) -> list[UsageEvent]:
    """The event of an entry; none when it went into quarantine. Raises FutureEventError."""
    if deliveries >= GIVE_UP_AFTER:  # not even read: reading it may be what kills
        quarantine_entry(fields, PoisonError(f"Booking it by itself failed {BY_ITSELF} times; it may end processes."))
        return []
    try:
        return [parse(fields)]
    except FutureEventError:
        raise
    except BadEventError as exc:
        quarantine_entry(fields, exc)
        return []


def _leave(stream: str, newer: Mapping[int, list[bytes]]) -> None:
    """Leave entries to workers that know their version: at once claimable, and with no delivery held against them."""
    for version, ids in newer.items():
        name = f"version {version}"
        store().xclaim(stream, keys.GROUP, name, 0, list(ids), idle=CLAIM_AFTER_MS, retrycount=0, justid=True)
        now = time.monotonic()
        if now - _said_at.get(version, -SAY_AGAIN_SECONDS) >= SAY_AGAIN_SECONDS:
            _said_at[version] = now
            text = "Usage events of version %d wait for a newer worker: this one reads up to version %d"
            logger.warning(text, version, VERSION)


def _forgive(batch: Batch, exc: BaseException) -> None:
    """Take back the delivery of entries that weren't booked because of `exc`: nobody died of them.

    What took too long comes in single entries next time. So does what met an error of the program, which may be due to
    one of them; it counts against an entry that came alone.
    """
    deliveries = batch.deliveries
    if isinstance(exc, AN_EVENTS_FAULT) or (isinstance(exc, Exception) and not isinstance(exc, NOBODYS_FAULT)):
        if deliveries >= ALONE_AFTER:
            return
        deliveries = ALONE_AFTER
    elif isinstance(exc, SoftTimeLimitExceeded):
        deliveries = max(deliveries, ALONE_AFTER)
    try:
        for stream, entries in batch.entries.items():
            ids = [entry_id for entry_id, _ in entries]
            name = _consumer(os.getpid())
            store().xclaim(stream, keys.GROUP, name, 0, list(ids), retrycount=deliveries, justid=True)
    except redis.RedisError as failed:
        logger.warning("Deliveries can't be taken back (%s)", type(failed).__name__)


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

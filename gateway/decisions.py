"""Why calls weren't admitted, read back for people: one call by its request id, or the latest ones.

The stream keeps about the last 200,000 (gateway.telemetry writes it). It is in the order in which web processes handed
their decisions over, which is within seconds of when the calls came in.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from config.redis import PAGE_SECONDS, store
from gateway.telemetry import Refusal
from tokens.admission import keys
from tokens.scripts import answered

EARLIER_MS, LATER_MS = 5_000, 60_000  # between a request id and its decision: clocks differ, bodies arrive slowly
PIECE = 1_000
MOST_LOOKED_AT = 20_000  # decisions that one page reads, a tenth of a second or so

_decoder = msgspec.json.Decoder(Refusal)


@dataclass(frozen=True, slots=True)
class Page:
    """Some decisions, newest first. `next` is where the following page begins, empty after the last one."""

    refusals: list[Refusal]
    next: str


def moment_of(request_id: uuid.UUID) -> dt.datetime | None:
    """When a request with this id came in; None for one that no gateway made (it isn't a UUIDv7)."""
    if request_id.version != 7:
        return None
    try:
        return dt.datetime.fromtimestamp((request_id.int >> 80) / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):  # the year 10000
        return None


def find(request_id: uuid.UUID, at: dt.datetime) -> Refusal | None:
    """The decision about a call that came in `at`. Raises StoreUnavailable."""
    milliseconds = int(at.timestamp() * 1000)
    start, end = str(max(0, milliseconds - EARLIER_MS)), str(milliseconds + LATER_MS)
    wanted = str(request_id).encode()
    looked_at = 0
    while looked_at < MOST_LOOKED_AT * 5:  # a minute in which all that can be kept came in
        with answered():
            entries: Any = store(PAGE_SECONDS).xrange(keys.DECISIONS, start, end, count=PIECE)
        for _, fields in entries:
            if wanted in fields[b"decision"]:
                refusal = _decoder.decode(fields[b"decision"])
                if refusal.request_id == str(request_id):  # otherwise it is another call's first one
                    return refusal
        if len(entries) < PIECE:
            return None
        looked_at += len(entries)
        start = f"({entries[-1][0].decode()}"
    return None


def latest(wanted: Callable[[Refusal], bool], before: str, most: int) -> Page:
    """At most `most` decisions that are wanted, from the stream's id `before` ("": the newest) back.

    It looks at a bounded number, so a page may hold few and still have a next one. Raises StoreUnavailable.
    """
    found: list[Refusal] = []
    for looked_at, (entry_id, refusal) in enumerate(_backwards(before)):
        if wanted(refusal):
            found.append(refusal)
        if len(found) == most or looked_at == MOST_LOOKED_AT:
            return Page(found, entry_id)
    return Page(found, "")


def oldest() -> dt.datetime | None:
    """When the oldest decision that is kept was handed over; None when there is none. Raises StoreUnavailable."""
    with answered():
        entries: Any = store(PAGE_SECONDS).xrange(keys.DECISIONS, count=1)
    return dt.datetime.fromtimestamp(int(entries[0][0].split(b"-")[0]) / 1000, dt.UTC) if entries else None


def _backwards(before: str) -> Iterator[tuple[str, Refusal]]:
    end = f"({before}" if before else "+"
    while True:
        with answered():
            entries: Any = store(PAGE_SECONDS).xrevrange(keys.DECISIONS, end, "-", count=PIECE)
        for entry_id, fields in entries:
            yield entry_id.decode(), _decoder.decode(fields[b"decision"])
        if len(entries) < PIECE:
            return
        end = f"({entries[-1][0].decode()}"

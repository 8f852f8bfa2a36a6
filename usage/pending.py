"""Calls that have yet to come into the books: whose they are, and of which day. As far as that can be read."""

import datetime as dt
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from django.conf import settings

from config.redis import store
from tokens.admission import keys
from tokens.admission.settlement import Ending
from tokens.models import Tenant
from usage.events import moment_of
from usage.models import SequenceCheck

MOST = 20_000  # entries that are looked at in one stream
PIECE = 1_000
ZONES = dt.timedelta(hours=15)  # a tenant's day ends less than this after the same day of UTC


class Dated(NamedTuple):
    """A call: its tenant, the tenant's day on which it was admitted, and when it came in. None: can't be read."""

    tenant: int | None
    day: dt.date | None
    at: dt.datetime | None


@dataclass(frozen=True)
class Asked:
    """A month of a tenant: `start` is its first day, `end` the day after its last, `ended_at` when that was safe."""

    tenant: Tenant
    start: dt.date
    end: dt.date
    ended_at: dt.datetime

    def has(self, found: Dated) -> bool:
        """Whether a call may belong to this month or an earlier one; in doubt it does."""
        if found.tenant not in (None, self.tenant.pk):
            return False
        if found.day is not None:
            return found.day < self.end
        return found.at is None or found.at.astimezone(self.tenant.zone(found.at)).date() < self.end


class _Call(msgspec.Struct):
    tenant: int
    day: dt.date


def moment(request_id: uuid.UUID | None) -> dt.datetime | None:
    """When a call came in: the milliseconds at the head of its UUIDv7. None for what has no such time."""
    if request_id is None or request_id.version != 7:
        return None
    try:
        return moment_of(request_id)
    except OverflowError:
        return None


def reservations(asked: Sequence[Asked]) -> list[Dated]:
    """The calls that are under way and came in before these months' ends. Raises redis.RedisError."""
    before, found = _bound(asked), []
    for shard in _shards(asked):
        ids: Any = store().zrange(keys.deadlines(shard), 0, -1)
        old = [raw.decode() for raw in ids if not _is_later(raw, before)]
        for start in range(0, len(old), PIECE):
            pipeline = store().pipeline(transaction=False)
            for request_id in old[start : start + PIECE]:
                pipeline.hmget(keys.reservation(shard, request_id), "state", "call")
            for request_id, (state, call) in zip(old[start:], pipeline.execute(), strict=False):
                if state == b"RESERVED":  # otherwise it has ended since the list was read
                    found.append(_dated(call, request_id))
    return found


def events(asked: Sequence[Asked]) -> list[Dated]:
    """The events in the streams that may be of these months. Raises redis.RedisError.

    A stream that is longer than can be looked at counts as one event of everybody's.
    """
    before, found = _bound(asked), []
    for shard in _shards(asked):
        start, looked = "-", 0
        while looked < MOST:
            entries: Any = store().xrange(keys.usage(shard), start, "+", count=PIECE)
            for _, fields in entries:
                request_id = fields.get(b"request_id", b"")
                if not _is_later(request_id, before):
                    found.append(_dated(fields.get(b"call"), request_id.decode("ascii", "replace"), fields))
            looked += len(entries)
            if len(entries) < PIECE:
                break
            start = f"({entries[-1][0].decode()}"
        else:
            found.append(Dated(None, None, None))
    return found


def spooled() -> list[Dated]:
    """The ends of calls that wait in the spool; a file that can't be read has the call's id as its name."""
    found = []
    for path in settings.SPOOL_ROOT.glob("*"):
        if path.name.startswith("."):
            continue
        try:
            ending = of_ending(path.read_bytes(), Ending)
        except FileNotFoundError:  # replayed just now
            continue
        except OSError:
            ending = Dated(None, None, None)
        found.append(ending if ending.at else ending._replace(at=moment(_uuid(path.stem))))
    return found


def of_ending(content: bytes, kind: type[Ending]) -> Dated:
    """The call of an ending as it was written down."""
    try:
        ending = msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Dated(None, None, None)
    found = _dated(ending.call, ending.request_id)
    return found._replace(tenant=ending.tenant)


def is_open() -> bool:
    """Whether the store has a generation: it isn't being rebuilt. Raises redis.RedisError."""
    return bool(store().hget(keys.meta(0), "generation"))


def unchecked(asked: Sequence[Asked]) -> Iterator[int]:
    """The tenants whose numbers weren't looked at for gaps since the month ended. Raises redis.RedisError."""
    pipeline = store().pipeline(transaction=True)
    pipeline.hget(keys.meta(0), "generation")
    for month in asked:
        pipeline.get(keys.sequence(keys.shard_of(month.tenant.pk, settings.SHARDS), month.tenant.pk))
    generation, *counters = pipeline.execute()
    name = (generation or b"").decode().partition(":")[0]
    rows = SequenceCheck.objects.filter(tenant__in=[month.tenant for month in asked], generation=name)
    checks = {row.tenant_id: row for row in rows}
    for month, counter in zip(asked, counters, strict=True):
        check = checks.get(month.tenant.pk)
        behind = int(counter or 0) > (check.through if check else 0)
        if behind and (check is None or check.checked_at < month.ended_at):
            yield month.tenant.pk


def _dated(call: bytes | None, request_id: str, fields: dict[bytes, bytes] | None = None) -> Dated:
    at = moment(_uuid(request_id))
    try:
        read = msgspec.json.decode(call or b"", type=_Call)
        return Dated(read.tenant, read.day, at)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = (fields or {}).get(b"tenant", b"")
        return Dated(int(text) if text.isdigit() else None, None, at)


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _bound(asked: Iterable[Asked]) -> dt.datetime:
    """No call of these months came in after this."""
    last = max(month.end for month in asked)
    return dt.datetime.combine(last, dt.time(), dt.UTC) + ZONES


def _is_later(request_id: bytes, bound: dt.datetime) -> bool:
    at = moment(_uuid(request_id.decode("ascii", "replace")))
    return at is not None and at >= bound


def _shards(asked: Iterable[Asked]) -> list[int]:
    return sorted({keys.shard_of(month.tenant.pk, settings.SHARDS) for month in asked})

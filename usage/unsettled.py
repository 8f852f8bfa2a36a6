"""Calls that were booked while the admission store was out of reach, until the store has ended them too.

A web process whose store doesn't answer writes a call's ending here: the ledger row and an `UnsettledCall` commit
together, so the books are exact at once, and the store's counters and the call's reservation follow when `replay` hands
the ending to it. Ending a call twice changes nothing, so any process may replay at any time; the event that the store
then sends finds its call in the ledger and merges to nothing. A store that was rebuilt meanwhile has counted the call
from the ledger and holds no reservation of it that counts.
"""

import logging
import time
import uuid
from collections.abc import Iterable, Sequence

import msgspec
import redis
from django.db import DataError, IntegrityError, connection, transaction

from config.redis import store
from tokens.admission.settlement import Ending, finish_from_task, finish_together
from usage import ledger
from usage.events import BadEventError, UsageEvent, parse
from usage.merging import RANK
from usage.models import UnsettledCall

logger = logging.getLogger(__name__)

BATCH = 500  # calls handed to the store between two deletions
REPLAY_SECONDS = 8.0
COMPLAIN_SECONDS = 60.0  # between two lines of the log about endings that the store refuses

# Only what was handed over: a call that was resolved meanwhile has another ending by now, which must still be told.
DELETE = f"""
DELETE FROM {UnsettledCall._meta.db_table} u USING unnest(%s::uuid[], %s::bytea[]) AS d (request_id, ending)
WHERE u.request_id = d.request_id AND u.ending = d.ending
"""  # noqa: S608 - constants

_complained_at = -COMPLAIN_SECONDS


def record(endings: Sequence[Ending]) -> None:
    """Book how calls ended, and that the store must still learn it; committed when it returns, all of them.

    Recording an ending again changes nothing. A call that was never dispatched is left to the store alone: only it
    knows whether there was a reservation at all. So is one that the ledger refuses: its event comes through the
    stream, and is quarantined there.

    Raises django.db.OperationalError or InterfaceError when the database is out of reach; give all of them again.
    """
    if not endings:
        return
    events = [event for ending in endings if (event := _event(ending))]
    try:
        if events:
            ledger.write(events, lambda _written: _note(endings))
        else:
            keep(endings)
    except (DataError, IntegrityError):
        if len(endings) == 1:
            keep(endings)
            return
        middle = len(endings) // 2
        record(endings[:middle])
        record(endings[middle:])


def keep(endings: Iterable[Ending]) -> None:
    """Remember endings that the store must still learn, without booking them. Raises django.db.OperationalError."""
    with transaction.atomic():
        _note(endings)


def tell(endings: Sequence[Ending]) -> None:
    """Hand endings that were just noted to the store, all at once, and delete those that it took.

    What it didn't take waits for `replay`. Raises redis.ConnectionError (or TimeoutError) when it is out of reach.
    """
    taken = finish_together(store(), endings)
    _delete([UnsettledCall(uuid.UUID(ending.request_id), msgspec.json.encode(ending)) for ending in taken])


def replay() -> int:
    """Hand what waits to the store, for at most about 8 s, and delete what it took; returns how many went.

    An ending that the store refuses stays and holds up no other. Raises redis.ConnectionError (or TimeoutError) and
    django.db.OperationalError when a server is out of reach; what waits is tried again.
    """
    taken, refused = 0, []
    last = uuid.UUID(int=0)
    end = time.monotonic() + REPLAY_SECONDS
    while time.monotonic() < end:
        rows = list(UnsettledCall.objects.filter(pk__gt=last).order_by("pk")[:BATCH])
        if not rows:
            break
        last = rows[-1].pk
        done = []
        try:
            for row in rows:
                if _hand_over(row):
                    done.append(row)
                else:
                    refused.append(row)
        finally:  # what the store has taken goes, whatever became of the rest
            _delete(done)
        taken += len(done)
    if refused:
        _complain(refused)
    return taken


def count() -> int:
    """How many calls the store must still learn of."""
    return UnsettledCall.objects.count()


def _event(ending: Ending) -> UsageEvent | None:
    """The ledger's event of an ending: that of a stream, but without sequence and generation."""
    if ending.kind == "void" and not ending.keep_request:
        return None
    fields = {
        b"request_id": ending.request_id.encode(),
        b"kind": ending.kind.encode(),
        b"call": ending.call,
        b"result": ending.result,
    }
    try:
        return parse(fields)
    except BadEventError as exc:
        logger.error("an ending can't be booked, its event will be quarantined: %s", exc)
        return None


def _note(endings: Iterable[Ending]) -> None:
    """Write the rows of endings; of two endings of one call the one that says more stays."""
    newest: dict[uuid.UUID, Ending] = {}
    for ending in endings:
        number = uuid.UUID(ending.request_id)
        if number not in newest or RANK[newest[number].kind] < RANK[ending.kind]:
            newest[number] = ending
    rows = [UnsettledCall(number, msgspec.json.encode(newest[number])) for number in sorted(newest)]
    UnsettledCall.objects.bulk_create(rows, ignore_conflicts=True)
    for row in UnsettledCall.objects.select_for_update().filter(pk__in=newest).order_by("pk"):
        if RANK[_ending(row).kind] < RANK[newest[row.pk].kind]:
            row.ending = msgspec.json.encode(newest[row.pk])
            row.save(update_fields=["ending"])


def _ending(row: UnsettledCall) -> Ending:
    return msgspec.json.decode(bytes(row.ending), type=Ending)


def _hand_over(row: UnsettledCall) -> bool:
    try:
        finish_from_task(store(), _ending(row))
    except (redis.ResponseError, msgspec.MsgspecError):
        return False
    return True


def _delete(rows: Sequence[UnsettledCall]) -> None:
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(DELETE, [[row.pk for row in rows], [bytes(row.ending) for row in rows]])


def _complain(rows: Sequence[UnsettledCall]) -> None:
    global _complained_at
    if time.monotonic() - _complained_at >= COMPLAIN_SECONDS:
        _complained_at = time.monotonic()
        logger.error("the store refuses %d endings of booked calls", len(rows), extra={"request_id": str(rows[0].pk)})

"""What a call of unknown outcome counts as, decided by a person: nothing, its estimate, or what it really cost.

The decision is a correction in the ledger, with its reason and who took it. In the same transaction it is noted that
the admission store must end the call so too (usage.unsettled): then its counters move and the quota is free. With the
store out of reach the books are right at once and the store learns it when it is back.

A decision is taken once. Should the provider's own answer come after a *nothing*, it replaces it: exact outranks void,
in the books and in the store. A charge that a person decided stays.
"""

import csv
import datetime as dt
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import redis
from django.conf import settings
from django.db.models import QuerySet

from config.redis import store
from tokens import audit
from tokens.admission import keys
from tokens.admission.settlement import Ending
from tokens.audit import Change, Subject, Verb
from tokens.errors import Refused
from tokens.models import User
from usage import ledger, unsettled
from usage.events import MOST, UsageEvent, parse
from usage.models import Kind, UnsettledCall, UsageRecord

logger = logging.getLogger(__name__)

BATCH = 500  # calls a transaction
REASON_CHARACTERS = 500
STORE_SECONDS = 2.0  # a store that hangs keeps nobody waiting: it learns of the decision when it is back
ABSURD = 10  # times the bound; a provider that reports more is not believed either
# The ledger doesn't say which secret a call came with, and no row has this id: none is marked as used.
NO_SECRET = MOST
# A retry under the call's idempotency key goes on being told so: the provider may have drawn all the same.
ANSWER = b'{"error":"outcome_unknown"}'

SETTLED = "was settled meanwhile: the books will have it in a moment"
MEANWHILE = "was resolved meanwhile"


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a call is to count as. `tokens` and `images` (None: all that were asked for) are read for *actual* only."""

    outcome: Literal["nothing", "estimate", "actual"]
    tokens: int = 0
    images: int | None = None


NOTHING, ESTIMATE = Ruling("nothing"), Ruling("estimate")


@dataclass(slots=True)
class Result:
    """What became of the calls: rows of those resolved, why others were not, and how many the store must still learn.

    A reason continues a sentence that begins with the call: "was resolved meanwhile". `store_answers` turns False when
    the store didn't answer once; it isn't asked again then.
    """

    resolved: list[UsageRecord] = field(default_factory=list)
    refused: dict[uuid.UUID, str] = field(default_factory=dict)
    waiting: int = 0
    store_answers: bool = True


def resolve(rulings: Mapping[uuid.UUID, Ruling], reason: str, by: User | str) -> Result:
    """Resolve calls by their request ids; those that can't be are in the result, and keep no other from it.

    The audit trail tells of each. Raises Refused without a reason, and django.db.OperationalError when
    the database is out of reach: calls may then be resolved already, and trying again leaves those as they are.
    """
    result = Result()
    _resolve(rulings, reason, by, result)
    return result


def _resolve(
    rulings: Mapping[uuid.UUID, Ruling], reason: str, by: User | str, result: Result, on_day: dt.date | None = None
) -> None:
    if not reason.strip():
        raise Refused("Say why: a decision needs a reason.")
    ids = sorted(rulings)
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        _resolve_batch({request_id: rulings[request_id] for request_id in batch}, reason, by, result, on_day)


def resolve_matching(
    calls: QuerySet[UsageRecord], ruling: Ruling, reason: str, by: User | str, on_day: dt.date | None = None
) -> Result:
    """Resolve all calls of a query of unresolved ones, in the order of their request ids, some hundred at a time.

    The decisions are booked on `on_day`, otherwise today.
    """
    result = Result()
    last = uuid.UUID(int=0)
    while ids := list(_ids(calls.filter(request_id__gt=last))[:BATCH]):
        last = ids[-1]
        _resolve(dict.fromkeys(ids, ruling), reason, by, result, on_day)
    return result


def read_rulings(lines: Iterable[str]) -> dict[uuid.UUID, Ruling]:
    """Read a list of what calls really cost: request id, tokens and, if not all were drawn, images; a line a call.

    CSV, with or without a first line of headings. Raises Refused, naming the line.
    """
    rulings: dict[uuid.UUID, Ruling] = {}
    for number, row in enumerate(csv.reader(lines), 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[0].lower() == "request_id"):
            continue
        try:
            request_id, tokens, images = uuid.UUID(cells[0]), *_figures(cells[1:])
        except ValueError:
            raise Refused(f"Line {number} is not a request id, its tokens and, if need be, its images.") from None
        if request_id in rulings:
            raise Refused(f"Line {number} names call {request_id} a second time.")
        rulings[request_id] = Ruling("actual", tokens, images)
    return rulings


def _figures(cells: Sequence[str]) -> tuple[int, int | None]:
    if not 1 <= len(cells) <= 2 or not all(cell.isascii() and cell.isdigit() and len(cell) < 19 for cell in cells):
        raise ValueError
    return int(cells[0]), int(cells[1]) if len(cells) == 2 else None


def _ids(calls: QuerySet[UsageRecord]) -> QuerySet[UsageRecord, uuid.UUID]:
    return calls.order_by("request_id").values_list("request_id", flat=True)


def _resolve_batch(
    rulings: Mapping[uuid.UUID, Ruling], reason: str, by: User | str, result: Result, on_day: dt.date | None
) -> None:
    calls = _open_calls(rulings, result)
    text = f"resolved by {by}: {' '.join(reason.split())}"[:REASON_CHARACTERS]
    endings = {request_id: _ending(call, rulings[request_id], text) for request_id, call in calls.items()}
    done: list[uuid.UUID] = []

    def note(written: Sequence[UsageEvent]) -> None:
        done.extend(event.request_id for event in written)
        unsettled.keep([endings[request_id] for request_id in done])
        told = [(subject_of(calls[request_id]), _decided(endings[request_id])) for request_id in done]
        audit.note_many(Verb.RESOLVED, told, " ".join(reason.split()))

    if endings:
        events = [_event(ending) for ending in endings.values()]
        ledger.write(events, note, only_unresolved=True, corrections_on=on_day)
    result.refused |= dict.fromkeys(endings.keys() - set(done), MEANWHILE)
    result.resolved += [calls[request_id] for request_id in done]
    result.waiting += _tell_store([endings[request_id] for request_id in done], result)


def subject_of(call: UsageRecord) -> Subject:
    """A call as the audit trail knows it: by its request id, whichever row of it is looked at."""
    number = str(call.request_id)
    return Subject(UsageRecord._meta.label_lower, number, number, call.tenant_id)


def _decided(ending: Ending) -> list[Change]:
    return [
        ("outcome", str(Kind.UNRESOLVED.label), str(Kind(ending.kind).label)),
        ("images", "", str(ending.images)),
        ("tokens", "", str(ending.tokens)),
    ]


def _open_calls(rulings: Mapping[uuid.UUID, Ruling], result: Result) -> dict[uuid.UUID, UsageRecord]:
    """The rows of the calls that can be resolved so; why the others can't goes into the result."""
    rows: dict[uuid.UUID, list[UsageRecord]] = {request_id: [] for request_id in rulings}
    for row in UsageRecord.objects.filter(request_id__in=rulings).order_by("request_id", "number"):
        rows[row.request_id].append(row)
    calls = {}
    for request_id, of_call in rows.items():
        objection = _objection(of_call, rulings[request_id])
        if objection:
            result.refused[request_id] = objection
        else:
            calls[request_id] = of_call[0]
    if result.store_answers:
        try:
            settled = _settled(calls)
        except redis.RedisError:
            result.store_answers, settled = False, set()
        for request_id in settled:
            del calls[request_id]
            result.refused[request_id] = SETTLED
    return calls


def _objection(rows: Sequence[UsageRecord], ruling: Ruling) -> str | None:
    """Why a call with these rows of the ledger can't be resolved so."""
    if not rows:
        return "is not in the books"
    first, newest = rows[0], rows[-1]
    if first.kind != Kind.UNRESOLVED:
        return f"was never unresolved: it ended {first.outcome}"
    if newest.outcome != Kind.UNRESOLVED:
        how = f" ({newest.reason})" if newest.reason else ""
        return f"was resolved before, as {newest.outcome}{how}"
    if ruling.outcome == "actual":
        if ruling.images is not None and not 0 <= ruling.images <= first.n:
            return f"can't have drawn {ruling.images} images: {first.n} {'was' if first.n == 1 else 'were'} asked for"
        if not 0 <= ruling.tokens <= ABSURD * first.charged_tokens:
            return f"can't have cost {ruling.tokens} tokens: its bound is {first.charged_tokens}"
    return None


def _settled(calls: Mapping[uuid.UUID, UsageRecord]) -> set[uuid.UUID]:
    """Of these calls those that the store has settled since: their events still wait. Raises redis.RedisError.

    Deciding now would write something that the books are about to know. Where no event waits the books know better:
    they were restored from a backup, say.
    """
    shards = {request_id: _shard(call) for request_id, call in calls.items()}
    waiting = sorted(set(shards.values()))
    with store(STORE_SECONDS).pipeline(transaction=False) as pipeline:
        for shard in waiting:
            pipeline.xlen(keys.usage(shard))
        for request_id, shard in shards.items():
            pipeline.hget(keys.reservation(shard, str(request_id)), "state")
        answers = pipeline.execute()
    busy = {shard for shard, length in zip(waiting, answers, strict=False) if length}
    states = zip(shards.items(), answers[len(waiting) :], strict=True)
    return {request_id for (request_id, shard), state in states if shard in busy and state in {b"SETTLED", b"VOIDED"}}


def _shard(call: UsageRecord) -> int:
    return keys.shard_of(call.tenant_id, settings.SHARDS)


def _ending(row: UsageRecord, ruling: Ruling, reason: str) -> Ending:
    """A ruling as any other end of a call."""
    kind = "void" if ruling.outcome == "nothing" else "exact"
    images, tokens = {
        "nothing": (0, 0),
        "estimate": (row.images, row.charged_tokens),
        "actual": (row.n if ruling.images is None else ruling.images, ruling.tokens),
    }[ruling.outcome]
    call: dict[str, Any] = {"v": 1, "tenant": row.tenant_id, "member": row.member_id, "token": row.token_id}
    call |= {"secret": NO_SECRET, "model": row.model, "size": row.size, "quality": row.quality}
    call |= {"n": row.n, "provider": row.provider}
    result: dict[str, Any] = {"images": images, "input": None, "output": None, "reported": None, "charged": tokens}
    result |= {"provenance": "decided", "provider_request_id": row.provider_request_id}
    result |= {"latency_ms": row.latency_ms, "reason": reason}
    return Ending(
        str(row.request_id),
        _shard(row),
        row.tenant_id,
        kind,
        images,
        tokens,
        keep_request=True,
        result=msgspec.json.encode(result),
        call=msgspec.json.encode({**call, "day": row.day}),
        answer=ANSWER,
        decided=True,
    )


def _event(ending: Ending) -> UsageEvent:
    return parse(
        {
            b"request_id": ending.request_id.encode(),
            b"kind": ending.kind.encode(),
            b"call": ending.call,
            b"result": ending.result,
        }
    )


def _tell_store(endings: Sequence[Ending], result: Result) -> int:
    """Have the store end these calls, too, if it answers; returns how many it must still learn of."""
    if not endings:
        return 0
    if result.store_answers:
        try:
            unsettled.tell(endings)
        except redis.RedisError:
            result.store_answers = False
    if not result.store_answers:
        logger.warning("Resolved calls wait for the store: it is out of reach")
    return UnsettledCall.objects.filter(pk__in=[ending.request_id for ending in endings]).count()

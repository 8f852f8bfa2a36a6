"""What keeps a tenant's month from being closed: usage of the month that isn't in the books yet, or may be missing.

A call goes from its reservation to the spool or a stream, and from there to the ledger or to quarantine, and is always
in one of these before it leaves the other. They are looked at in this order, so a call of the month that is in none of
them is in the ledger.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import redis
from django.db.models import Exists, OuterRef

from tokens.admission.settlement import Ending
from usage import pending
from usage.alarms import AlarmKind, open_subjects
from usage.models import QuarantinedEvent, UnsettledCall, UsageRecord
from usage.pending import Asked, Dated
from usage.quarantine import whose

MOST = 10_000  # quarantined events, or calls unknown to the books, that are looked at


class ObstacleKind(StrEnum):
    """Every kind of obstacle; docs/admin.md says what to do about each."""

    STORE_AWAY = "store_away"
    RESERVATIONS = "reservations"
    SPOOLED = "spooled"
    UNDRAINED = "undrained"
    UNCHECKED = "unchecked"
    QUARANTINED = "quarantined"
    GAP = "gap"


class Words(NamedTuple):
    """What an obstacle is, after how many there are, what to do about it, and the admin's page for it."""

    one: str
    many: str
    advice: str
    page: str = ""
    query: str = ""


WORDS = {
    ObstacleKind.STORE_AWAY: Words(
        "the admission store doesn't answer, or is being rebuilt",
        "",
        "Nobody knows now which calls are under way. Close when it is back.",
    ),
    ObstacleKind.RESERVATIONS: Words(
        "call is under way",
        "calls are under way",
        "Calls end within their lease at the latest: look again in a few minutes.",
    ),
    ObstacleKind.SPOOLED: Words(
        "ended call waits in the spool",
        "ended calls wait in the spool",
        "Web processes replay what waits when the store is back. A file that ends in .bad can't be read: see what it"
        " holds, book that by hand, and move the file away.",
    ),
    ObstacleKind.UNDRAINED: Words(
        "usage event waits to be booked",
        "usage events wait to be booked",
        "The worker books them within seconds: is it running, is there an alarm?",
        "usage_alarm_changelist",
        "state=open",
    ),
    ObstacleKind.UNCHECKED: Words(
        "the numbers of its events weren't checked for gaps since the month ended",
        "",
        "The worker does so every minute: is it running?",
        "usage_alarm_changelist",
        "state=open",
    ),
    ObstacleKind.QUARANTINED: Words(
        "event is in quarantine",
        "events are in quarantine",
        "Book each once what was wrong is mended, or set it aside, saying why.",
        "usage_quarantinedevent_changelist",
        "open=1",
    ),
    ObstacleKind.GAP: Words(
        "alarm about lost events is open",
        "alarms about lost events are open",
        "Look for the calls in the provider's account (usage reconcile --provider), then mark it as dealt with.",
        "usage_alarm_changelist",
        "state=open&kind=sequence_gap",
    ),
}


@dataclass(frozen=True)
class Obstacle:
    """Something that must be dealt with first. `count`: how many; 0 where that says nothing."""

    kind: ObstacleKind
    count: int = 0

    def __str__(self) -> str:
        words = WORDS[self.kind]
        return f"{self.count:,} {words.one if self.count == 1 else words.many}" if self.count else words.one

    @property
    def advice(self) -> str:
        """What to do about it."""
        return WORDS[self.kind].advice


def obstacles(asked: Sequence[Asked]) -> dict[int, list[Obstacle]]:
    """What is in the way of closing these months, by tenant. Raises django.db.OperationalError."""
    found: dict[int, Counter[ObstacleKind]] = {month.tenant.pk: Counter() for month in asked}
    if not asked:
        return {}
    try:
        _note(found, asked, ObstacleKind.RESERVATIONS, pending.reservations(asked))
        _note(found, asked, ObstacleKind.SPOOLED, [*pending.spooled(), *_without_books()])
        _note(found, asked, ObstacleKind.UNDRAINED, pending.events(asked))
        away = not pending.is_open()
        for tenant in pending.unchecked(asked):
            found[tenant][ObstacleKind.UNCHECKED] = 1
    except redis.RedisError:
        away = True
    _note(found, asked, ObstacleKind.QUARANTINED, _quarantined())
    gaps = Counter(subject.partition(" ")[0] for subject in open_subjects(AlarmKind.SEQUENCE_GAP))
    for month in asked:
        found[month.tenant.pk][ObstacleKind.GAP] += gaps[month.tenant.slug]
        found[month.tenant.pk][ObstacleKind.STORE_AWAY] += away
    countless = {ObstacleKind.STORE_AWAY, ObstacleKind.UNCHECKED}
    return {
        tenant: [Obstacle(kind, 0 if kind in countless else counts[kind]) for kind in ObstacleKind if counts[kind]]
        for tenant, counts in found.items()
    }


def _note(
    found: dict[int, Counter[ObstacleKind]], asked: Sequence[Asked], kind: ObstacleKind, calls: Sequence[Dated]
) -> None:
    of_tenant = {month.tenant.pk: [month] for month in asked}
    for call in calls:
        for month in asked if call.tenant is None else of_tenant.get(call.tenant, ()):
            if month.has(call):
                found[month.tenant.pk][kind] += 1


def _without_books() -> list[Dated]:
    """Calls whose ends the store must still learn and that the books don't have: they come through its stream."""
    booked = UsageRecord.objects.filter(request_id=OuterRef("pk"))
    rows = UnsettledCall.objects.filter(~Exists(booked)).values_list("ending", flat=True)[:MOST]
    found = [pending.of_ending(bytes(ending), Ending) for ending in rows]
    return [*found, *_unseen(found)]


def _quarantined() -> list[Dated]:
    """The events in quarantine that nobody has dealt with."""
    rows = QuarantinedEvent.objects.filter(resolved_at=None).order_by("pk").values_list("raw", flat=True)[:MOST]
    found = []
    for raw in rows:
        tenant, request_id = whose(raw)
        text = str(raw.get("tenant", ""))  # as the store's script wrote it beside the call
        if tenant is None and text.isascii() and text.isdigit():
            tenant = int(text)
        found.append(Dated(tenant, None, pending.moment(request_id)))
    return [*found, *_unseen(found)]


def _unseen(looked_at: Sequence[Dated]) -> list[Dated]:
    """Of more than can be looked at, the rest counts as one of everybody's."""
    return [Dated(None, None, None)] if len(looked_at) == MOST else []

"""Quotas that are nearly used up, of some tenants, members and tokens, read from the store in one round trip."""

import time
from collections.abc import Collection
from dataclasses import dataclass

from django.db.models import Q

from config.redis import PAGE_SECONDS, store
from tokens import records
from tokens.admin import standing
from tokens.admin.standing import FIELDS, Meter
from tokens.admission import keys
from tokens.admission.periods import Calendar, OpenPeriods, open_periods
from tokens.issuing import Scope
from tokens.models import Limit, Metric, Period
from tokens.scripts import answered

NEAR_PERCENT = 80
MOST_LIMITS = 300  # that are looked at
QUOTAS = (Period.DAY, Period.MONTH, Period.TOTAL)


@dataclass(frozen=True, slots=True)
class Near:
    """A limit that is nearly used up, and whose it is."""

    owner: Scope
    meter: Meter
    percent: int


def nearly_reached(callers: Collection[tuple[int, int, int]], most: int) -> list[Near]:
    """The quotas and limits of concurrent calls that are taken to at least 80 %, the fullest first, at most `most`.

    Looked at are those of `callers`, the ids of tenant, member and token. Rates aren't: they are whole again before
    anybody has read of them. Raises StoreUnavailable.
    """
    tenants, members, tokens = ({ids[place] for ids in callers} for place in range(3))
    limits = list(
        Limit.objects.filter(
            Q(tenant__in=tenants, member=None, token=None) | Q(member__in=members) | Q(token__in=tokens),
            Q(period__in=QUOTAS) | Q(metric=Metric.CONCURRENT),
        ).select_related("tenant", "member__user", "member__tenant", "token__tenant", "token__member")[:MOST_LIMITS]
    )
    if not limits:
        return []
    now = time.time()
    calendars = {limit.tenant_id: standing.calendar_of(limit.tenant) for limit in limits}
    periods = {tenant: open_periods(calendar, now) for tenant, calendar in calendars.items()}
    with answered():
        pipeline = store(PAGE_SECONDS).pipeline(transaction=False)
        for limit in limits:
            shard, owner = records.shard_of(limit.tenant_id), _name(limit)
            if limit.metric == Metric.CONCURRENT:
                pipeline.zcount(keys.inflight(shard, owner), f"({int(now * 1_000_000)}", "+inf")
            else:
                pipeline.hmget(keys.use(shard, owner, _period(limit, periods[limit.tenant_id])), FIELDS)
        replies = pipeline.execute()
    found = [
        _near(limit, reply, now, calendars[limit.tenant_id], periods[limit.tenant_id])
        for limit, reply in zip(limits, replies, strict=True)
    ]
    return sorted((one for one in found if one.percent >= NEAR_PERCENT), key=lambda one: -one.percent)[:most]


def _near(limit: Limit, reply: object, now: float, calendar: Calendar, periods: OpenPeriods) -> Near:
    if isinstance(reply, int):
        used, reserved = reply, 0
    else:
        figures = standing.figures_of(reply)  # type: ignore[arg-type]
        used, reserved = figures.used[limit.metric], figures.reserved[limit.metric]
    owner: Scope = limit.owner()  # type: ignore[assignment]
    ends = {Period.DAY: periods.day_end, Period.MONTH: periods.month_end}.get(Period(limit.period))
    microseconds = int((ends - now) * 1_000_000) if ends else -1
    resets = standing.resets_of(limit, microseconds, now, calendar.at(now))
    scope = str(owner.entry().kind.value)
    meter = Meter(scope, limit, used, reserved, max(0, limit.amount - used - reserved), resets)
    return Near(owner, meter, 100 * (used + reserved) // limit.amount)


def _name(limit: Limit) -> str:
    entry = limit.owner().entry()
    return f"{entry.kind.value}:{entry.object_id}"


def _period(limit: Limit, periods: OpenPeriods) -> str:
    named = {Period.DAY: f"day:{periods.day}", Period.MONTH: f"month:{periods.month}"}
    return named.get(Period(limit.period), f"total:{limit.pk}")

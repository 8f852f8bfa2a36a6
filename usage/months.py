"""Which month of a tenant is the next to be closed, and how it stands: open, blocked, or ready.

Months close in order, from the first in which anything was booked, and only once they are over: when the tenant's
calendar shows another month, one lease later, so that every call admitted in it has ended.
"""

import datetime as dt
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from django.conf import settings
from django.db import connection
from django.utils.timezone import now

from tokens.models import Tenant
from usage.models import DailyUsage, Statement
from usage.obstacles import Obstacle, obstacles
from usage.partitions import month_after
from usage.pending import Asked

COUNTED = 10_000  # unresolved calls of a tenant; no more are counted

# One look into an index for each tenant.
FIRST_DAYS = f"""
SELECT t.id, (SELECT min(booked_day) FROM {DailyUsage._meta.db_table} d WHERE d.tenant_id = t.id)
FROM unnest(%s::bigint[]) AS t (id)
"""  # noqa: S608 - constants
UNRESOLVED = """
SELECT t.id, (SELECT count(*) FROM (
    SELECT FROM usage_record r WHERE r.tenant_id = t.id AND r.kind = 'unresolved' AND r.day < t.before
        AND NOT EXISTS (SELECT FROM usage_record c WHERE c.request_id = r.request_id AND c.kind = 'correction')
    LIMIT %s
) u) FROM unnest(%s::bigint[], %s::date[]) AS t (id, before)
"""
FIGURES = f"""
SELECT t.id, d.currency, sum(d.requests)::bigint, sum(d.cost), sum(d.unpriced_requests)::bigint
FROM unnest(%s::bigint[], %s::date[], %s::date[]) AS t (id, first, before)
JOIN {DailyUsage._meta.db_table} d ON d.tenant_id = t.id AND d.booked_day >= t.first AND d.booked_day < t.before
GROUP BY 1, 2 ORDER BY 1, 2
"""  # noqa: S608 - constants


class State(StrEnum):
    """How a tenant's next month stands."""

    UNUSED = "no usage"
    OPEN = "open"
    BLOCKED = "blocked"
    READY = "ready"


@dataclass
class Standing:
    """A tenant's next month. `month` is its first day, None where nothing was booked ever.

    `unresolved`: calls of unknown outcome that closing decides by the tenant's policy. `requests`, `costs` (by
    currency) and `unpriced` are what is booked in it by now.
    """

    tenant: Tenant
    last: Statement | None
    month: dt.date | None
    state: State
    ends: dt.datetime | None = None  # when it can be closed at the earliest
    obstacles: list[Obstacle] = field(default_factory=list)
    unresolved: int = 0
    requests: int = 0
    costs: dict[str, Decimal] = field(default_factory=dict)
    unpriced: int = 0

    @property
    def asked(self) -> Asked | None:
        """The month, if there is one."""
        if self.month is None or self.ends is None:
            return None
        return Asked(self.tenant, self.month, month_after(self.month), self.ends)


def look(tenants: Sequence[Tenant]) -> list[Standing]:
    """How these tenants' next months stand. A few queries for all. Raises django.db.OperationalError."""
    at = now()
    lasts = {
        one.tenant_id: one
        for one in Statement.objects.filter(tenant__in=tenants).order_by("tenant_id", "-month").distinct("tenant_id")
    }
    firsts = _first_days([tenant.pk for tenant in tenants if tenant.pk not in lasts])
    found = []
    for tenant in tenants:
        last, first = lasts.get(tenant.pk), firsts.get(tenant.pk)
        month = month_after(last.month) if last else first.replace(day=1) if first else None
        state = State.UNUSED if month is None else State.READY if is_over(tenant, month, at) else State.OPEN
        ends = None if month is None else ended_at(tenant, month, at)
        found.append(Standing(tenant, last, month, state, ends))
    _look_closer([one for one in found if one.state is State.READY])
    _add_figures([one for one in found if one.month])
    return found


def is_over(tenant: Tenant, month: dt.date, at: dt.datetime) -> bool:
    """Whether every call that was admitted in that month has ended: a lease has passed since it was the month."""
    lately = at - dt.timedelta(seconds=settings.LEASE_SECONDS)
    return lately.astimezone(tenant.zone(lately)).date() >= month_after(month)


def ended_at(tenant: Tenant, month: dt.date, at: dt.datetime) -> dt.datetime:
    """When the month is over, with the lease, on the calendar that is the tenant's then."""
    midnight = _midnight(month_after(month), tenant.zone(at))
    midnight = _midnight(month_after(month), tenant.zone(midnight))
    return midnight + dt.timedelta(seconds=settings.LEASE_SECONDS)


def _midnight(day: dt.date, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), zone).astimezone(dt.UTC)


def _first_days(tenants: Sequence[int]) -> dict[int, dt.date]:
    with connection.cursor() as cursor:
        cursor.execute(FIRST_DAYS, [list(tenants)])
        return {tenant: day for tenant, day in cursor.fetchall() if day}


def _look_closer(over: Sequence[Standing]) -> None:
    """What is in the way of closing, and what closing decides."""
    asked = [one.asked for one in over if one.asked]
    by_tenant = obstacles(asked)
    with connection.cursor() as cursor:
        cursor.execute(UNRESOLVED, [COUNTED, [one.tenant.pk for one in asked], [one.end for one in asked]])
        unresolved = dict(cursor.fetchall())
    for one in over:
        one.unresolved = unresolved[one.tenant.pk]
        one.obstacles = by_tenant[one.tenant.pk]
        if one.obstacles:
            one.state = State.BLOCKED


def _add_figures(known: Sequence[Standing]) -> None:
    by_tenant = {one.tenant.pk: one for one in known}
    with connection.cursor() as cursor:
        months = [one.month for one in known if one.month]
        cursor.execute(FIGURES, [list(by_tenant), months, [month_after(month) for month in months]])
        for tenant, currency, requests, cost, unpriced in cursor.fetchall():
            one = by_tenant[tenant]
            one.requests += requests
            one.unpriced += unpriced
            if currency:
                one.costs[currency] = cost
    for one in known:
        if 0 < one.unpriced == one.requests:  # then the currency is that of calls that cost nothing, and 0 isn't theirs
            one.costs = {}

"""The days that a page is about, on each tenant's own calendar: "today" is another date in Auckland than in Rome."""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from django.db.models import Case, F, Q, QuerySet, When
from django.utils.timezone import now

from tokens.models import Tenant
from usage.models import DailyUsage

PERIODS = {"today": "Today", "7d": "7 days", "30d": "30 days", "month": "This month"}
Days = tuple[dt.date, dt.date]  # first and last, both included


@dataclass(frozen=True)
class Span:
    """A period, and which days it is in the time zone of each tenant that it is about."""

    period: str
    zones: dict[str, Days]

    @property
    def first(self) -> dt.date:
        """The earliest day in any zone."""
        return min(first for first, _ in self.zones.values())

    @property
    def last(self) -> dt.date:
        """The latest day in any zone."""
        return max(last for _, last in self.zones.values())

    @property
    def days(self) -> list[dt.date]:
        """All of them, in order."""
        return list(each_day((self.first, self.last)))


def span(period: str, tenants: QuerySet[Tenant], at: dt.datetime | None = None) -> Span:
    """The days of a period of `PERIODS` for these tenants; those of UTC when there is none."""
    at = at or now()
    found = tenants.order_by().annotate(in_zone=_zone("", at)).values_list("in_zone", flat=True).distinct()
    zones = sorted(found) or ["UTC"]
    return Span(period, {zone: _days(period, at.astimezone(ZoneInfo(zone)).date()) for zone in zones})


def days_in(period: str, at: dt.datetime, zone: str = "UTC") -> Days:
    """The days of a period in one zone."""
    return _days(period, at.astimezone(ZoneInfo(zone)).date())


def each_day(days: Days) -> Iterator[dt.date]:
    """From the first to the last."""
    first, last = days
    return (first + dt.timedelta(days=number) for number in range((last - first).days + 1))


def booked_in(usage: QuerySet[DailyUsage], asked: Span, at: dt.datetime | None = None) -> QuerySet[DailyUsage]:
    """Of these rollups those of the span's days, each tenant's own."""
    within = usage.filter(booked_day__range=(asked.first, asked.last))
    groups: defaultdict[Days, list[str]] = defaultdict(list)
    for zone, days in asked.zones.items():
        groups[days].append(zone)
    if len(groups) == 1:
        return within
    either = Q()
    for days, zones in groups.items():
        either |= Q(booked_day__range=days, in_zone__in=zones)
    return within.annotate(in_zone=_zone("tenant__", at or now())).filter(either)


def _days(period: str, today: dt.date) -> Days:
    first = {"7d": today - dt.timedelta(days=6), "30d": today - dt.timedelta(days=29), "month": today.replace(day=1)}
    return first.get(period, today), today


def _zone(prefix: str, at: dt.datetime) -> Case:
    """A tenant's zone in force, as `Tenant.zone` has it."""
    changed = When(**{f"{prefix}next_timezone_from__lte": at}, then=F(f"{prefix}next_timezone"))
    return Case(changed, default=F(f"{prefix}timezone"))

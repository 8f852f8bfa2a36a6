"""The tenant's calendar: which day, month and total a call counts in, with the start and end of each.

A period is part of a counter's key and nothing is ever reset. The store checks that its own clock lies inside.
"""

import datetime as dt
from dataclasses import dataclass
from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True)
class Calendar:
    """A tenant's zone, and the one that follows from `changes_at` (epoch seconds, 0: none)."""

    zone: str
    next_zone: str = ""
    changes_at: int = 0

    def at(self, now: float) -> ZoneInfo:
        """The zone in force at `now` (epoch seconds)."""
        changed = self.changes_at and now >= self.changes_at
        return ZoneInfo(self.next_zone if changed else self.zone)


@dataclass(frozen=True, slots=True)
class OpenPeriods:
    """The day and month that a moment lies in; starts inclusive, ends exclusive, in epoch seconds."""

    day: str
    day_start: int
    day_end: int
    month: str
    month_start: int
    month_end: int


def _midnight(day: dt.date, zone: ZoneInfo) -> int:
    """The first second of a local day. Where a change of the clock skips midnight, the first second after it."""
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def open_periods(calendar: Calendar, now: float) -> OpenPeriods:
    """The tenant-local day and month at `now` (epoch seconds)."""
    zone = calendar.at(now)
    today = dt.datetime.fromtimestamp(now, zone).date()
    first = today.replace(day=1)
    next_first = (first + dt.timedelta(days=32)).replace(day=1)
    return OpenPeriods(
        day=today.isoformat(),
        day_start=_midnight(today, zone),
        day_end=_midnight(today + dt.timedelta(days=1), zone),
        month=f"{today:%Y-%m}",
        month_start=_midnight(first, zone),
        month_end=_midnight(next_first, zone),
    )

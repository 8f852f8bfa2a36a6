"""When a saved report is due: on the clock of its tenant, of a report about all tenants in UTC."""

import datetime as dt
from calendar import monthrange

from usage.reportrows import SavedReport, Schedule

ONE_DAY = dt.timedelta(days=1)


def next_due(report: SavedReport, after: dt.datetime) -> dt.datetime | None:
    """The first time after this moment, in UTC; None for a report without a schedule.

    A clock that is put forward past the hour makes it the moment that would have been; one that is put back sends once.
    """
    if not report.schedule:
        return None
    zone = report.tenant.zone(after) if report.tenant is not None else dt.UTC
    day = after.astimezone(zone).date()
    while True:
        if _is_due(report, day):
            at = dt.datetime.combine(day, dt.time(report.hour), zone).astimezone(dt.UTC)
            if at > after:
                return at
        day += ONE_DAY


def _is_due(report: SavedReport, day: dt.date) -> bool:
    if report.schedule == Schedule.WEEKLY:
        return day.isoweekday() == report.weekday
    if report.schedule == Schedule.MONTHLY:
        return day.day == min(report.month_day, monthrange(day.year, day.month)[1])
    return True

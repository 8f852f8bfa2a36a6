"""Calls whose outcome isn't known to this day, in the ledger."""

import datetime as dt
import uuid

from django.db.models import Exists, OuterRef, QuerySet

from usage.models import Kind, UsageRecord

EPOCH = dt.date(1970, 1, 1)
ZONES = dt.timedelta(hours=15)  # a tenant's day begins and ends less than this from the same day of UTC


def still_unresolved(records: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
    """Of these rows those of unresolved calls: no later row of the call has corrected them."""
    later = UsageRecord.objects.filter(request_id=OuterRef("request_id"), kind=Kind.CORRECTION).order_by()
    return records.filter(~Exists(later), kind=Kind.UNRESOLVED)


def admitted_between(
    records: QuerySet[UsageRecord], first: dt.date | None, last: dt.date | None
) -> QuerySet[UsageRecord]:
    """Of these rows those of calls admitted on the tenant's days from `first` to `last` (None: open), any dates.

    By the request id, too: it begins with the time, and so it finds the partitions (usage.partitions).
    """
    if first is not None:
        records = records.filter(day__gte=first, request_id__gte=_request_id(first, -ZONES))
    if last is not None:
        records = records.filter(day__lte=last, request_id__lt=_request_id(last, dt.timedelta(days=1) + ZONES))
    return records


def _request_id(day: dt.date, shift: dt.timedelta) -> uuid.UUID:
    """The least UUIDv7 of the UTC midnight before `day`, shifted; of times that none can name, the nearest."""
    milliseconds = (day - EPOCH + shift) // dt.timedelta(milliseconds=1)
    return uuid.UUID(int=max(0, milliseconds) << 80)

"""Calls whose outcome isn't known to this day, in the ledger."""

import datetime as dt
import uuid

from django.db.models import QuerySet

from tokens.models import Tenant
from usage.models import UsageRecord, is_unresolved

EPOCH = dt.date(1970, 1, 1)
ZONES = dt.timedelta(hours=15)  # a tenant's day begins and ends less than this from the same day of UTC


def still_unresolved(records: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
    """Of these rows those of unresolved calls: no later row of the call has corrected them."""
    return records.filter(is_unresolved())


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


def matching(
    tenant: Tenant | None = None, first: dt.date | None = None, last: dt.date | None = None, model: str = ""
) -> QuerySet[UsageRecord]:
    """The calls that are unresolved to this day, by tenant, by the tenant's days (both included) and by model."""
    records = still_unresolved(admitted_between(UsageRecord.objects.all(), first, last))
    if tenant is not None:
        records = records.filter(tenant=tenant)
    return records.filter(model=model) if model else records


def _request_id(day: dt.date, shift: dt.timedelta) -> uuid.UUID:
    """The least UUIDv7 of the UTC midnight before `day`, shifted; of times that none can name, the nearest."""
    milliseconds = (day - EPOCH + shift) // dt.timedelta(milliseconds=1)
    return uuid.UUID(int=max(0, milliseconds) << 80)

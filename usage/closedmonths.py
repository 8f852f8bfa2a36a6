"""Which months of a tenant are closed, and the lock under which something is booked or a month is closed.

Whoever books for a tenant holds the tenant's lock together with others; whoever closes one of its months holds it
alone. Both until their transaction ends, and both look at what is closed only once they have the lock. So no batch can
commit into a month whose content was hashed before. The database's own trigger takes the same lock and refuses rows of
a closed month from everybody else, too (migration 0002_ledger).
"""

import datetime as dt
from collections.abc import Iterable

from django.db import connection
from django.db.models import Max

from usage.models import Statement
from usage.partitions import month_after

LOCK = 0x636C6F73  # of PostgreSQL, with a tenant's id: "clos"
MOST = 2**31  # such a lock has two numbers of 32 bits; tenants that share one wait for each other more than they need

SHARE = "SELECT count(pg_advisory_xact_lock_shared(%s, number)) FROM unnest(%s::int[]) AS number"
TAKE = "SELECT pg_advisory_xact_lock(%s, %s)"


def share(tenants: Iterable[int]) -> dict[int, dt.date]:
    """Keep the months of these tenants from being closed until the transaction ends.

    Returns the first day of the first month that is open, for each tenant that has closed any.
    """
    numbers = sorted(set(tenants))
    with connection.cursor() as cursor:
        cursor.execute(SHARE, [LOCK, sorted({number % MOST for number in numbers})])
    return opens(numbers)


def take(tenant: int) -> None:
    """Keep everybody from booking for this tenant until the transaction ends, once all who do have committed."""
    with connection.cursor() as cursor:
        cursor.execute(TAKE, [LOCK, tenant % MOST])


def opens(tenants: Iterable[int]) -> dict[int, dt.date]:
    """The first day of the first month that is open, for each of these tenants that has closed any."""
    closed = Statement.objects.filter(tenant__in=tenants).order_by().values_list("tenant_id").annotate(Max("month"))
    return {tenant: month_after(month) for tenant, month in closed}

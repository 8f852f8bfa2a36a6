"""Month partitions of the ledger, by the time in a request id.

A UUIDv7 begins with its milliseconds since 1970 (RFC 9562, section 5.7), so a month of request ids is one range of
UUIDs. Rows outside every month's partition go to the default partition: a missing partition never stops the books.
"""

import datetime as dt
import logging
import uuid

from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper

logger = logging.getLogger(__name__)

MONTHS_AHEAD = 3
LOCK = 0x6D6F6E746873  # of PostgreSQL, until the transaction's end: "months"

EXISTS = """
SELECT EXISTS (SELECT FROM pg_class WHERE relname = %s AND relnamespace = current_schema()::regnamespace)
"""

# A statement's triggers fire for the table that it names only, so each partition has its own; those of rows are
# inherited.
PARTITION = """
CREATE TABLE {name} PARTITION OF usage_record FOR VALUES FROM ('{start}') TO ('{end}');
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON {name}
    FOR EACH STATEMENT EXECUTE FUNCTION usage_record_append_only();
CREATE TRIGGER closed_inserted AFTER INSERT ON {name} REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION usage_month_closed();
"""


def least_request_id(day: dt.date) -> uuid.UUID:
    """The bound below every UUIDv7 made on `day` (UTC) or later, and above every earlier one."""
    start = dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC)
    return uuid.UUID(int=int(start.timestamp()) * 1000 << 80)


def month_after(day: dt.date) -> dt.date:
    """The first day of the month after the one of `day`."""
    return (day.replace(day=1) + dt.timedelta(days=32)).replace(day=1)


def create_partitions(today: dt.date, database: BaseDatabaseWrapper = connection) -> list[str]:
    """Create the partitions of the month of `today` and of the next three that don't exist yet; returns their names.

    Creating one locks the ledger for an instant. When the lock can't be had within 2 s (a long report runs), or the
    default partition already holds rows of that month, it is left out: those rows stay in the default partition.
    Several processes may do this at once; each name is returned to the one that created it.
    """
    created = []
    month = today.replace(day=1)
    with database.cursor() as cursor:
        for _ in range(MONTHS_AHEAD + 1):
            name = f"usage_record_{month:%Y_%m}"
            if not _exists(cursor, name) and _create(database, name, month):
                created.append(name)
            month = month_after(month)
    return created


def _exists(cursor: CursorWrapper, name: str) -> bool:
    # Not to_regclass: within a transaction it may go on answering from a cache what was true before another's commit.
    cursor.execute(EXISTS, [name])
    (exists,) = cursor.fetchone()
    return bool(exists)


def _create(database: BaseDatabaseWrapper, name: str, month: dt.date) -> bool:
    statement = PARTITION.format(name=name, start=least_request_id(month), end=least_request_id(month_after(month)))
    try:
        with transaction.atomic(using=database.alias), database.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '2s'")
            # One creator at a time; the others look again, or the table would exist when they come to create it.
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            if _exists(cursor, name):
                return False
            cursor.execute(statement)
    except (IntegrityError, OperationalError) as exc:
        logger.warning("The partition %s was not created, its rows go to the default one: %s", name, exc)
        return False
    return True

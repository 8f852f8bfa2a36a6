"""The ledger's sums for the store's counters: right at every edge of a day, and read from the months they are about."""

import datetime as dt
import re
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tests.ownbooks import own_books
from tokens.admission import keys
from tokens.models import Limit
from usage import counters, unresolved
from usage.counters import METRICS, Expected, Use, expected
from usage.ledger import record
from usage.models import UsageRecord
from usage.partitions import create_partitions, month_after

HOUR = dt.timedelta(hours=1)
ZONES = ("Pacific/Kiritimati", "UTC", "Etc/GMT+12")  # UTC+14 to UTC-12
THIS_MONTH = now().date().replace(day=1)
MONTHS = [THIS_MONTH]  # and the three before, the newest first
for _ in range(3):
    MONTHS.append((MONTHS[-1] - dt.timedelta(days=1)).replace(day=1))


@pytest.fixture(scope="module", autouse=True)
def _books(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock(), own_books():
        create_partitions(MONTHS[-1])
        yield


def customer(zone: str) -> Books:
    """Calls on both sides of midnight at every edge of the last months and their middle, each with its correction."""
    books = Books(zone)
    for month in (*MONTHS, month_after(THIS_MONTH)):
        for day in (month, month.replace(day=15)):
            midnight = dt.datetime.combine(day, dt.time(), ZoneInfo(zone))
            for at in (midnight - dt.timedelta(milliseconds=1), midnight, midnight + 20 * HOUR):
                of = request_id(at)
                record([books.event("unresolved", of=of, day=at.date().isoformat())])
                record([books.event("exact", of=of, day=at.date().isoformat())])
    return books


def total(books: Books, since: dt.datetime) -> Limit:
    return Limit.objects.create(tenant=books.tenant, metric="images", amount=10**6, period="total", created_at=since)


def moment(zone: str, month: dt.date, day: int) -> dt.datetime:
    return dt.datetime(month.year, month.month, day, 12, tzinfo=ZoneInfo(zone))


def from_all_rows(books: Books, at: dt.datetime, limit: Limit) -> dict[str, Use]:
    """The same counters from the tenant's whole history, added up here."""
    shard = keys.shard_of(books.tenant.pk, settings.SHARDS)
    scopes = {"tenant": books.tenant.pk, "member": books.member.pk, "token": books.token.pk}
    found: dict[str, list[int]] = {}
    for row in UsageRecord.objects.filter(tenant=books.tenant):
        periods = []
        if row.day <= at.date() and row.day.replace(day=1) == at.date().replace(day=1):
            periods = [f"month:{at:%Y-%m}"] + [f"day:{row.day}"] * (row.day == at.date())
        names = [keys.use(shard, f"{scope}:{number}", period) for scope, number in scopes.items() for period in periods]
        if row.at >= limit.created_at:
            names.append(keys.use(shard, f"tenant:{books.tenant.pk}", f"total:{limit.pk}"))
        for name in names:
            figures = found.setdefault(name, [0] * len(METRICS))
            for at_, value in enumerate((row.kind != "correction", row.images, row.charged_tokens)):
                figures[at_] += value
    return {name: Use(*figures) for name, figures in found.items()}


def uses(found: dict[str, Expected]) -> dict[str, Use]:
    return {name: item.use for name, item in found.items()}


def unequal(zone: str) -> list[dt.datetime]:
    """The moments at which the sums aren't those of the whole history."""
    books, wrong = customer(zone), []
    for month in MONTHS[:2]:
        for day in (1, 15):
            at = moment(zone, month, day)
            limit = total(books, at)
            theirs = from_all_rows(books, at, limit)
            assert len(theirs) == 7, "day and month of three scopes, and the total"
            if uses(expected(books.tenant, at.timestamp())) != theirs:
                wrong.append(at)
            limit.delete()
    return wrong


@pytest.mark.parametrize("zone", ZONES)
def test_the_sums_are_those_of_the_whole_history(zone: str) -> None:
    assert unequal(zone) == []


@pytest.mark.parametrize("zone", [ZONES[0], ZONES[2]])
def test_control_bounds_of_utc_days_miss_calls(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unresolved, "ZONES", dt.timedelta(0))
    assert unequal(zone)


@pytest.mark.parametrize("zone", ZONES)
def test_only_tenants_that_may_need_counters_are_counted(zone: str) -> None:
    """Of a month as long as any, its first call counts until its last moment."""
    idle, old, used, quota = (Books(zone) for _ in range(4))
    first = next(month for month in MONTHS[1:] if (month_after(month) - month).days == 31)
    begun, over = (moment(zone, month, 1) - 12 * HOUR for month in (first, month_after(first)))
    for books, at in ((old, begun - 120 * HOUR), (used, begun)):
        record([books.event(of=request_id(at), day=at.date().isoformat())])
    limit = total(quota, begun)
    last = (over - HOUR / 3600).timestamp()
    everybody = {books.tenant for books in (idle, old, used, quota)}
    assert everybody & set(counters.counted(last)) == {used.tenant, quota.tenant}
    assert (expected(idle.tenant, last), expected(old.tenant, last)) == ({}, {})
    assert expected(used.tenant, last)
    limit.delete()


def months_read(books: Books, at: dt.datetime) -> list[set[str]]:
    """What each query of the ledger would read, as PostgreSQL plans it: "YYYY_MM" or "default"."""
    with CaptureQueriesContext(connection) as captured:
        expected(books.tenant, at.timestamp())
    read = []
    with connection.cursor() as cursor:
        for query in captured.captured_queries:
            if "usage_record" in query["sql"]:
                cursor.execute(f"EXPLAIN {query['sql']}")
                plan = "\n".join(line for (line,) in cursor.fetchall())
                read.append(set(re.findall(r" on usage_record_(\d{4}_\d\d|default) ", plan)))
    return read


def named(*months: dt.date) -> set[str]:
    return {f"{month:%Y_%m}" for month in months}


def test_only_the_months_that_count_are_read() -> None:
    books = customer("UTC")
    month, before = MONTHS[1], MONTHS[2]
    at = moment("UTC", month, 15)
    day = [named(month)] * 3
    assert months_read(books, at) == [*day, *[named(before, month)] * 3], "the first day of a zone begins in UTC's last"
    total(books, at)
    *_, of_total = months_read(books, at)
    assert of_total >= named(month, THIS_MONTH)
    assert not of_total & named(before, MONTHS[3])


def test_control_without_a_bound_every_month_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        counters, "admitted_between", lambda rows, first, last: rows.filter(day__gte=first, day__lte=last)
    )
    for read in months_read(Books(), moment("UTC", MONTHS[1], 15)):
        assert read > named(*MONTHS)

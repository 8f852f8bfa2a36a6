"""The ledger's table: append-only, one primary row a call, a partition a month."""

import datetime as dt
import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
from django.db import IntegrityError, connection, transaction

from tests.bookkeeping import Customer, request_id
from usage.ledger import record
from usage.models import Kind
from usage.partitions import create_partitions, least_request_id


@pytest.fixture
def alice() -> Customer:
    return Customer()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {table} SET charged_tokens = 0 WHERE request_id = '{call}'",
        "DELETE FROM {table} WHERE request_id = '{call}'",
        "TRUNCATE {table}",
    ],
)
@pytest.mark.parametrize("partition", [False, True])
def test_the_ledger_is_append_only(alice: Customer, statement: str, partition: bool) -> None:
    call = request_id()
    record([alice.event(of=call)])
    table = partition_of(call) if partition else "usage_record"
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement.format(table=table, call=call))
    assert len(alice.rows()) == 1


def test_the_database_refuses_a_second_primary_row(alice: Customer) -> None:
    call = request_id()
    record([alice.event(of=call)])
    (row,) = alice.rows()
    row.pk, row.kind, row.outcome = None, Kind.VOID, Kind.VOID
    with pytest.raises(IntegrityError, match="unique constraint"):
        row.save(force_insert=True)


def partition_of(call: uuid.UUID) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM usage_record WHERE request_id = %s", [call])
        (name,) = cursor.fetchone()
    return str(name)


def test_rows_are_kept_by_the_month_of_their_request_id(alice: Customer) -> None:
    call = request_id()
    record([alice.event(of=call)])
    assert partition_of(call) == f"usage_record_{dt.datetime.now(dt.UTC):%Y_%m}"


def test_month_bounds_part_the_last_moment_from_the_first() -> None:
    bound = least_request_id(dt.date(2026, 12, 1))
    midnight = dt.datetime(2026, 12, 1, tzinfo=dt.UTC)
    assert request_id(midnight - dt.timedelta(milliseconds=1)) < bound < request_id(midnight)


def test_several_creators_at_once_make_each_partition_once() -> None:
    year = random.randrange(2200, 9000)
    ready = threading.Barrier(4)

    def create(_: int) -> list[str]:
        try:
            with connection.cursor():  # connected before the race begins
                ready.wait(10)
            return create_partitions(dt.date(year, 5, 1))
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(create, range(4)))
    assert sorted(chain.from_iterable(created)) == [f"usage_record_{year}_{month:02}" for month in (5, 6, 7, 8)]


def test_partitions_are_made_ahead_and_a_missing_one_stops_nothing(alice: Customer) -> None:
    year = random.randrange(2200, 9000)
    late = request_id(dt.datetime(year, 3, 5, tzinfo=dt.UTC))
    record([alice.event(of=late)])
    assert partition_of(late) == "usage_record_default"
    names = [f"usage_record_{year}_{month:02}" for month in (1, 2, 3, 4)]
    assert create_partitions(dt.date(year, 1, 15)) == [names[0], names[1], names[3]]
    assert create_partitions(dt.date(year, 1, 15)) == []
    early = request_id(dt.datetime(year, 2, 5, tzinfo=dt.UTC))
    record([alice.event(of=early), alice.event("unresolved", of=late)])
    assert (partition_of(early), len(alice.rows())) == (names[1], 2)

"""The ledger: each call once, whatever comes how often, in which order, through how many writers."""

import datetime as dt
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection
from psycopg.types.json import Jsonb

from tests.bookkeeping import TODAY, Customer, request_id
from usage.events import parse
from usage.ledger import record
from usage.models import DailyUsage, EventReceipt, Price, QuarantinedEvent, UsageRecord
from usage.prices import Rates, Tokens


@pytest.fixture
def alice() -> Customer:
    return Customer()


@contextmanager
def other_connection() -> Iterator[psycopg.Connection[Any]]:
    parameters = connection.get_connection_params()
    wanted = {name: parameters[name] for name in ("dbname", "user", "password", "host", "port") if parameters.get(name)}
    with psycopg.connect(**wanted) as other:
        yield other


def in_threads(*jobs: Callable[[], None]) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], None]) -> None:
        try:
            start.wait()
            job()
        except BaseException as exc:
            errors.append(exc)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# One event


def test_it_books_an_exact_call(alice: Customer) -> None:
    event = alice.event(input=30, output=4152)
    record([event])
    (row,) = alice.rows()
    assert (row.kind, row.number, row.outcome, row.request_id) == ("exact", 0, "exact", event.request_id)
    assert (row.images, row.charged_tokens, row.reported_tokens) == (2, 4182, 4182)
    assert (row.input_tokens, row.output_tokens, row.provenance) == (30, 4152, "reported")
    assert (row.day, row.booked_day, row.cost, row.at) == (TODAY, TODAY, None, event.at)
    usage = DailyUsage.objects.get(tenant=alice.tenant)
    assert (usage.requests, usage.images, usage.charged_tokens, usage.unpriced_requests) == (1, 2, 4182, 1)
    assert EventReceipt.objects.filter(tenant=alice.tenant, generation=alice.generation, sequence=1).exists()
    alice.check_books()


def test_it_notes_when_a_secret_was_last_used_and_never_goes_back(alice: Customer) -> None:
    now = dt.datetime.now(dt.UTC)
    later = request_id(now), "2001:db8::7", "app/2" * 60
    record([alice.event(of=later[0], address=later[1], agent=later[2])])
    record([alice.event(of=request_id(now - dt.timedelta(seconds=5)), address="203.0.113.9")])
    alice.secret.refresh_from_db()
    assert alice.secret.last_used_at == alice.rows(later[0])[0].at
    assert (alice.secret.last_used_from, alice.secret.last_used_by) == ("2001:db8::7", ("app/2" * 60)[:200])


def test_an_address_with_a_zone_is_kept_without_it(alice: Customer) -> None:
    record([alice.event(address="fe80::1%eth0")])
    alice.secret.refresh_from_db()
    assert (len(alice.rows()), alice.secret.last_used_from) == (1, "fe80::1")


def test_a_strange_address_or_agent_keeps_nothing_out_of_the_books(alice: Customer) -> None:
    record([alice.event(address="unix:", agent="a\0b")])
    alice.secret.refresh_from_db()
    assert (alice.secret.last_used_from, alice.secret.last_used_by) == (None, "ab")
    assert len(alice.rows()) == 1


# Many events


def test_what_came_already_changes_nothing(alice: Customer) -> None:
    events = [alice.event(), alice.event("void"), alice.event("unresolved")]
    record([*events, *events])
    before = [row.id for row in alice.rows()]
    record(events)
    record(list(reversed(events)))
    assert [row.id for row in alice.rows()] == before
    assert len(before) == 3
    alice.check_books()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("kinds", "written"),
    [
        (["unresolved", "exact"], ["unresolved", "exact"]),
        (["exact", "unresolved"], ["exact"]),
        (["unresolved", "void"], ["unresolved", "void"]),
        (["void", "exact"], ["void", "exact"]),
        (["exact", "void"], ["exact"]),
        (["void", "unresolved", "exact", "void"], ["void", "exact"]),
        (["unresolved", "void", "exact", "exact"], ["unresolved", "void", "exact"]),
        (["exact", "exact"], ["exact"]),
    ],
)
def test_a_higher_rank_corrects_and_any_other_says_nothing_new(
    alice: Customer, kinds: list[str], written: list[str], together: bool
) -> None:
    tokens = {"per_million_input": 5, "per_million_output": 5}
    Price.objects.create(model=alice.model, per_image="0.02", **tokens, currency="EUR", valid_from=TODAY)
    call = request_id()
    events = [alice.event(kind, of=call) for kind in kinds]
    for batch in [events] if together else [[event] for event in events]:
        record(batch)
    rows = alice.rows()
    assert [row.outcome for row in rows] == written
    assert [row.kind for row in rows] == [written[0], *["correction"] * (len(written) - 1)]
    newest = next(event for event in reversed(events) if event.kind == written[-1])
    assert sum(row.images for row in rows) == newest.images
    assert sum(row.charged_tokens for row in rows) == newest.charged
    assert sum(row.reported_tokens or 0 for row in rows) == (newest.reported or 0)
    cost = newest.images * Decimal("0.02") + newest.charged * Decimal("0.000005")
    assert sum(row.cost or 0 for row in rows) == cost
    assert alice.total("charged_tokens") == (newest.charged if newest.kind == "exact" else 0)
    assert alice.total("unresolved_requests") == (1 if newest.kind == "unresolved" else 0)
    assert alice.total("voided_requests") == (1 if newest.kind == "void" else 0)
    alice.check_books()


def test_a_correction_is_booked_today_in_the_tenants_zone_and_its_day_stays() -> None:
    """A zone in which it is another day than in UTC, so that the wrong calendar is seen."""
    now = dt.datetime.now(dt.UTC)
    customer = Customer(timezone="Pacific/Kiritimati" if now.hour >= 11 else "Pacific/Pago_Pago")
    days = {now.astimezone(customer.tenant.zone(now)).date()}
    call = request_id()
    record([customer.event("unresolved", of=call)])
    record([customer.event("exact", of=call)])
    now = dt.datetime.now(dt.UTC)
    days.add(now.astimezone(customer.tenant.zone(now)).date())
    first, correction = customer.rows()
    assert (first.booked_day, correction.day) == (TODAY, TODAY)
    assert correction.booked_day in days
    customer.check_books()


def test_a_closed_day_keeps_its_figures_when_a_call_is_resolved_later(alice: Customer) -> None:
    call, day = request_id(), "2026-10-31"
    record([alice.event("unresolved", of=call, day=day)])
    record([alice.event("exact", of=call, day=day)])
    closed, today = DailyUsage.objects.filter(tenant=alice.tenant).order_by("booked_day")
    assert (closed.requests, closed.unresolved_requests, closed.unresolved_tokens) == (0, 1, 4850)
    assert (today.requests, today.charged_tokens, today.unresolved_requests) == (1, 4182, -1)


# Prices


def test_a_price_holds_from_its_day_and_one_for_the_size_goes_first(alice: Customer) -> None:
    def price(size: str, per_image: str, day: int) -> None:
        start = dt.date(2026, 11, day)
        Price.objects.create(model=alice.model, size=size, per_image=per_image, currency="EUR", valid_from=start)

    price("", "1", 10)
    price("", "2", 20)
    price("512x512", "3", 21)
    days = ["2026-11-09", "2026-11-10", "2026-11-19", "2026-11-20", "2026-11-21"]
    record([alice.event(day=day) for day in days])
    record([alice.event(day="2026-11-21", size="1024x1024")])
    costs = [row.cost for row in sorted(alice.rows(), key=lambda row: (row.day, row.size != "512x512"))]
    assert costs == [None, 2, 2, 4, 6, 4]
    alice.check_books()


def test_a_call_keeps_the_price_it_was_first_booked_at(alice: Customer) -> None:
    Price.objects.create(model=alice.model, per_image="0.1", currency="EUR", valid_from=TODAY - dt.timedelta(days=1))
    call = request_id()
    record([alice.event("unresolved", of=call)])
    Price.objects.create(model=alice.model, per_image=9, currency="USD", valid_from=TODAY)
    Price.objects.create(tenant=alice.tenant, model=alice.model, per_image=8, currency="USD", valid_from=TODAY)
    record([alice.event("exact", of=call, images=1)])
    assert [row.cost for row in alice.rows()] == [Decimal("0.2"), Decimal("-0.1")]
    assert {row.currency for row in alice.rows()} == {"EUR"}
    alice.check_books()


def test_a_cost_is_exact_to_the_last_place() -> None:
    rates = Rates(*[Decimal("0.00000001")] * 3)
    assert rates.amount(1, Tokens(1, None, None)) == Decimal("0.00000001000001")


# Several writers


def test_writers_of_the_same_calls_at_once_end_right(alice: Customer) -> None:
    calls = [request_id() for _ in range(60)]

    def job(kind: str) -> Callable[[], None]:
        events = [alice.event(kind, of=call) for call in calls]
        random.shuffle(events)

        def write() -> None:
            for at in range(0, 60, 20):
                record(events[at : at + 20])

        return write

    in_threads(*[job(kind) for kind in ("unresolved", "void", "exact", "exact")])
    assert alice.total("requests") == 60
    assert alice.total("charged_tokens") == sum(row.charged_tokens for row in alice.rows()) == 60 * 4182
    assert (alice.total("unresolved_requests"), alice.total("voided_requests")) == (0, 0)
    alice.check_books()


def test_a_writer_waits_for_another_correction_of_the_same_call(alice: Customer) -> None:
    """While another writer voids the call, ours must not amend what it read before."""
    call = request_id()
    record([alice.event("unresolved", of=call)])
    exact = alice.event("exact", of=call)
    void = {"kind": "correction", "number": 1, "outcome": "void", "images": -2, "charged_tokens": -4850}

    def write() -> None:
        record([exact])
        connection.close()

    with other_connection() as other:
        other.execute("SELECT 1 FROM usage_record WHERE request_id = %s FOR UPDATE", [call])
        writer = threading.Thread(target=write)
        writer.start()
        wait_until_blocked_by(other.info.backend_pid)
        other.execute(
            "INSERT INTO usage_record SELECT (jsonb_populate_record(r, %s)).*"
            " FROM usage_record r WHERE request_id = %s",
            [Jsonb(void), call],
        )
        other.commit()
        writer.join(10)
    assert [(row.number, row.charged_tokens, row.images) for row in alice.rows()] == [
        (0, 4850, 2),
        (1, -4850, -2),
        (2, 4182, 2),
    ]


def wait_until_blocked_by(backend: int) -> None:
    end = time.monotonic() + 10
    with connection.cursor() as cursor:
        while time.monotonic() < end:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))", [backend])
            if cursor.fetchone() != (0,):
                return
            time.sleep(0.01)
    raise AssertionError("The second writer was not blocked.")


# What can't be booked


def test_a_bad_event_is_quarantined_and_the_others_are_booked(alice: Customer) -> None:
    events = [alice.event() for _ in range(25)]
    bad = alice.event(tenant=2**62)
    record([*events[:7], bad, *events[7:]])
    record([bad])
    assert len(alice.rows()) == 25
    (kept,) = QuarantinedEvent.objects.filter(raw__request_id=str(bad.request_id))
    assert kept.error == "IntegrityError"
    assert not UsageRecord.objects.filter(request_id=bad.request_id).exists()
    alice.check_books()


def test_a_lost_database_is_no_bad_event(alice: Customer) -> None:
    event = alice.event()
    with other_connection() as other, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        other.execute("SELECT pg_terminate_backend(%s)", cursor.fetchone())
    with pytest.raises(OperationalError):
        record([event])
    connection.close()
    assert alice.rows() == []
    assert not QuarantinedEvent.objects.filter(raw__request_id=str(event.request_id)).exists()
    record([event])
    assert len(alice.rows()) == 1


def test_a_lock_that_can_not_be_had_is_no_bad_event(alice: Customer) -> None:
    call = request_id()
    record([alice.event("unresolved", of=call)])
    exact = alice.event("exact", of=call)
    with other_connection() as other, connection.cursor() as cursor:
        other.execute("SELECT 1 FROM usage_record WHERE request_id = %s FOR UPDATE", [call])
        cursor.execute("SET lock_timeout = '50ms'")
        with pytest.raises(OperationalError):
            record([exact])
        cursor.execute("RESET lock_timeout")
    assert not QuarantinedEvent.objects.filter(raw__request_id=str(call)).exists()
    record([exact])
    assert alice.total("requests") == 1


def test_a_sequence_number_used_twice_is_booked_and_noticed(alice: Customer) -> None:
    first = alice.event()
    alice.sequence -= 1
    second = alice.event()
    record([first])
    record([first])
    assert not QuarantinedEvent.objects.filter(raw__request_id=str(first.request_id)).exists()
    record([second])
    assert len(alice.rows()) == 2
    assert QuarantinedEvent.objects.get(raw__request_id=str(second.request_id)).error == "SequenceUsedTwice"


def test_an_event_without_a_sequence_has_no_receipt(alice: Customer) -> None:
    fields = alice.fields()
    del fields[b"sequence"], fields[b"generation"]
    record([parse(fields)])
    assert len(alice.rows()) == 1
    assert not EventReceipt.objects.filter(tenant=alice.tenant).exists()

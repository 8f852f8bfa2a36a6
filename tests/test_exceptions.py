"""What a person should look at before usage is invoiced."""

import datetime as dt
import io
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.bookkeeping import Customer, request_id
from usage import providerusage
from usage.alarms import AlarmKind
from usage.exceptions import Exceptional, ExceptionKind, exceptions, unresolved
from usage.exporting.formats import FORMATS, export
from usage.ledger import record
from usage.models import Alarm, Price, QuarantinedEvent
from usage.providerusage import BadUsageError, ProviderUsage, differences, read
from usage.reports import Query

START, END = dt.date(2026, 10, 1), dt.date(2026, 11, 1)
NOON = dt.datetime(2026, 10, 10, 12, tzinfo=dt.UTC)


@pytest.fixture
def alice() -> Customer:
    customer = Customer()
    Price.objects.create(model=customer.model, per_image="0.25", currency="EUR", valid_from=dt.date(2026, 1, 1))
    return customer


def query(customer: Customer | None, start: dt.date = START, end: dt.date = END) -> Query:
    return Query(customer.tenant if customer else None, start, end, [])


def found(customer: Customer) -> list[Exceptional]:
    return list(exceptions(query(customer)))


@pytest.mark.parametrize(
    ("changes", "kind", "what"),
    [
        ({"provenance": "missing", "reported": None}, ExceptionKind.MISSING, "reported no tokens"),
        ({"provenance": "estimated", "reported": None}, ExceptionKind.ESTIMATED, "was no number"),
        ({"provenance": "estimated", "reported": 999}, ExceptionKind.ABSURD, "reported 999 tokens"),
    ],
)
def test_usage_that_was_estimated(alice: Customer, changes: dict[str, Any], kind: ExceptionKind, what: str) -> None:
    record([alice.event(day="2026-10-10", **changes), alice.event(day="2026-10-10")])
    (one,) = found(alice)
    assert (one.kind, one.tenant, one.model, one.tokens) == (kind, alice.tenant.slug, alice.model, 4182)
    assert (one.amount, one.currency) == (Decimal("0.5"), "EUR")
    assert what in one.what and one.link.endswith(f"/admin/usage/usagerecord/?q={one.reference}")


def test_unresolved_until_it_is_resolved(alice: Customer) -> None:
    call = request_id(NOON)
    record([alice.event("unresolved", of=call, day="2026-10-10")])
    (one,) = found(alice)
    assert (one.kind, one.at, one.reference) == (ExceptionKind.UNRESOLVED, NOON, str(call))
    assert (one.tokens, one.amount, one.currency) == (4850, Decimal("0.5"), "EUR")
    assert list(unresolved(query(alice))) == [one]
    record([alice.event(of=call, day="2026-10-10")])
    assert found(alice) == []


def test_an_unknown_price_and_missing_usage_are_two(alice: Customer) -> None:
    record([alice.event(day="2026-10-10", model="nobody-priced-this", provenance="missing", reported=None)])
    assert [(one.kind, one.amount) for one in found(alice)] == [
        (ExceptionKind.MISSING, None),
        (ExceptionKind.UNPRICED, None),
    ]


def test_what_is_in_order_void_or_of_other_days_is_none(alice: Customer) -> None:
    record([alice.event(day="2026-10-10"), alice.event("void", day="2026-10-10")])
    record([alice.event("unresolved", day=day) for day in ("2026-09-30", "2026-11-01")])
    assert found(alice) == []


def test_gaps_and_quarantine_of_the_tenant(alice: Customer) -> None:
    bob = Customer()
    for customer in (alice, bob):
        slug = customer.tenant.slug
        subject = f"{slug} 11111111-1111-1111-1111-111111111111 7-9"
        Alarm.objects.create(kind=AlarmKind.SEQUENCE_GAP, subject=subject, message=f"3 of {slug}", opened_at=NOON)
        Alarm.objects.create(kind=AlarmKind.SEQUENCE_GAP, subject=f"{subject}0", message="dealt with", closed_at=NOON)
        raw = {name.decode(): value.decode() for name, value in customer.fields(charged=77).items()}
        QuarantinedEvent.objects.create(raw=raw, digest=slug, error="DataError", at=NOON)
        QuarantinedEvent.objects.create(raw=raw, digest=f"{slug}-old", error="DataError", at=NOON, resolved_at=NOON)
    gap, aside = found(alice)
    assert (gap.kind, gap.tenant, gap.reference) == (ExceptionKind.GAP, alice.tenant.slug, "7-9")
    assert (aside.kind, aside.tenant, aside.tokens) == (ExceptionKind.QUARANTINED, alice.tenant.slug, 77)
    assert {one.tenant for one in exceptions(query(None))} >= {alice.tenant.slug, bob.tenant.slug}


def usage(customer: Customer, *figures: int | None, day: int = 10) -> ProviderUsage:
    return ProviderUsage(dt.date(2026, 10, day), customer.model, *figures)


@pytest.mark.parametrize(
    ("figures", "more"),
    [
        ((2, 4, 8364), None),
        ((None, None, 8364), None),
        ((3, 4, 8364), (1, 0, 0)),
        ((2, None, 8000), (0, None, -364)),
    ],
)
def test_a_providers_usage_is_compared_by_day_and_model(
    alice: Customer, figures: tuple[int | None, ...], more: tuple[int | None, ...] | None
) -> None:
    calls = [alice.event(of=request_id(NOON + dt.timedelta(hours=hour)), day="2026-10-11") for hour in (0, 11)]
    record([*calls, alice.event("unresolved", of=request_id(NOON))])
    rows = list(differences(query(alice), [usage(alice, *figures)]))
    assert [(row.requests, row.images, row.tokens) for row in rows] == ([more] if more else [])
    if more:
        assert rows[0].in_words().endswith("than the ledger (2 calls charged, 1 unresolved).")


def test_a_day_that_only_one_side_knows_is_a_difference(alice: Customer) -> None:
    record([alice.event(of=request_id(NOON))])
    theirs = [usage(alice, 1, None, 10, day=11), usage(alice, 1, None, 10, day=11), usage(alice, 5, None, 5, day=1)]
    rows = [one for one in exceptions(query(alice), theirs) if one.kind is ExceptionKind.PROVIDER]
    assert [(one.at.day, one.tokens) for one in rows] == [(1, 5), (10, -4182), (11, 20)]
    assert "1 fewer request, 4,182 fewer tokens than the ledger (1 call charged)" in rows[1].what
    assert list(differences(query(alice), [])) == [], "nothing to compare with"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffday,model,tokens\r\n2026-10-10,up-1,12\r\n\r\n",
        "Day;Model; Tokens \n2026-10-10;up-1;12\n",
        "day\tmodel\tcost\ttokens\r2026-10-10\tup-1\t0,48 €\t12\r",
    ],
)
def test_a_providers_file_as_spreadsheets_write_it(text: str) -> None:
    assert list(read(io.StringIO(text, newline=""))) == [ProviderUsage(dt.date(2026, 10, 10), "up-1", None, None, 12)]


def test_a_file_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providerusage, "MOST_LINES", 2)
    with pytest.raises(BadUsageError, match="more than 2 lines"):
        list(read(io.StringIO("day,model,tokens\n" + "2026-10-10,m,1\n" * 3)))


def test_a_providers_file_is_read() -> None:
    text = "day,model,note,tokens\n2026-10-10, up-1 ,x,12\n2026-10-11,up-2,,\n"
    assert list(read(io.StringIO(text), {"up-1": "ours"})) == [
        ProviderUsage(dt.date(2026, 10, 10), "ours", None, None, 12),
        ProviderUsage(dt.date(2026, 10, 11), "up-2", None, None, None),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The first line must name the columns"),
        ("day,model\n", "one or more of requests, images, tokens"),
        ("day,model,tokens\n10.10.2026,m,1\n", "Line 2"),
        ("day,model,tokens\n2026-10-10,m,1.5\n", "Line 2"),
        ("day,model,tokens\n2026-10-10,m,99999999999999999999\n", "Line 2"),
        ("day,model,tokens\n2026-10-10\n", "Line 2"),
        ("day,model,tokens\n\n2026-10-10,m,1\n2026-10-10,m,-1\n", "Line 4 .* from 0 on"),
        ("day,model,tokens\n2026-10-10,m,1_000\n", "Line 2"),
        ("day,model,tokens\n2026-10-10,,1\n", "Line 2"),
        ("day,model,tokens\n0001-01-01,m,1\n", "Line 2"),
        ("day,model,tokens\n9999-12-31,m,1\n", "Line 2"),
        ("day,model,tokens,Tokens\n2026-10-10,m,1,2\n", "names the column tokens twice"),
        ('day,model,tokens\n2026-10-10,"m,1\n' + "2026-10-10,m,1\n" * 10_000, "Line .* quotation mark left open"),
    ],
)
def test_a_file_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadUsageError, match=message):
        list(read(io.StringIO(text)))


@pytest.mark.parametrize("name", FORMATS)
def test_the_number_of_queries_is_that_of_one_row(alice: Customer, name: str) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            export(Query(alice.tenant, START, END, ["day", "model"]), name, io.BytesIO())
        return len(captured)

    record([alice.event("unresolved", day="2026-10-10"), alice.event(day="2026-10-10")])
    one = queries()
    kinds = ("unresolved", "exact")
    record([alice.event(kind, day=f"2026-10-{day}", model=f"m{day}") for day in range(11, 31) for kind in kinds])
    assert queries() == one > 0

"""Prices: which one a call is charged at, what that makes, and that nothing unknown is ever taken for 0."""

import datetime as dt
import io
from collections.abc import Callable
from decimal import Decimal
from itertools import permutations
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from gateway import catalog
from gateway.models import Model
from tests.bookkeeping import TODAY, Customer, request_id
from tests.conftest import Customer as Caller
from tests.conftest import Gateway
from tests.contract import ending
from tests.processes import wait_until
from tests.test_ledger import in_threads
from tokens.audit import AuditEntry
from tokens.errors import Refused
from usage import currencies, merging, pricebook, prices
from usage.exceptions import ExceptionKind, exceptions
from usage.ledger import record
from usage.models import DailyUsage, Price, UsageRecord
from usage.pricerow import USED
from usage.prices import PriceList, Rates, Tokens, Wanted
from usage.reports import Query, report

LONG_AGO = dt.date(2026, 1, 1)
FLAT = {"per_million_input": 5, "per_million_output": 5}
APART = {"per_image": "0.01", "per_million_input": 5, "per_million_output": 40}
ASKED = {"provider_per_image": 0, "provider_per_million_input": 4, "provider_per_million_output": 32}
PARTS: dict[str, Any] = {"input": 182, "output": 4000}  # of 4182


@pytest.fixture
def alice() -> Customer:
    return Customer()


def price(customer: Customer, **values: Any) -> Price:
    told = {"model": customer.model, "currency": "EUR", "valid_from": LONG_AGO, **values}
    return Price.objects.create(**told)


def booked(customer: Customer, kind: str = "exact", **changes: Any) -> UsageRecord:
    """The newest row of a call that was booked."""
    event = customer.event(kind, **changes)
    record([event])
    return customer.rows(event.request_id)[-1]


# Which price


def places(customer: Customer) -> list[dict[str, Any]]:
    """Every place where a price may stand for a call, the first goes before the others."""
    return [
        {"tenant": tenant, "size": size, "quality": quality}
        for tenant in (customer.tenant, None)
        for size in ("512x512", "")
        for quality in ("high", "")
    ]


def chosen(customer: Customer) -> list[Decimal]:
    """The price of an image as place after place is taken away, the best first."""
    found = []
    standing = {number: price(customer, per_image=number, **place) for number, place in enumerate(places(customer), 1)}
    wanted = Wanted(customer.tenant.pk, customer.model, "512x512", "high", TODAY)
    while standing:
        best = PriceList([customer.model], [customer.tenant.pk]).find(wanted)
        assert best
        found.append(best.sells.image)
        standing.pop(int(best.sells.image)).delete()
    return found


def test_tenant_then_size_then_quality_go_first(alice: Customer) -> None:
    assert chosen(alice) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_control_another_order_is_noticed(alice: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    right = prices.places
    monkeypatch.setattr(prices, "places", lambda wanted: sorted(right(wanted), key=lambda place: not place[3]))
    assert chosen(alice) != [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_newest_of_the_best_place_holds_and_another_tenants_never(alice: Customer) -> None:
    bob = Customer()
    price(alice, per_image=1)
    price(alice, per_image=2, valid_from=TODAY)
    price(alice, per_image=3, valid_from=TODAY + dt.timedelta(days=1))
    price(alice, per_image=9, tenant=bob.tenant, size="512x512")
    yesterday = str(TODAY - dt.timedelta(days=1))
    assert [booked(alice, day=day).price_per_image for day in (yesterday, str(TODAY))] == [1, 2]
    price(alice, per_image=7, tenant=alice.tenant, valid_from=TODAY)
    assert [booked(alice, day=day).price_per_image for day in (yesterday, str(TODAY))] == [1, 7]


def test_what_goes_before_what_agrees_with_how_calls_are_priced(alice: Customer) -> None:
    """`rivals` says of each two prices of one call which goes first."""
    standing = [price(alice, per_image=n, **place) for n, place in enumerate(places(alice), 1)]
    order = {one.pk: number for number, one in enumerate(standing)}
    for one, other in permutations(standing, 2):
        assert dict(pricebook.rivals(one))[other] == (order[other.pk] < order[one.pk])


# What it makes


def test_images_input_and_output_each_have_their_price(alice: Customer) -> None:
    sold = price(alice, **APART, **ASKED)
    row = booked(alice, **PARTS)
    assert row.cost == 2 * Decimal("0.01") + Decimal(182 * 5 + 4000 * 40).scaleb(-6)
    assert row.provider_cost == Decimal(182 * 4 + 4000 * 32).scaleb(-6)
    assert (row.price_id, row.currency, row.unpriced) == (sold.pk, "EUR", "")
    assert (row.price_per_image, row.price_per_million_input) == (Decimal("0.01"), Decimal(5))
    assert row.price_per_million_output == 40
    alice.check_books()
    (day,) = report(Query(alice.tenant, TODAY, TODAY + dt.timedelta(days=1), ["day"], margins=True))
    assert (day["cost"], day["provider_cost"]) == (row.cost, row.provider_cost)
    assert day["margin"] == row.cost - row.provider_cost


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"input": 182},
        {"output": 4000},
        {"input": 0, "output": 0},
        {**PARTS, "reported": None, "charged": 9999, "provenance": "missing"},
        {**PARTS, "reported": 10**9, "charged": 9999, "provenance": "estimated"},
    ],
)
def test_a_split_that_is_not_known_is_not_guessed(alice: Customer, changes: dict[str, Any]) -> None:
    price(alice, **APART, **ASKED)
    row = booked(alice, **changes)
    assert (row.cost, row.provider_cost, row.currency, row.unpriced) == (None, None, "", "split_unknown")
    usage = DailyUsage.objects.get(tenant=alice.tenant)
    assert (usage.currency, usage.cost, usage.unpriced_requests, usage.uncosted_requests) == ("", Decimal(0), 1, 1)
    query = Query(alice.tenant, TODAY, TODAY + dt.timedelta(days=1), ["day"], margins=True)
    (day,) = report(query)
    assert (day["cost"], day["provider_cost"], day["margin"]) == (None, None, None)
    told = [found for found in exceptions(query) if found.kind == ExceptionKind.UNPRICED]
    assert [(found.amount, "input and output tokens apart" in found.what) for found in told] == [(None, True)]
    alice.check_books()


def test_control_a_guessed_split_is_noticed(alice: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all tokens whose kind isn't known were output."""
    right = Rates.amount

    def guessing(self: Rates, images: int, tokens: Tokens) -> Decimal | None:
        charged, read, drawn = tokens
        known = read is not None and drawn is not None and read + drawn == charged
        return right(self, images, tokens if known else Tokens(charged, 0, charged))

    monkeypatch.setattr(Rates, "amount", guessing)
    price(alice, **APART)
    assert booked(alice).cost is not None


def test_one_price_for_all_tokens_needs_no_split(alice: Customer) -> None:
    price(alice, **FLAT)
    assert booked(alice).cost == Decimal(4182 * 5).scaleb(-6)
    assert booked(alice, input=9).provider_cost is None, "nobody said what the provider asks"


def test_images_alone_need_no_tokens(alice: Customer) -> None:
    price(alice, per_image="0.04")
    assert booked(alice, charged=9999, provenance="missing").cost == Decimal("0.08")


def test_an_unknown_price_is_never_0(alice: Customer) -> None:
    row = booked(alice)
    assert (row.cost, row.provider_cost, row.currency, row.unpriced, row.price_id) == (None, None, "", "no_price", None)
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO usage_record SELECT (jsonb_populate_record(r, %s)).* FROM usage_record r"
            " WHERE request_id = %s",
            ['{"cost": 0, "kind": "correction", "number": 9}', row.request_id],
        )


def test_a_void_call_costs_nothing_and_that_is_known(alice: Customer) -> None:
    row = booked(alice, "void")
    assert (row.cost, row.provider_cost, row.unpriced) == (0, 0, "")


def test_a_margin_is_unknown_where_a_cost_is(alice: Customer) -> None:
    price(alice, per_image=1, **ASKED)
    record([alice.event(**PARTS)])
    price(alice, per_image=1, size="1024x1024")
    record([alice.event(size="1024x1024")])
    (day,) = report(Query(alice.tenant, TODAY, TODAY + dt.timedelta(days=1), ["day"], margins=True))
    assert (day["cost"], day["uncosted_requests"], day["unpriced_requests"], day["margin"]) == (4, 1, 0, None)
    assert "provider_cost" not in next(report(Query(alice.tenant, TODAY, TODAY + dt.timedelta(days=1), ["day"])))


def test_quality_is_of_the_call(alice: Customer) -> None:
    price(alice, per_image=1)
    price(alice, per_image=3, quality="high")
    assert [booked(alice, quality=one).cost for one in ("", "low", "high")] == [2, 2, 6]
    fields = alice.fields()
    fields[b"call"] = fields[b"call"].replace(b'"quality": "", ', b"")
    assert b"quality" not in fields[b"call"]
    assert merging.state_of(alice.event(), None).figures.cost is None


def test_a_models_quality_reaches_the_provider_the_books_and_the_price(gateway: Gateway, customer: Caller) -> None:
    sandbox = Model.objects.get(name="sandbox")
    dear = {"model": "sandbox", "tenant": customer.tenant, "quality": "high", "currency": "EUR"}
    Price.objects.create(**dear, per_image=7, valid_from=LONG_AGO)

    def call() -> UsageRecord:
        return ending(gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256", "quality": "low"}))

    try:
        Model._base_manager.filter(pk=sandbox.pk).update(quality="high")
        catalog.publish()
        wait_until(lambda: call().quality == "high")  # each web process reads the catalog every second
        row = call()
    finally:
        Model._base_manager.filter(pk=sandbox.pk).update(quality="")
        catalog.publish()
        wait_until(lambda: call().quality == "")
    assert (row.quality, row.cost) == ("high", 7), "the client's own wish has no effect"


# What was charged stays


def test_a_correction_keeps_the_original_price(alice: Customer) -> None:
    first = price(alice, **APART, **ASKED)
    call = request_id()
    record([alice.event("unresolved", of=call)])
    assert alice.rows(call)[0].unpriced == "split_unknown"
    price(alice, per_image=99, valid_from=TODAY)
    price(alice, per_image=98, tenant=alice.tenant, provider_per_image=1, **dict.fromkeys(list(ASKED)[1:], 1))
    record([alice.event("exact", of=call, **PARTS)])
    rows = alice.rows(call)
    assert {row.price_id for row in rows} == {first.pk}
    assert rows[-1].cost == Decimal("0.02") + Decimal(182 * 5 + 4000 * 40).scaleb(-6)
    assert rows[-1].provider_cost == Decimal(182 * 4 + 4000 * 32).scaleb(-6)
    alice.check_books()


def test_control_a_correction_at_the_newest_price_is_noticed(alice: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Wanted(alice.tenant.pk, alice.model, "512x512", "", TODAY)
    monkeypatch.setattr(PriceList, "get", lambda self, number: self.find(wanted))
    with pytest.raises(AssertionError):
        test_a_correction_keeps_the_original_price(alice)


def test_corrections_difference_both_sides(alice: Customer) -> None:
    price(alice, **FLAT, provider_per_image=0, provider_per_million_input=4, provider_per_million_output=4)
    call = request_id()
    record([alice.event("unresolved", of=call)])
    record([alice.event("exact", of=call)])
    assert sum(row.cost for row in alice.rows(call)) == Decimal(4182 * 5).scaleb(-6)
    assert sum(row.provider_cost for row in alice.rows(call)) == Decimal(4182 * 4).scaleb(-6)
    assert (alice.total("cost"), alice.total("uncosted_requests")) == (Decimal(4182 * 5).scaleb(-6), 0)
    alice.check_books()


CHANGES: list[Callable[[Price], object]] = [
    lambda used: used.save(),
    lambda used: used.delete(),
    lambda used: Price.objects.filter(pk=used.pk).delete(),
    lambda used: Price._base_manager.filter(pk=used.pk).update(per_image=9),
    lambda used: connection.cursor().execute("DELETE FROM usage_price WHERE id = %s", [used.pk]),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_price_that_was_used_stays(alice: Customer, change: Callable[[Price], object]) -> None:
    used = price(alice, per_image=1)
    price(alice, per_image=3, valid_from=TODAY + dt.timedelta(days=1)).delete()
    booked(alice)
    used.per_image = Decimal(9)
    with pytest.raises((Refused, IntegrityError)), transaction.atomic():
        change(used)
    used.refresh_from_db()
    assert used.per_image == 1
    with pytest.raises(ValidationError, match="Calls were charged"):
        used.clean()


@pytest.mark.parametrize("change", CHANGES)
def test_control_one_that_was_not_used_can_be_changed(alice: Customer, change: Callable[[Price], object]) -> None:
    unused = price(alice, per_image=1)
    unused.per_image = Decimal(9)
    change(unused)
    assert [found.per_image for found in Price.objects.filter(pk=unused.pk)] in ([], [9])


def test_a_change_under_way_is_waited_for(alice: Customer) -> None:
    """A price that is changed just when its first call is booked: the row keeps what the price says in the end."""
    for _ in range(8):
        bob = Customer()
        told = price(bob, per_image=1)

        def change(told: Price = told) -> None:
            told.per_image = Decimal(2)
            try:
                told.save()
            except Refused as exc:
                assert str(exc) == USED

        events = [bob.event(), bob.event()]
        in_threads(change, lambda: record(events[:1]), lambda: record(events[1:]))  # noqa: B023
        told.refresh_from_db()
        assert {row.price_per_image for row in bob.rows()} == {told.per_image}


def test_a_price_is_marked_once(alice: Customer) -> None:
    price(alice, per_image=1)
    for expected in (1, 0):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            record([alice.event(), alice.event()])
        assert sum("SET used_at" in query["sql"] for query in queries) == expected


# What a price must be


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "at least one price"),
        ({"per_image": 1, "provider_per_image": 1}, "all three of the provider's"),
        ({"per_image": -1}, "greater than or equal to 0"),
        ({"per_image": 1, "size": "large"}, "Such as 1024x1024"),
        ({"per_image": 1, "quality": "High!"}, "Small letters"),
        ({"per_image": 1, "currency": "euro"}, "Three capital letters"),
    ],
)
def test_what_makes_no_sense_is_refused(alice: Customer, values: dict[str, Any], message: str) -> None:
    told = {"model": alice.model, "currency": "EUR", "valid_from": TODAY, **values}
    with pytest.raises(ValidationError, match=message):
        Price(**told).full_clean()


def test_two_prices_for_the_same_calls_and_day_are_refused(alice: Customer) -> None:
    price(alice, per_image=1)
    with pytest.raises(IntegrityError), transaction.atomic():
        price(alice, per_image=2)
    with pytest.raises(ValidationError, match="same calls from that day"):
        Price(model=alice.model, per_image=2, currency="EUR", valid_from=LONG_AGO).full_clean()


def test_the_trail_of_a_tenants_price_is_the_platforms(alice: Customer) -> None:
    own = price(alice, tenant=alice.tenant, per_image=1, **ASKED)
    entry = AuditEntry.objects.get(object_type="usage.price", object_id=str(own.pk))
    assert entry.tenant_id is None, "or the tenant's people would read what the provider asks"
    assert ["provider's price of a million input tokens", "", "4.00 EUR"] in entry.changes


# The price book as a file, and on the command line


def command(*words: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("usage", "price", *words, stdout=out, stderr=out, **options)
    return out.getvalue()


def test_a_file_comes_back_as_it_was(alice: Customer, tmp_path: Any) -> None:
    price(alice, **APART, **ASKED)
    price(alice, per_image="0.00000001", tenant=alice.tenant, size="512x512", quality="high", valid_from=TODAY)
    told = command("list", "--model", alice.model, "--format", "csv")
    before = list(Price.objects.filter(model=alice.model).order_by("pk").values())
    file = tmp_path / "prices.csv"
    file.write_text(told)
    assert "0 imported" in command("import", str(file))
    Price.objects.filter(model=alice.model).delete()
    assert "2 would be imported" in command("import", str(file), "--dry-run")
    assert not Price.objects.filter(model=alice.model).exists()
    assert "2 imported" in command("import", str(file))
    after = Price.objects.filter(model=alice.model).order_by("valid_from").values()
    names = ("tenant_id", *pricebook.COLUMNS[1:])
    assert [[row[name] for name in names] for row in after] == [[row[name] for name in names] for row in before]  # type: ignore[literal-required]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["model,currency,valid_from,per_image", "m,EUR,2026-11-01,1", "m,EUR,2026-11-01,2"], "Line 2 is for the same"),
        (["model,currency,valid_from,per_image", "m,EUR,yesterday,1"], "yesterday is no day"),
        (["model,currency,valid_from,per_image", "m,EUR,2026-11-01,cheap"], "cheap is no amount"),
        (["model,currency,valid_from,per_image", "m,EUR,2026-11-01,NaN"], "NaN"),
        (["model,currency,valid_from,per_image", "m,EUR,2026-11-01,1_0"], "1_0 is no amount"),
        (["model,currency,valid_from,per_image", "m,EUR,2026-11-01,１"], "１ is no amount"),
        (["model,currency,valid_from,per_image", "m,EUR,2026-11-01,-1"], "greater than or equal to 0"),
        (["model,currency,valid_from,per_image", "m,EUR,2026-11-01,1,2"], "more cells"),
        (["model,currency,valid_from", "m,EUR,2026-11-01"], "at least one price"),
        (["tenant,model,currency,valid_from,per_image", "nobody,m,EUR,2026-11-01,1"], "no tenant nobody"),
    ],
)
def test_a_line_that_is_wrong_says_why_and_nothing_is_imported(alice: Customer, lines: list[str], why: str) -> None:
    found = pricebook.read([line.replace("m,EUR", f"{alice.model},EUR") for line in lines])
    assert found[-1].verdict == "refused"
    assert why in found[-1].why
    with pytest.raises(Refused, match="Nothing was imported"):
        pricebook.carry_out(found)
    assert not Price.objects.filter(model=alice.model).exists()


def test_a_used_price_is_not_changed_by_a_file(alice: Customer) -> None:
    price(alice, per_image=1)
    booked(alice)
    header = "model,currency,valid_from,per_image"
    assert pricebook.read([header, f"{alice.model},EUR,{LONG_AGO},1"])[0].verdict == "there already"
    (line,) = pricebook.read([header, f"{alice.model},EUR,{LONG_AGO},2"])
    assert (line.verdict, line.why) == ("refused", USED)


@pytest.mark.parametrize(
    "header", ["", "model,currency", "model,currency,valid_from,colour", "model,model,currency,valid_from"]
)
def test_what_is_no_price_book_is_refused(header: str) -> None:
    with pytest.raises(Refused, match="first line"):
        pricebook.read([header])


@pytest.mark.parametrize("line", [f'm,EUR,2026-11-01,"{"1" * 200_000}"', "m,EUR,2026-11-01,1\rm,EUR"])
def test_what_is_no_csv_is_refused(line: str) -> None:
    with pytest.raises(Refused, match=r"Line [12] is no CSV: "):
        pricebook.read(["model,currency,valid_from,per_image\n", line])


def test_set_adds_a_price_and_says_what_it_is(alice: Customer) -> None:
    words = ["--currency", "EUR", "--from", "2026-11-01", "--per-image", "0.04", "--provider-per-image", "0.03"]
    with pytest.raises(CommandError, match="all three of the provider's prices"):
        command("set", alice.model, *words)
    whole = [*words, "--provider-per-million-input", "0", "--provider-per-million-output", "0"]
    line = command("set", alice.model, "--tenant", alice.tenant.slug, *whole).split("\t")
    assert line[:4] == [alice.model, alice.tenant.slug, "any", "any"]
    assert line[6:] == ["0.04/-/-", "0.03/0.00/0.00", "EUR\n"]
    assert booked(alice).cost == Decimal("0.08")
    with pytest.raises(CommandError, match="Calls were charged at this price"):
        command(
            "set",
            alice.model,
            "--tenant",
            alice.tenant.slug,
            "--currency",
            "EUR",
            "--from",
            "2026-11-01",
            "--per-image",
            "1",
        )
    assert command("list", "--model", alice.model).split("\t") == line


def test_what_a_call_would_cost_is_what_it_costs(alice: Customer) -> None:
    price(alice, **APART, **ASKED)
    wanted = Wanted(alice.tenant.pk, alice.model, "512x512", "", TODAY)
    found = pricebook.estimate(wanted, 2, Tokens(4182, 182, 4000))
    row = booked(alice, **PARTS)
    assert (found.cost, found.provider_cost) == (row.cost, row.provider_cost)
    assert found.margin == row.cost - row.provider_cost
    assert sum(Decimal(amount) for _, _, amount in found.lines) == row.cost
    assert pricebook.estimate(wanted, 2, Tokens(4182, None, None)).cost is None
    assert pricebook.estimate(wanted._replace(model="nobody-priced-this"), 1, Tokens(1, 0, 1)).price is None


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        ("93.0194345", "EUR", "93.02 EUR"),
        ("1234.505", "USD", "1,234.51 USD"),
        ("-0.005", "EUR", "−0.01 EUR"),
        ("-0.004", "EUR", "0.00 EUR"),
        ("2923.497", "JPY", "2,923 JPY"),
        ("0.0005", "KWD", "0.001 KWD"),
    ],
)
def test_what_is_to_be_paid_has_the_places_of_its_currency(amount: str, currency: str, shown: str) -> None:
    assert currencies.rounded(Decimal(amount), currency) == shown

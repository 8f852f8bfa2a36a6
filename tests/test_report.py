"""Reports and exports: the right sums, on the tenant's days, safe to open."""

import csv
import datetime as dt
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pypdf
import pytest
from django.core.management import CommandError, call_command

from tests.bookkeeping import Customer
from tokens.audit import AuditEntry, Verb
from tokens.models import Membership
from usage.exporting.formats import FORMATS, export
from usage.ledger import record
from usage.models import Price
from usage.months import look
from usage.reports import GROUPS, Query, report

START, END = dt.date(2026, 11, 1), dt.date(2026, 12, 1)


@pytest.fixture
def alice() -> Customer:
    return Customer()


def tokens(amount: int) -> dict[str, int]:
    """A price of a million tokens, whichever."""
    return {"per_million_input": amount, "per_million_output": amount}


def command(customer: Customer, *words: str) -> str:
    out = io.StringIO()
    november = ["--from", "2026-11-01", "--to", "2026-12-01"]
    call_command("usage", "report", "--tenant", customer.tenant.slug, *november, *words, stdout=out)
    return out.getvalue()


def rows(customer: Customer, *groups: str, start: dt.date = START, end: dt.date = END) -> list[dict[str, Any]]:
    return list(report(Query(customer.tenant, start, end, groups)))


def test_it_sums_by_day_and_leaves_out_the_last_one(alice: Customer) -> None:
    days = ["2026-10-31", "2026-11-01", "2026-11-01", "2026-11-30", "2026-12-01"]
    record([alice.event(day=day, charged=100 + place) for place, day in enumerate(days)])
    found = [(row["day"].isoformat(), row["requests"], row["images"], row["tokens"]) for row in rows(alice, "day")]
    assert found == [("2026-11-01", 2, 4, 203), ("2026-11-30", 1, 2, 103)]


def test_unresolved_and_void_calls_stand_apart(alice: Customer) -> None:
    record([alice.event(), alice.event("unresolved"), alice.event("void"), alice.event("void")])
    (row,) = rows(alice, "month")
    assert (row["requests"], row["images"], row["tokens"]) == (1, 2, 4182)
    assert (row["unresolved_requests"], row["unresolved_tokens"], row["voided_requests"]) == (1, 4850, 2)


@pytest.mark.parametrize("group", GROUPS)
def test_every_grouping_sums_to_the_same(alice: Customer, group: str) -> None:
    first = alice.token
    record([alice.event(day=f"2026-11-{day:02}", model=f"model-{day % 3}") for day in range(1, 21)])
    alice.token, alice.secret = alice.add_token("second")
    record([alice.event() for _ in range(5)])
    found = rows(alice, group)
    assert sum(row["requests"] for row in found) == 25
    assert sum(row["tokens"] for row in found) == 25 * 4182
    values = {row[group] for row in found}
    expected: dict[str, set[Any]] = {
        "tenant": {alice.tenant.slug},
        "user": {alice.user.email},
        "token": {first.pk, alice.token.pk},
        "model": {"model-0", "model-1", "model-2", alice.model},
        "day": {dt.date(2026, 11, day) for day in [*range(1, 21), 22]},
        "week": {dt.date(2026, 10, 26), *(dt.date(2026, 11, day) for day in (2, 9, 16))},
        "month": {"2026-11"},
    }
    assert values == expected[group]


def test_a_report_shows_no_other_tenant(alice: Customer) -> None:
    bob = Customer()
    record([alice.event(), bob.event()])
    assert [row["tenant"] for row in rows(alice, "tenant", "user")] == [alice.tenant.slug]
    everyone = {row["tenant"] for row in report(Query(None, START, END, ["tenant"]))}
    assert {alice.tenant.slug, bob.tenant.slug} <= everyone


def test_a_user_of_two_tenants_is_one_row_and_names_give_the_order(alice: Customer) -> None:
    bob = Customer()
    bob.member = Membership.objects.create(tenant=bob.tenant, user=alice.user)
    bob.token, bob.secret = bob.add_token("hers")
    record([alice.event(), bob.event(), bob.event()])
    found = {row["user"]: row["requests"] for row in report(Query(None, START, END, ["user"]))}
    assert found[alice.user.email] == 3
    slugs = [row["tenant"] for row in report(Query(None, START, END, ["tenant", "user"]))]
    assert slugs == sorted(slugs)


def test_what_had_no_price_joins_the_groups_currency_and_is_counted(alice: Customer) -> None:
    record([alice.event()])
    assert [(row["cost"], row["currency"], row["unpriced_requests"]) for row in rows(alice, "day")] == [(None, None, 1)]
    Price.objects.create(model=alice.model, per_image="0.02", currency="EUR", valid_from=START)
    record([alice.event()])
    found = [(row["cost"], row["currency"], row["requests"], row["unpriced_requests"]) for row in rows(alice, "day")]
    assert found == [(Decimal("0.04"), "EUR", 2, 1)]


def test_a_currency_of_calls_that_cost_nothing_makes_no_unknown_cost_0(alice: Customer) -> None:
    """Voided and unresolved calls of a model that has a price, and an exact one of another that has none."""
    Price.objects.create(model=alice.model, per_image="0.02", currency="EUR", valid_from=START)
    unpriced = alice.event(model=f"{alice.model}-new", day="2026-11-02")
    record([alice.event("void"), alice.event("unresolved"), alice.event("void", day="2026-11-02"), unpriced])
    total = json.loads(command(alice, "--format", "json", "--group-by", "month"))["total"]
    (whole,) = report(Query(alice.tenant, START, END, ()))
    by_day = [(row["cost"], row["currency"], row["unpriced_requests"]) for row in rows(alice, "day")]
    assert by_day == [(None, None, 1), (Decimal(0), "EUR", 0)]
    of_days = json.loads(command(alice, "--format", "json"))["total"]
    for row in (whole, total, of_days):
        assert (row["requests"], row["cost"], row["currency"], row["unpriced_requests"]) == (1, None, None, 1)
    (month,) = look([alice.tenant])
    assert (month.requests, month.unpriced, month.costs) == (1, 1, {})


def test_currencies_are_never_summed(alice: Customer) -> None:
    for model, currency in (("one", "EUR"), ("other", "USD")):
        Price.objects.create(model=f"{alice.model}-{model}", **tokens(10), currency=currency, valid_from=START)
        record([alice.event(model=f"{alice.model}-{model}", charged=1_000_000)])
    assert [(row["cost"], row["currency"]) for row in rows(alice, "day")] == [(10, "EUR"), (10, "USD")]
    total = json.loads(command(alice, "--format", "json"))["total"]
    assert (total["requests"], total["cost"], total["currency"]) == (2, None, None)


def test_the_command_writes_csv(alice: Customer) -> None:
    Price.objects.create(model=alice.model, **tokens(5), currency="EUR", valid_from=START)
    record([alice.event(), alice.event("unresolved")])
    header, *lines = csv.reader(io.StringIO(command(alice, "--group-by", "day,model", "--format", "csv")))
    assert ",".join(header) == (
        "day,model,requests,images,tokens,input_tokens,output_tokens,cost,currency,unresolved_requests,"
        "unresolved_tokens,voided_requests,unpriced_requests"
    )
    assert lines == [f"2026-11-22 {alice.model} 1 2 4182 0 0 0.02091 EUR 1 4850 0 0".split()]


def test_the_command_writes_json_with_a_total(alice: Customer) -> None:
    assert json.loads(command(alice, "--format", "json"))["rows"] == []
    Price.objects.create(model=alice.model, per_image="0.25", currency="EUR", valid_from=START)
    record([alice.event(day=f"2026-11-0{day}") for day in (1, 2, 2)])
    answer = json.loads(command(alice, "--format", "json", "--group-by", "day,token"))
    assert [(row["day"], row["token"], row["token_name"], row["cost"]) for row in answer["rows"]] == [
        ("2026-11-01", alice.token.pk, "first", "0.50"),
        ("2026-11-02", alice.token.pk, "first", "1.00"),
    ]
    assert (answer["total"]["requests"], answer["total"]["tokens"]) == (3, 3 * 4182)
    assert (answer["total"]["cost"], answer["total"]["currency"]) == ("1.50", "EUR")


def test_the_command_prints_a_table_with_a_total(alice: Customer) -> None:
    record([alice.event(day="2026-11-01"), alice.event(day="2026-11-02")])
    header, *lines = command(alice).splitlines()
    assert header.split()[:4] == ["day", "requests", "images", "tokens"]
    assert [line.split()[:4] for line in lines] == [
        ["2026-11-01", "1", "2", "4182"],
        ["2026-11-02", "1", "2", "4182"],
        ["total", "2", "4", "8364"],
    ]
    assert len({line.index("4182") + 4 for line in lines[:2]} | {lines[2].index("8364") + 4}) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_writes_every_format_to_a_file(alice: Customer, tmp_path: Path, name: str) -> None:
    record([alice.event(), alice.event("unresolved")])
    file, expected = tmp_path / f"usage{FORMATS[name].suffix}", io.BytesIO()
    assert command(alice, "--format", name, "--output", str(file)) == ""
    export(Query(alice.tenant, START, END, ["day"]), name, expected)
    assert file.read_bytes() == expected.getvalue() != b""
    if FORMATS[name].is_text:
        assert command(alice, "--format", name) == expected.getvalue().decode()
    else:
        with pytest.raises(CommandError, match="is no text for a terminal: give --output FILE"):
            command(alice, "--format", name)


def test_an_export_by_the_command_is_told_in_the_trail(alice: Customer, tmp_path: Path) -> None:
    def told() -> list[list[Any]]:
        entries = AuditEntry.objects.filter(tenant_id=alice.tenant.pk, verb=Verb.EXPORTED).order_by("pk")
        assert {(entry.object_name, entry.way) for entry in entries} <= {("usage report", "command")}
        return [entry.changes for entry in entries]

    record([alice.event()])
    command(alice)
    assert told() == [], "a table to read is none, as in the admin"
    command(alice, "--format", "csv", "--group-by", "day,model")
    command(alice, "--format", "xlsx", "--margins", "--output", str(tmp_path / "usage.xlsx"))
    asked = f"period=days&from=2026-11-01&to=2026-11-30&tenant={alice.tenant.slug}"
    days = ["days", "", "2026-11-01 to 2026-12-01, not included"]
    assert told() == [
        [["format", "", "CSV"], days, ["report", "", f"{asked}&by=day&by=model"]],
        [["format", "", "Excel"], days, ["report", "", f"{asked}&by=day&margins=1"]],
    ]


def test_a_name_in_a_statement_is_no_markup(alice: Customer) -> None:
    alice.tenant.name = '#panic("x") *b* _i_ $x^2$ [c] <l> @r // n \\u{41} = H'
    alice.tenant.save()
    record([alice.event(model="#read-1")])
    out = io.BytesIO()
    export(Query(alice.tenant, START, END, ["day"]), "pdf", out)
    text = " ".join(pypdf.PdfReader(out).pages[0].extract_text().split())
    assert text.count(alice.tenant.name) == 2, "in the head and at the foot"
    assert "#read-1" in text


def test_a_statement_is_one_tenants() -> None:
    words = ["--from", "2026-11-01", "--to", "2026-12-01", "--format", "pdf", "--output", "/nowhere"]
    with pytest.raises(CommandError, match="A PDF statement is one tenant's: give --tenant SLUG"):
        call_command("usage", "report", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "usage.txt"], "--output goes with --format"),
        (["--tenant", "nobody-here"], "There is no tenant 'nobody-here'."),
        (["--group-by", "colour"], "colour is not one of tenant, user, token, model, day, week, month"),
        (["--group-by", "day,day"], "names a group twice"),
        (["--from", "yesterday"], "yesterday is not a day such as 2026-11-01"),
        (["--to", "2026-11-01"], "--to must be a later day than --from"),
    ],
)
def test_the_command_says_what_is_wrong(alice: Customer, words: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        command(alice, *words)

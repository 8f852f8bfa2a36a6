"""The pages Reports and Exceptions: whose usage each person sees, and figures that are the ledger's."""

import contextlib
import csv
import datetime as dt
import io
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.bookkeeping import Customer, request_id
from tokens import issuing, roles
from tokens.models import AuditEntry, Role, Tenant, User
from usage import comparing
from usage.admin import exceptionpages, reportpages
from usage.admin.reporttable import Ranking, charts
from usage.comparing import compare, earlier_month, period_before
from usage.exporting.formats import FORMATS
from usage.exporting.snapshot import Snapshot
from usage.ledger import record
from usage.models import Price, UsageRecord
from usage.questions import Question, Wrong, read
from usage.reports import Query, report

pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous iterators:Warning")

DAYS = {"period": "days", "from": "2026-10-01", "to": "2026-10-31"}


@pytest.fixture
def alice() -> Customer:
    """Calls on three days of October and one of September; 0.25 EUR an image."""
    customer = Customer()
    Price.objects.create(model=customer.model, per_image="0.25", currency="EUR", valid_from=dt.date(2026, 1, 1))
    for day, calls in (("2026-09-30", 2), ("2026-10-01", 1), ("2026-10-02", 3), ("2026-10-10", 4)):
        record([customer.event(day=day, of=_at(day)) for _ in range(calls)])
    record([customer.event("unresolved", day="2026-10-10", of=_at("2026-10-10"))])
    return customer


def _at(day: str) -> uuid.UUID:
    return request_id(dt.datetime.fromisoformat(f"{day}T12:00:00+00:00"))


def browser(tenant: Tenant | None, role: Role | None = None, **fields: Any) -> Client:
    if tenant is None:
        user = User.objects.create_user(f"{uuid.uuid4().hex}@reports.test", **fields)
    else:
        member = issuing.add_member(tenant, f"{uuid.uuid4().hex}@reports.test")
        roles.set_role(member, role or Role.VIEWER)
        user = User.objects.get(pk=member.user_id)
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def finance() -> Client:
    return browser(None, is_finance=True)


def ask(client: Client, page: str = "reports", **asked: Any) -> Any:
    return client.get(f"/admin/{page}/?{urlencode({**DAYS, **asked}, doseq=True)}")


# What is asked


@pytest.mark.parametrize(
    ("asked", "today", "days"),
    [
        ("period=this-month", "2026-11-22", ("2026-11-01", "2026-11-23")),
        ("period=last-month", "2026-01-05", ("2025-12-01", "2026-01-01")),
        ("period=7d", "2026-11-22", ("2026-11-16", "2026-11-23")),
        ("period=quarter", "2026-11-22", ("2026-10-01", "2026-11-23")),
        ("period=last-quarter", "2026-02-01", ("2025-10-01", "2026-01-01")),
        ("period=last-year", "2026-02-01", ("2025-01-01", "2026-01-01")),
        ("from=2026-02-01&to=2026-02-28", "2026-11-22", ("2026-02-01", "2026-03-01")),
    ],
)
def test_periods(asked: str, today: str, days: tuple[str, str]) -> None:
    assert tuple(map(str, read(asked).days(dt.date.fromisoformat(today)))) == days


@pytest.mark.parametrize(
    "asked",
    ["period=x", "from=2026-1-1", "from=2026-02-01&to=2026-01-01", "by=colour", "token=²", "tenant=%00", "measure=x"],
)
def test_what_cant_be_asked(asked: str) -> None:
    with pytest.raises(Wrong):
        read(asked)


def test_an_address_is_the_whole_question() -> None:
    asked = (
        "period=days&from=2026-10-01&to=2026-10-31&tenant=a&user=b%40c&token=7&model=m&by=token&by=day&measure=images"
    )
    question = read(f"{asked}&largest=1&margins=1")
    assert read(question.address) == question
    assert question.by == ("token", "day")
    assert read("") == Question() == read(Question().address)


def test_the_period_before() -> None:
    def before(start: str, end: str) -> tuple[str, str]:
        query = period_before(Query(None, dt.date.fromisoformat(start), dt.date.fromisoformat(end), ()))
        return str(query.start), str(query.end)

    assert before("2026-11-01", "2026-11-23") == ("2026-10-01", "2026-10-23")
    assert before("2026-11-01", "2026-12-01") == ("2026-10-01", "2026-11-01")
    assert before("2026-10-01", "2027-01-01") == ("2026-07-01", "2026-10-01")
    assert before("2026-03-01", "2026-03-31") == ("2026-02-01", "2026-03-01")
    assert before("2026-11-03", "2026-11-05") == ("2026-11-01", "2026-11-03")
    assert earlier_month(dt.date(2026, 12, 31), 1) == dt.date(2026, 12, 1)


# The engine


def query(customer: Customer, *groups: str, **narrower: Any) -> Query:
    return Query(customer.tenant, dt.date(2026, 10, 1), dt.date(2026, 11, 1), groups, **narrower)


def test_weeks_begin_on_monday(alice: Customer) -> None:
    rows = {str(row["week"]): row["requests"] for row in report(query(alice, "week"))}
    assert rows == {"2026-09-28": 4, "2026-10-05": 4}


def test_rows_are_compared_with_the_day_week_or_month_before(alice: Customer) -> None:
    def changes(*groups: str) -> list[Any]:
        asked = query(alice, *groups)
        rows, totals = list(report(asked)), list(report(asked.ungrouped()))
        return [one.change and (one.change.by, one.change.percent) for one in compare(asked, rows, totals, "requests")]

    assert changes("day") == [(-1, Decimal("-50.0")), (2, Decimal("200.0")), (4, None)]
    assert changes("model", "day") == changes("day") == changes("day", "month")
    assert changes("week") == [(4, None), (-2, Decimal("-33.3"))], "with the whole week before"
    assert changes("month") == changes("tenant") == [(6, Decimal("300.0"))]


def test_a_week_of_two_months_is_compared_with_none(alice: Customer) -> None:
    """By both, such a week is two rows, and each has other days than those of the week before."""
    record([alice.event(day=day, of=_at(day)) for day in ("2026-10-13", "2026-10-14", "2026-10-27")])
    asked = query(alice, "week", "month")
    compared = compare(asked, list(report(asked)), list(report(asked.ungrouped())), "requests")
    found = {str(one.row["week"]): one.change and one.change.by for one in compared}
    assert found == {"2026-09-28": None, "2026-10-05": None, "2026-10-12": -2, "2026-10-26": None}


def test_a_change_from_an_unknown_amount_is_not_known(alice: Customer) -> None:
    bob = Customer()
    record([bob.event(day="2026-10-01", of=_at("2026-10-01"))])
    Price.objects.create(model=bob.model, per_image="0.25", currency="EUR", valid_from=dt.date(2026, 10, 2))
    record([bob.event(day=day, of=_at(day)) for day in ("2026-10-02", "2026-10-04")])
    asked = query(bob, "day")
    compared = compare(asked, list(report(asked)), list(report(asked.ungrouped())), "cost")
    assert [one.change for one in compared] == [None, None, (Decimal("0.50"), None)], "unknown, unknown, new"


def test_shares_sum_to_the_whole_of_their_currency(alice: Customer) -> None:
    asked = query(alice, "day")
    rows, totals = list(report(asked)), list(report(asked.ungrouped()))
    compared = compare(asked, rows, totals, "cost")
    assert [one.share for one in compared] == [Decimal("12.5"), Decimal("37.5"), Decimal("50.0")]


def test_exports_keep_to_the_question(alice: Customer) -> None:
    other, _ = alice.add_token("second")
    record([alice.event(day="2026-10-03", token=other.pk, model="elsewhere", of=_at("2026-10-03"))])
    for narrower in ({"token": other.pk}, {"model": "elsewhere"}):
        rows = list(report(query(alice, "day", **narrower)))
        assert [row["requests"] for row in rows] == [1]
        with Snapshot(query(alice, "day", **narrower)) as taken:
            assert len(list(taken.details())) == 2, "a header, and the call"
            assert {one.model for one in taken.exceptions()} <= {"elsewhere"}
    with Snapshot(query(alice, "day", user=alice.user.email.upper())) as taken:
        assert len(list(taken.details())) == 1 + 10
    with Snapshot(query(alice, "day", user="nobody@example.com")) as taken:
        assert len(list(taken.details())) == 1


# The page


def table(html: str) -> list[list[str]]:
    body = re.search(r'<table class="gw-table gw-report[^>]*>(.*?)</table>', html, re.S)
    assert body
    rows = re.findall(r"<tr>(.*?)</tr>", body[1], re.S)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]


def test_the_page_says_what_the_ledger_says(finance: Client, alice: Customer) -> None:
    html = ask(finance, tenant=alice.tenant.slug, by="day").text
    header, *rows, total = table(html)
    assert header[0] == "Day"
    assert header[-1] == "Change against the day before"
    assert rows[0][:6] == ["2026-10-01", "1", "2", "4,182", "0.50 EUR", "12.5 %"]
    assert rows[2][:2] == ["2026-10-10", "4 1 unresolved"]
    ledger = UsageRecord.objects.filter(tenant=alice.tenant, kind="exact", booked_day__month=10)
    tokens = sum(ledger.values_list("charged_tokens", flat=True))
    assert total[:6] == ["Total", "8 1 unresolved", "16", f"{tokens:,}", "4.00 EUR", "100.0 %"]
    assert total[6] == "+3.00 +300.0 %"


def test_the_largest_of_each_currency_stand_together(finance: Client, alice: Customer) -> None:
    """1,000 JPY are not more than 2 EUR; the currency of the most calls goes first, as it does among the charts."""
    Price.objects.create(model="sumi", per_image="500", currency="JPY", valid_from=dt.date(2026, 1, 1))
    record([alice.event(day="2026-10-03", model="sumi", of=_at("2026-10-03"))])
    html = ask(finance, tenant=alice.tenant.slug, by=["model", "day"], largest=1).text
    rows = table(html)[1:-2]
    assert [row[5] for row in rows] == ["2.00 EUR", "1.50 EUR", "0.50 EUR", "1,000.00 JPY"]
    html = ask(finance, tenant=alice.tenant.slug, by="day").text
    assert re.findall(r"Cost in ([A-Z]{3}) by day", html)[::2] == ["EUR", "JPY"]


def test_bars_of_the_largest_sum_to_the_total_below_0_too() -> None:
    row = {"currency": "EUR", "requests": 1}
    rows = [{**row, "model": "a", "cost": Decimal(5)}, {**row, "model": "b", "cost": Decimal(-2)}]
    query = Query(None, dt.date(2026, 10, 1), dt.date(2026, 11, 1), ("model",))
    (ranking,) = charts(query, rows, "cost", whole=True)
    assert isinstance(ranking, Ranking)
    assert (ranking.total, [share.text for share in ranking.shares]) == ("3.00", ["5.00", "−2.00"])
    assert [share.percent for share in ranking.shares] == ["100.00", "0"]


def test_a_slug_means_its_tenant_whatever_others_are_named(finance: Client, alice: Customer) -> None:
    for slug in ("a", "aa"):
        Tenant.objects.create(slug=f"{slug}-{alice.tenant.slug}", name=alice.tenant.slug.upper())
    asked = ask(finance, tenant=alice.tenant.slug)
    assert asked.context["question"].tenant == alice.tenant.slug and "There is no tenant" not in asked.text


def test_what_is_right_of_a_question_stays_in_its_form(finance: Client) -> None:
    asked: dict[str, Any] = {"to": "2026-09-01", "by": ["model", "user"], "measure": "images"}
    html = ask(finance, **asked).text
    assert "must follow the first" in html and "gw-report" not in html
    assert [f'value="{name}" selected' in html for name in ("model", "user", "images", "tokens")] == [True] * 3 + [
        False
    ]


def test_what_is_at_stake_says_of_how_much_nobody_knows_the_amount(finance: Client, alice: Customer) -> None:
    record([alice.event("unresolved", day="2026-10-10", model="new", of=_at("2026-10-10"))])
    html = " ".join(re.sub(r"<[^>]+>", " ", ask(finance, "exceptions", tenant=alice.tenant.slug).text).split())
    assert "Unresolved 2 9,700 0.50 EUR and unknown for 1" in html


def test_rows_lead_to_the_records_behind_them(finance: Client, alice: Customer) -> None:
    html = ask(finance, by=["day", "user", "token", "model"][:3], tenant=alice.tenant.slug).text
    links = [link.replace("&amp;", "&") for link in re.findall(r'href="([^"]+)" title="The calls', html)]
    assert len(links) == 3
    listed = finance.get(links[2])
    assert listed.status_code == 200
    assert listed.text.count(alice.user.email) >= 5


def test_unpriced_usage_is_unknown_and_never_0(finance: Client) -> None:
    bob = Customer()
    record([bob.event(day="2026-10-10", of=_at("2026-10-10"))])
    (_, row, total) = table(ask(finance, tenant=bob.tenant.slug, by="model", measure="cost").text)
    assert row[4] == total[4] == "unknown 1 without a price"
    assert row[5:] == total[5:] == ["–", "–"]


def test_provider_costs_are_for_finance_only(finance: Client, alice: Customer) -> None:
    asked: dict[str, Any] = {"tenant": alice.tenant.slug, "margins": 1}
    assert "Margin" in table(ask(finance, **asked).text)[0]
    assert "Margin" not in ask(browser(alice.tenant, Role.ADMINISTRATOR), **asked).text


def test_a_tenants_people_see_their_tenant_only(alice: Customer) -> None:
    bob = Customer()
    record([bob.event(day="2026-10-10", of=_at("2026-10-10"))])
    viewer = browser(alice.tenant)
    own = ask(viewer, by="tenant").text
    assert table(own)[1][:2] == [alice.tenant.slug, "8 1 unresolved"]
    for page in ("reports", "exceptions"):
        for asked in ({"tenant": bob.tenant.slug}, {"user": bob.user.email}, {"token": bob.token.pk}, {}):
            html = ask(viewer, page, **asked).text
            # What the address itself says, the page may say again.
            shown = re.sub(f"There is no tenant {bob.tenant.slug}|{bob.tenant.slug}(@|%40|%2540)books.test", "", html)
            assert bob.tenant.slug not in shown, (page, asked)
    html = ask(viewer, tenant=bob.tenant.slug).text
    assert "There is no tenant" in html
    assert "gw-report" not in html
    for name in FORMATS:
        sent = {"question": urlencode({**DAYS, "tenant": bob.tenant.slug}), "format": name}
        assert viewer.post("/admin/exports/", sent).status_code == 302, "back, with what is wrong"


def test_control_a_question_that_trusts_its_address_is_caught(alice: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Question, "_tenant", lambda self, user: Tenant.objects.filter(slug=self.tenant).first())
    bob = Customer()
    assert "gw-figures" in ask(browser(alice.tenant), tenant=bob.tenant.slug).text


def test_pages_follow_each_other(finance: Client, alice: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reportpages, "ROWS", 2)
    first = ask(finance, tenant=alice.tenant.slug).text
    assert [row[0] for row in table(first)[1:-1]] == ["2026-10-01", "2026-10-02"]
    link = re.search(r'href="([^"]+)">More rows', first)
    assert link
    address = link[1].replace("&amp;", "&")
    second = finance.get(f"/admin/reports/{address}").text
    assert [row[0] for row in table(second)[1:-1]] == ["2026-10-10"]
    assert table(second)[1][-1] == "+4 new" or table(second)[1][-1].startswith("+2.00")
    forged = finance.get(f"/admin/reports/{address[:-3]}xyz")
    assert forged.status_code == 200


def test_a_page_is_of_one_moment(finance: Client, alice: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is booked between its totals and its rows is in neither."""

    def while_others_book(asked: Query, *more: Any) -> Any:
        rows = list(report(asked, *more))
        with ThreadPoolExecutor(1) as other:
            other.submit(book).result()
        return (row for row in rows)

    def book() -> None:
        record([alice.event(day="2026-10-10", of=_at("2026-10-10"))])
        connection.close()  # this thread's own

    monkeypatch.setattr(reportpages, "report", while_others_book)
    (*rows, total) = table(ask(finance, tenant=alice.tenant.slug, measure="requests").text)[1:]
    assert [row[1] for row in rows] == ["1", "3", "4 1 unresolved"]
    assert total[1] == "8 1 unresolved"
    monkeypatch.setattr(reportpages, "snapshot", contextlib.nullcontext)
    (*rows, total) = table(ask(finance, tenant=alice.tenant.slug, measure="requests").text)[1:]
    shown = sum(int(row[1].split()[0]) for row in rows)
    assert shown > int(total[1].split()[0]), "the control: without one moment they differ"


def test_the_largest_first(finance: Client, alice: Customer) -> None:
    rows = table(ask(finance, tenant=alice.tenant.slug, largest=1, measure="requests").text)[1:-1]
    assert [row[0] for row in rows] == ["2026-10-10", "2026-10-02", "2026-10-01"]


def test_the_number_of_queries_doesnt_grow(finance: Client, alice: Customer) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert ask(finance, by=["token", "user", "tenant"], tenant=alice.tenant.slug).status_code == 200
        return len(captured)

    record([alice.event(day="2026-10-10", token=alice.add_token("another")[0].pk, of=_at("2026-10-10"))])
    few = queries()
    tokens = [alice.add_token(f"token {number}")[0] for number in range(20)]
    record([alice.event(day="2026-10-10", token=token.pk, of=_at("2026-10-10")) for token in tokens])
    assert queries() == few


@pytest.mark.parametrize("name", ["csv", "json", "xlsx", "parquet", "pdf", "focus"])
def test_small_exports_come_at_once(finance: Client, alice: Customer, name: str) -> None:
    asked = urlencode({**DAYS, "tenant": alice.tenant.slug, "by": "day"})
    answer = finance.post("/admin/exports/", {"question": asked, "format": name})
    assert answer.status_code == 200
    assert answer["Content-Type"] == FORMATS[name].content_type
    file_name = f"usage-{alice.tenant.slug}-2026-10-01-to-2026-10-31{FORMATS[name].suffix}"
    assert answer["Content-Disposition"] == f'attachment; filename="{file_name}"'
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert "no-store" in answer["Cache-Control"]
    if name == "csv":
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert sum(Decimal(row["cost"]) for row in rows) == Decimal("4")
    entry = AuditEntry.objects.latest("pk")
    assert (entry.verb, entry.tenant_id) == ("exported", alice.tenant.pk)


def test_a_statement_is_of_all_usage_of_one_tenant(finance: Client, alice: Customer) -> None:
    for asked in ({}, {"tenant": alice.tenant.slug, "token": alice.token.pk}):
        sent = {"question": urlencode({**DAYS, **asked}), "format": "pdf"}
        answer = finance.post("/admin/exports/", sent, follow=True)
        assert "PDF statement" in answer.text
        assert answer.redirect_chain


# Exceptions


def test_exceptions_by_kind_with_what_is_at_stake(finance: Client, alice: Customer) -> None:
    record([alice.event(day="2026-10-11", provenance="missing", reported=None, of=_at("2026-10-11"))])
    html = ask(finance, "exceptions", tenant=alice.tenant.slug).text
    summary = r'<b>([\w ]+)</b></td>\s*<td[^>]*data-label="How many">(\d+)</td>'
    assert re.findall(summary, html) == [("Unresolved", "1"), ("Usage missing", "1")]
    assert "0.50 EUR" in html
    assert "Resolve</a>" not in html, "finance may not"
    assert "/admin/usage/unresolvedcall/?q=" in ask(browser(None, is_superuser=True), "exceptions").text
    only = ask(finance, "exceptions", tenant=alice.tenant.slug, kind="usage missing").text
    assert re.findall(summary, only) == [("Usage missing", "1")]
    answer = ask(finance, "exceptions", tenant=alice.tenant.slug, format="csv")
    rows = list(csv.DictReader(io.StringIO(b"".join(answer).decode())))
    assert {row["kind"] for row in rows} == {"unresolved", "usage missing"}


def upload(client: Client, content: str, **more: str) -> Any:
    file = SimpleUploadedFile("usage.csv", content.encode())
    return client.post("/admin/exceptions/provider/", {"file": file, **more})


def test_a_providers_usage_is_compared(finance: Client, alice: Customer) -> None:
    content = f"day,model,requests,tokens\n2026-10-02,{alice.model},4,12546\n"
    html = upload(finance, content).text
    assert "The provider counts 1 more request than the ledger (3 calls charged)" in html
    again = re.search(r'name="again" value="([^"]*)"', html)
    assert again
    text = again[1].replace("&quot;", '"')
    answer = finance.post("/admin/exceptions/provider/", {"again": text, "csv": "1"})
    rows = list(csv.DictReader(io.StringIO(b"".join(answer).decode())))
    (mine,) = (row for row in rows if row["model"] == alice.model)
    assert (mine["day"], mine["requests"], mine["tokens"], mine["charged"]) == ("2026-10-02", "1", "0", "3")


def test_what_is_kept_of_a_providers_file_is_what_was_read(finance: Client) -> None:
    """It is read again for the download: an apostrophe before a name would make another model of it."""
    again = upload(finance, "day,model,tokens\n2001-01-01,=new,5\n").context["again"]
    assert [row[1] for row in csv.reader(io.StringIO(again))] == ["model", "=new"]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "day,model,tokens\nnever,x,1\n", "day,model,tokens\n"])
def test_a_file_that_is_no_usage_is_refused_in_words(finance: Client, content: str) -> None:
    html = upload(finance, content).text
    assert 'role="alert"' in html


def test_a_page_of_differences_has_an_end(finance: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exceptionpages, "SHOWN", 2)
    answer = upload(finance, "day,model,tokens\n" + "".join(f"2001-01-01,m{n},5\n" for n in range(5)))
    assert len(answer.context["differences"]) == 2
    assert "And 3 more: download all of them." in answer.text
    answer = upload(finance, "day,model,tokens\n2001-01-01,m,5\n2026-10-02,m,5\n")
    assert answer.status_code == 400 and "a year is compared at most" in answer.text


def test_only_finance_compares(alice: Customer) -> None:
    assert upload(browser(alice.tenant, Role.ADMINISTRATOR), "day,model,tokens\n").status_code == 403


def test_control_a_comparison_of_the_wrong_days_is_caught(alice: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "_back", lambda day, unit: day)
    with pytest.raises(AssertionError):
        test_rows_are_compared_with_the_day_week_or_month_before(alice)

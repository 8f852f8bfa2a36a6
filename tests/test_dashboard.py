"""The landing page: its figures are the ledger's, each person's are their own, and it stands when a server is away."""

import datetime as dt
import re
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
import redis
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now
from redis.backoff import NoBackoff
from redis.retry import Retry

from gateway.admin import dashboard, figures
from gateway.admin.spans import booked_in, span
from gateway.tallies import Tally
from gateway.telemetry import BUCKETS
from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tests.conftest import Customer, Gateway
from tests.processes import wait_until
from tokens import issuing, roles
from tokens.models import Role, Tenant, User
from usage.ledger import record
from usage.models import DailyUsage, Price, UsageRecord

BODY = {"prompt": "a lighthouse at dusk", "size": "512x512", "n": 1}


@pytest.fixture
def person() -> Callable[..., Client]:
    """Signs somebody in who has a role in some tenants."""

    def make(*tenants: Tenant, role: Role = Role.VIEWER) -> Client:
        email = f"{uuid.uuid4().hex}@dashboard.test"
        for tenant in tenants:
            roles.set_role(issuing.add_member(tenant, email), role)
        browser = Client()
        browser.force_login(User.objects.get(email=email))
        return browser

    return make


def fill(books: Books, days: int = 40, calls: int = 3) -> None:
    """Calls on each of the last days, of every kind; priced in EUR when they are several a day."""
    if calls > 1:
        Price.objects.create(model=books.model, per_image="0.04", currency="EUR", valid_from=dt.date(2020, 1, 1))
    events = []
    for back in range(days):
        at = now() - dt.timedelta(days=back)
        day = at.astimezone(books.tenant.zone(at)).date().isoformat()
        for number in range(calls):
            events.append(books.event(of=request_id(at), day=day, charged=1000 + 7 * back + number))
        events.append(books.event("unresolved", of=request_id(at), day=day))
        events.append(books.event("void", of=request_id(at), day=day))
    record(events)


def ledger(tenant: Tenant, first: dt.date, last: dt.date) -> tuple[int, int, int, Decimal]:
    """Calls, images, tokens and cost, row by row from the ledger."""
    rows = list(UsageRecord.objects.filter(tenant=tenant, booked_day__range=(first, last), outcome="exact"))
    cost = sum((row.cost for row in rows if row.cost is not None), Decimal(0))
    return len(rows), sum(row.images for row in rows), sum(row.charged_tokens for row in rows), cost


PERIODS = {"today": 0, "7d": 6, "30d": 29}


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Niue"])
def test_figures_are_the_ledgers_on_the_tenants_own_days(person: Callable[..., Client], zone: str) -> None:
    books = Books(zone)
    fill(books)
    browser = person(books.tenant)
    today = now().astimezone(books.tenant.zone(now())).date()
    firsts = {name: today - dt.timedelta(days=days) for name, days in PERIODS.items()} | {"month": today.replace(day=1)}
    for period, first in firsts.items():
        context = browser.get(f"/admin/?period={period}").context
        total = context["total"]
        expected = ledger(books.tenant, first, today)
        assert (total.requests, total.images, total.tokens, total.costs["EUR"]) == expected, period
        assert (context["span"].first, context["span"].last) == (first, today)
        if period != "today":
            chart = context["charts"][0]
            assert len(chart.bars) == (today - first).days + 1
            assert sum(int(values[0]) for _, _, values in chart.rows) == expected[0]
        token = context["tokens"][0]
        assert (token["token"], token["figures"].requests) == (books.token, expected[0])


def test_amounts_are_shown_with_their_digits_and_unknown_ones_as_unknown(person: Callable[..., Client]) -> None:
    books = Books()
    browser = person(books.tenant)

    def cost() -> tuple[str, str, str]:
        card = next(card for card in browser.get("/admin/").context["cards"] if card.name == "cost")
        return card.value, card.exact, card.note

    day = now().date().isoformat()
    Price.objects.create(model=books.model, per_image="0.00000123", currency="EUR", valid_from=dt.date(2020, 1, 1))
    record([books.event("void", day=day), books.event(model=f"{books.model}-new", day=day)])
    assert cost() == ("unknown", "", "1 without a price"), "though there is a currency, of the call that was void"
    record([books.event(day=day, images=3)])
    assert cost() == ("0.000004 EUR", "0.00000369 EUR", "1 without a price")
    assert 'title="0.00000369 EUR"' in browser.get("/admin/").text


def test_days_of_tenants_in_many_zones_are_each_ones_own(admin: Client) -> None:
    everyone = [Books(zone) for zone in ("Pacific/Kiritimati", "Pacific/Niue")]
    for books in everyone:
        fill(books, days=3)
    tenants = Tenant.objects.filter(pk__in=[books.tenant.pk for books in everyone])
    today = span("today", tenants)
    assert len(set(today.zones.values())) == 2, "no moment is the same day in both"
    booked = booked_in(DailyUsage.objects.filter(tenant__in=tenants), today)
    assert sorted(booked.values_list("tenant_id", "requests").order_by().distinct()) == sorted(
        (books.tenant.pk, 3) for books in everyone
    )
    plain = DailyUsage.objects.filter(tenant__in=tenants, booked_day__range=(today.first, today.last))
    assert plain.count() > booked.count(), "the control: a plain range would count a day too many"


def test_tenants_are_ranked_by_the_calls_of_all_their_tokens() -> None:
    one, many = Books(), Books()
    events = [one.event() for _ in range(4)]
    for number in range(3):
        many.token, many.secret = many.add_token(f"token {number}")
        events += [many.event(), many.event()]
    record(events)
    usage = DailyUsage.objects.filter(tenant__in=[one.tenant, many.tenant])
    first = figures.leaders(usage, "tenant_id", 2)
    assert [(leader.id, leader.figures.requests) for leader in first] == [(many.tenant.pk, 6), (one.tenant.pk, 4)]


def test_each_person_sees_their_own_tenants(
    gateway: Gateway, make_customer: Callable[..., Customer], person: Callable[..., Client], admin: Client
) -> None:
    ours, theirs = make_customer(), make_customer()
    for customer in (ours, theirs):
        customer.limit("images:1/day")
        for _ in range(3):
            gateway.post(customer.secret, BODY)
    viewer, boss = person(ours.tenant), person(ours.tenant, theirs.tenant)
    wait_until(lambda: viewer.get("/admin/").context["refused"])
    answer = viewer.get("/admin/")
    assert [(one.type, one.count) for one in answer.context["refused"]] == [("quota_exceeded", 2)]
    assert [row["token"].pk for row in answer.context["most_refused"]] == [ours.token.pk]
    assert [one["meter"].limit.tenant_id for one in answer.context["near"]] == [ours.tenant.pk]
    assert theirs.tenant.slug not in answer.text
    for browser in (viewer, boss):
        for query in (f"tenant={theirs.tenant.pk}", f"tenant={ours.tenant.pk}", "tenant=²", "tenant=" + "9" * 40):
            assert browser.get(f"/admin/?{query}").status_code == 200
    assert theirs.tenant.slug not in viewer.get(f"/admin/?tenant={theirs.tenant.pk}").text
    wait_until(lambda: [one.count for one in boss.get("/admin/").context["refused"]] == [4])
    assert [one.count for one in boss.get(f"/admin/?tenant={theirs.tenant.pk}").context["refused"]] == [2]
    only = admin.get(f"/admin/?tenant={ours.tenant.pk}").context
    assert [one.count for one in only["refused"]] == [2]
    assert [one.count for one in admin.get("/admin/").context["refused"] if one.type == "quota_exceeded"] >= [4]


def test_each_figure_leads_to_its_list(person: Callable[..., Client]) -> None:
    books = Books()
    fill(books)
    browser = person(books.tenant)
    html = browser.get("/admin/?period=7d").text
    cards = html.partition('class="gw-figures gw-cards"')[2].partition("</section>")[0]
    links = [link.replace("&amp;", "&") for link in re.findall(r'href="(/[^"]*)"', cards)]
    assert len(links) >= 4
    for link in links:
        assert browser.get(link).status_code == 200, link
    (first,) = {link for link in links if "dailyusage" in link}
    listed = browser.get(first).context["cl"].result_list
    assert sum(row.requests for row in listed) == browser.get("/admin/?period=7d").context["total"].requests


def queries(browser: Client, address: str) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        assert browser.get(address).status_code == 200
    return [query["sql"] for query in captured]


def test_its_queries_are_few_and_do_not_grow(admin: Client, person: Callable[..., Client]) -> None:
    periods = ("today", "30d")
    first = Books()
    fill(first, days=2, calls=1)
    viewer = person(first.tenant)
    few = {period: [len(queries(who, f"/admin/?period={period}")) for who in (admin, viewer)] for period in periods}
    for _ in range(20):
        books = Books()
        issuing.set_limits(books.tenant, ["images:1/day"])
        fill(books, days=2, calls=1)
    for _ in range(20):
        first.token, _secret = first.add_token("another")
        fill(first, days=1, calls=1)
    for period, (of_admin, of_viewer) in few.items():
        many = queries(admin, f"/admin/?period={period}")
        assert len(many) <= of_admin + 1  # the limits of who called; there may have been none
        assert len(many) < 45
        assert len(queries(viewer, f"/admin/?period={period}")) <= of_viewer + 1
        for sql in many:
            if "COUNT(" in sql and "usage_record" in sql:
                assert "LIMIT" in sql, sql
                assert "unresolved" in sql, sql


def test_without_the_store_the_books_are_shown(
    admin: Client, person: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    books = Books()
    fill(books, days=1)
    gone = redis.Redis(unix_socket_path="/nonexistent/valkey.sock", retry=Retry(NoBackoff(), 0))
    for module in ("gateway.admin.dashboard", "gateway.tallies", "tokens.admin.nearlimits"):
        monkeypatch.setattr(f"{module}.store", lambda _: gone)
    for browser in (admin, person(books.tenant)):
        for period in ("today", "30d"):
            answer = browser.get(f"/admin/?period={period}")
            assert answer.status_code == 200
            assert "The admission store did not answer" in answer.text
            assert answer.context["total"].requests >= 3


@pytest.fixture
def books_away() -> Iterator[None]:
    """PostgreSQL answers for sessions and users, and for nothing of the books."""

    def broken(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "usage_dailyusage" in sql:
            raise OperationalError("the connection was lost")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(broken):
        yield


def test_without_the_books_the_page_says_so(admin: Client, books_away: None) -> None:
    answer = admin.get("/admin/")
    assert answer.status_code == 200
    assert "The database did not answer" in answer.text


def test_how_far_the_books_are_behind_is_told(admin: Client, gateway: Gateway, customer: Customer) -> None:
    assert gateway.post(customer.secret, BODY).status_code == 200
    waiting, seconds = dashboard.lag()
    assert waiting >= 1
    assert 0 <= seconds < 3600
    assert "the books are behind" in admin.get("/admin/").text


def test_quantiles_are_within_their_bucket() -> None:
    tally = Tally()
    tally.add({b"served": b"100", BUCKETS[4].encode(): b"90", BUCKETS[8].encode(): b"10", b"later:x": b"1"})
    middle, late = tally.quantile(0.5), tally.quantile(0.95)
    assert middle is not None
    assert late is not None
    assert 1 < middle < 2
    assert 8 < late <= 12
    assert Tally().quantile(0.5) is None
    tally = Tally()
    tally.add({BUCKETS[-1].encode(): b"3"})
    assert tally.quantile(0.5) == 120

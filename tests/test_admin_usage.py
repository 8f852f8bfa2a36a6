"""The books in the admin, and the page that people land on."""

import csv
import datetime as dt
import io
import re
import uuid
from html import unescape
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from django.db import connection
from django.test import Client
from django.utils.timezone import now

from tests.adminpages import PASSWORD, page
from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tests.conftest import Gateway
from tests.processes import wait_until
from tokens.models import User
from usage.drain import drain
from usage.ledger import record
from usage.models import QuarantinedEvent

BODY = {"prompt": "a lighthouse at dusk", "size": "512x512", "n": 2}


@pytest.fixture
def books() -> Books:
    books = Books()
    books.token.name = "=HYPERLINK(1)"
    books.token.save()
    record([books.event(), books.event(), books.event("unresolved"), books.event("void")])
    return books


def streamed(url: str, path: str, operator: User) -> list[dict[str, str]]:
    """A CSV as a running server sends it to a browser that has signed in."""
    with httpx.Client(base_url=url, follow_redirects=True) as client:
        form = client.get("/admin/login/")
        fields = {"username": operator.email, "password": PASSWORD, "csrfmiddlewaretoken": form.cookies["csrftoken"]}
        client.post("/admin/login/", data=fields, headers={"Referer": f"{url}/admin/login/"})
        answer = client.get(path)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in answer.headers["content-disposition"]
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_usage_is_listed_and_downloaded(admin: Client, operator: User, gateway: Gateway, books: Books) -> None:
    query = f"?tenant__id__exact={books.tenant.pk}"
    html = admin.get(page("usage_dailyusage_changelist") + query).text
    assert "8,364" in html  # two exact calls; the unresolved one stands apart
    (row,) = streamed(gateway.url, page("usage_dailyusage_csv") + query, operator)
    assert row["token_name"] == "'=HYPERLINK(1)"  # no spreadsheet runs it
    figures = ("requests", "tokens", "unresolved_requests", "voided_requests")
    assert [row[name] for name in figures] == ["2", "8364", "1", "1"]
    calls = streamed(gateway.url, page("usage_usagerecord_csv") + query, operator)
    assert sorted(row["kind"] for row in calls) == ["exact", "exact", "unresolved", "void"]
    assert {row["tenant"] for row in calls} == {books.tenant.slug}


def test_a_filter_begins_at_the_lists_top_again(admin: Client, books: Books) -> None:
    """Kept from a later page, the place would hide the newer ones of other rows."""
    newest = books.rows()[-1].pk
    asked = f"tenant__id__exact={books.tenant.pk}&before={newest}"
    html = admin.get(f"{page('usage_usagerecord_changelist')}?{asked}").text
    assert str(newest) not in re.findall(r'name="_selected_action" value="(\d+)"', html)
    assert not re.findall(r'<input[^>]*name="before"', html)
    links = [unescape(link) for link in re.findall(r'href="([^"]*)"', html)]
    back = {link for link in links if "before" in link}
    assert back and all(f"_changelist_filters={quote(asked, safe='')}" in link for link in back), "to this page"


def test_all_filters_can_be_cleared(admin: Client, books: Books) -> None:
    ledger = page("usage_usagerecord_changelist")
    asked = f"member__id__in={books.token.member_id},1&kind__exact=void"
    (clear,) = {
        unescape(link) for link in re.findall(r'href="([^"]*)"[^>]*clearall', admin.get(f"{ledger}?{asked}").text)
    }
    answer = admin.get(ledger + clear)
    assert answer.status_code == 200 and len(answer.context["cl"].result_list) >= 4


def test_the_ledger_is_filtered_and_never_counted(admin: Client, books: Books) -> None:
    ledger = page("usage_usagerecord_changelist")
    tenant = f"tenant__id__exact={books.tenant.pk}"

    def kinds(query: str) -> list[str]:
        return sorted(row.kind for row in admin.get(f"{ledger}?{tenant}&{query}").context["cl"].result_list)

    assert kinds("kind__exact=unresolved") == ["unresolved"]
    assert len(kinds("")) == 4
    assert len(kinds("day_from=2026-11-22&day_to=2026-11-22")) == 4
    assert kinds("day_from=2026-11-23") == kinds("day_to=2026-11-21") == []
    assert kinds(f"q={books.rows()[0].request_id}") == [books.rows()[0].kind]
    assert kinds("q=nonsense") == []
    assert "Unresolved" in admin.get(f"{ledger}?{tenant}").text
    with connection.execute_wrapper(refuse_counting):
        admin.get(f"{ledger}?{tenant}")
    record_page = page("usage_usagerecord_change", books.rows()[0].pk)
    assert admin.get(record_page).status_code == 200
    assert admin.post(record_page, {"charged_tokens": 0}).status_code == 403


def refuse_counting(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    assert not ("COUNT(" in sql and "usage_record" in sql), sql
    return execute(sql, params, many, context)


def test_quarantined_events_are_to_look_at(admin: Client) -> None:
    event = QuarantinedEvent.objects.create(raw={"a": "<b>"}, digest=uuid.uuid4().hex, error="bad", message="m")
    change = page("usage_quarantinedevent_change", event.pk)
    assert "&lt;b&gt;" in admin.get(change).text
    assert admin.post(change, {"error": "x"}).status_code == 403
    assert admin.post(page("usage_quarantinedevent_delete", event.pk), {"post": "yes"}).status_code == 403


def test_today_is_summed_on_the_landing_page(admin: Client, gateway: Gateway, make_customer: Any) -> None:
    customer = make_customer(timezone="Pacific/Kiritimati")  # its day is already tomorrow's, or soon
    charged = sum(gateway.post(customer.secret, BODY).json()["usage"]["total_tokens"] for _ in range(2))

    def total() -> Any:
        return admin.get(f"/admin/?tenant={customer.tenant.pk}").context["total"]

    wait_until(lambda: drain() or total().requests == 2)
    assert (total().images, total().tokens, total().costs) == (4, charged, {})
    everybody = admin.get("/admin/")
    assert everybody.context["total"].tokens >= charged
    assert "events on their way to the books" in everybody.text


def test_unresolved_calls_of_two_months_are_counted_and_listed_alike(admin: Client, books: Books) -> None:
    def counted() -> int:
        return int(admin.get("/admin/").context["unresolved"])

    def listed() -> list[uuid.UUID]:
        link = admin.get("/admin/").text.partition(page("usage_unresolvedcall_changelist") + "?")[2]
        query = f"?{link.partition(chr(34))[0]}&tenant__id__exact={books.tenant.pk}"
        return [
            row.request_id
            for row in admin.get(page("usage_unresolvedcall_changelist") + query).context["cl"].result_list
        ]

    ours, before = len(listed()), counted()
    today = now().date()
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=70)
    calls = [books.event("unresolved", day=today.isoformat()) for _ in range(2)]
    old = books.event("unresolved", of=request_id(long_ago), day=long_ago.date().isoformat())
    record([*calls, old])
    assert counted() == before + 2
    assert len(listed()) == ours + 2
    assert old.request_id not in listed()
    record(
        [books.event("exact", of=calls[0].request_id, day=today.isoformat()), books.event("void", of=old.request_id)]
    )
    assert counted() == before + 1, "one that was resolved since is still counted"
    assert calls[0].request_id not in listed()
    assert calls[1].request_id in listed()


STRANGE_DAYS = ["1900-01-01", "0001-01-01", "1969-12-31", "9999-12-31", "2026-02-31", "x", "²", ""]


@pytest.mark.parametrize("day", STRANGE_DAYS)
def test_any_day_can_be_asked_for(admin: Client, books: Books, day: str) -> None:
    for name, field in (
        ("usage_usagerecord", "day"),
        ("usage_dailyusage", "booked_day"),
        ("usage_price", "valid_from"),
    ):
        for end in ("from", "to"):
            answer = admin.get(f"{page(f'{name}_changelist')}?{field}_{end}={day}")
            assert answer.status_code == 200, (name, end)
    ledger = f"{page('usage_usagerecord_changelist')}?tenant__id__exact={books.tenant.pk}"
    everything = admin.get(f"{ledger}&day_from=0001-01-01&day_to=9999-12-31").context["cl"].result_list
    assert len(everything) == 4
    assert not admin.get(f"{ledger}&day_to=1900-01-01").context["cl"].result_list
    assert not admin.get(f"{ledger}&day_from=9999-12-31").context["cl"].result_list


@pytest.mark.parametrize("name", ["usage_usagerecord", "usage_dailyusage"])
@pytest.mark.parametrize("value", ["abc", "²", "9" * 30, "9" * 5000, "%00", "-1"])
def test_filters_that_cant_be_read_are_no_errors(admin: Client, name: str, value: str) -> None:
    for parameter in ("tenant__id__exact", "model__exact", "kind__exact", "open", "p", "o", "q"):
        for view in ("changelist", "csv"):
            answer = admin.get(f"{page(f'{name}_{view}')}?{parameter}={value}")
            assert answer.status_code in {200, 302, 400}, (view, parameter)

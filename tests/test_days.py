"""Each person's day in a browser: administrators, a tenant's people, finance; on the whole stack, worker and all."""

import base64
import csv
import datetime as dt
import io
import subprocess
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import httpx
import openpyxl
import pypdf
import pytest
from django.db import connection
from django_otp.oath import TOTP
from playwright.sync_api import Page

from tests import browsing, processes, stack
from tests.adminpages import PASSWORD, page
from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tests.browsing import Chromium, Tab, static_files
from tests.conftest import PATH, point_at
from tests.ownbooks import own_books
from tests.processes import wait_until
from tokens import issuing, roles
from tokens.models import ProxyToken, Role, Tenant, User
from usage.ledger import record
from usage.models import Statement

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]  # a day is long on a slow machine
chromium = browsing.chromium

NOW = dt.datetime.now(dt.UTC)
THIS = NOW.date().replace(day=1)
LAST = (THIS - dt.timedelta(days=1)).replace(day=1)
NOON = dt.datetime(LAST.year, LAST.month, 3, 12, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, django_db_setup: None, django_db_blocker: Any) -> Iterator[str]:
    """A stack of its own: books and store, sandbox provider, worker and web server."""
    folder = tmp_path_factory.mktemp("days")
    with django_db_blocker.unblock(), own_books(), processes.sandbox(folder / "sandbox") as provider:
        point_at(provider)
        database = urlsplit(stack.SERVERS.database_url)._replace(path=f"/{connection.settings_dict['NAME']}").geturl()
        own: dict[str, Any] = {
            "DATABASE_URL": database,
            "DATA": str(folder),
            "SECOND_FACTOR_REQUIRED": "platform,finance",
        }
        with (
            static_files(folder / "static") as static,
            processes.web(folder, **own, **static) as (address, _),
            processes.worker(folder, **own, PUBLIC_URL=address),
        ):
            yield address


@pytest.fixture
def open_tab(url: str, chromium: Chromium) -> Iterator[Callable[[User], Tab]]:
    """Opens a tab in which somebody signs in as people do; in the end no page has complained of anything."""
    tabs: list[Tab] = []

    def sign_in(person: User) -> Tab:
        tab = Tab(chromium, url, accept_downloads=True, permissions=["clipboard-read", "clipboard-write"])
        tabs.append(tab)
        tab.sign_in(person.email)
        if person.is_superuser or person.is_finance:
            set_up_second_factor(tab)
        assert urlsplit(tab.page.url).path == "/admin/"
        return tab

    yield sign_in
    complaints = [complaint for tab in tabs for complaint in tab.complaints]
    for tab in tabs:
        tab.close()
    assert complaints == []


def set_up_second_factor(tab: Tab) -> None:
    """Take the key into an authenticator app, enter what that shows, keep the recovery codes."""
    assert "Your role needs a second factor" in tab.text()
    tab.do(lambda shown: shown.click("text=I can't scan it"))
    key = str(tab.do(lambda shown: shown.inner_text(".gw-key"))).replace(" ", "")
    app = TOTP(base64.b32decode(key + "=" * (-len(key) % 8)))
    app.time = time.time()
    tab.fill(code=f"{app.token():06d}")
    assert "only time these codes are shown" in tab.press("Confirm")
    tab.press("I have kept them")


@pytest.fixture
def administrator() -> User:
    return User.objects.create_superuser(f"{time.monotonic_ns()}@days.test", PASSWORD)


@pytest.fixture
def finance() -> User:
    return User.objects.create_user(f"{time.monotonic_ns()}@days.test", PASSWORD, is_finance=True)


def figure(tab: Tab, name: str) -> str:
    """A figure of the dashboard."""
    shown: Any = tab.do(lambda shown: shown.inner_text(f'.gw-cards a:has(span:text-matches("^{name}"))'))
    return str(shown.split("\n")[0])


def copied(tab: Tab) -> tuple[str, str]:
    """The secret that the page shows, by its button into the clipboard; and the call to try."""

    def copy(shown: Page) -> tuple[str, str]:
        shown.click('[data-copies="secret"]')
        shown.wait_for_selector("text=Copied")
        return shown.evaluate("navigator.clipboard.readText()"), shown.input_value("#call")

    secret, command = tab.do(copy)
    assert secret.startswith("gem_") and secret in command
    return secret, command


def call(tab: Tab, secret: str, agent: str = "app/1") -> httpx.Response:
    body = {"prompt": "a lighthouse at dusk", "size": "256x256", "n": 1}
    return httpx.post(tab.url + PATH, json=body, headers={"X-Proxy-Token": secret, "User-Agent": agent}, timeout=30)


def test_an_administrators_day(open_tab: Callable[[User], Tab], administrator: User) -> None:
    tenant = issuing.create_tenant("acme", "Acme", "Europe/Berlin")
    tab = open_tab(administrator)

    tab.press("Proxy tokens")
    tab.press("Add proxy token")
    tab.choose("tenant", "Acme")
    tab.fill(email="ci@acme.test", name="nightly batch")
    tab.press("Add another Limit", leads=False)
    tab.select(**{"limits-0-metric": "images", "limits-0-period": "day"})
    tab.fill(**{"limits-0-amount": "1"})
    assert "only time the secret of nightly batch is shown" in tab.press("Save")
    first, command = copied(tab)
    token = ProxyToken.objects.get(tenant=tenant)

    called = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    assert '"usage"' in called.stdout, "the call to try is one"
    home = f"/admin/?tenant={tenant.pk}"
    wait_until(lambda: tab.go(home) == 200 and figure(tab, "calls") == "1", what="the call to be in the books")
    assert (figure(tab, "images"), figure(tab, "refused")) == ("1", "0")
    tab.press("Proxy tokens")
    assert "curl/" in (shown := tab.press("nightly batch")), "by whom it was last used"
    assert "1\nrequests today" in shown and "1 of 1" in shown

    refusal = call(tab, first)
    assert (refusal.status_code, refusal.json()["error"]["type"]) == (429, "quota_exceeded")
    tab.press("Why refused?")
    tab.fill(request_id=refusal.headers["X-Request-Id"])

    def told() -> bool:
        return "for this token was reached" in tab.press("Look it up")

    wait_until(told, what="the decision to be told")
    tab.press("Raise the limit")
    assert urlsplit(tab.page.url).path == page("tokens_proxytoken_change", token.pk)
    tab.fill(**{"limits-0-amount": "9"})
    tab.press("Save")
    assert call(tab, first).status_code == 200

    tab.press("nightly batch")
    tab.press("Rotate")
    tab.press("Make a new secret")
    second, _ = copied(tab)
    assert [call(tab, *caller).status_code for caller in ((first, "old-app/1"), (second, "new-app/2"))] == [200, 200]
    cut_over = page("tokens_proxytoken_cut_over", token.pk)
    wait_until(lambda: "old-app/1" in tab.text(cut_over), what="the old secret's use to be booked")
    assert "1 client has called with the old secret in the last 24 hours" in tab.text()
    assert "its next call gets 403" in tab.press("End the grace…")
    tab.press("End the old secret")
    assert [call(tab, secret).status_code for secret in (first, second)] == [403, 200]

    tab.press("Revoke")
    tab.fill(reason="the batch has moved")
    assert "the batch has moved" in tab.press("Revoke for good")
    assert call(tab, second).status_code == 403

    trail = tab.press("Audit trail")
    for deed in ("Issued", "Changed limit images/day", "Made and showed secret", "Ended secret", "Revoked"):
        assert deed in trail, deed
    assert "amount 1 → 9" in trail and "the batch has moved" in trail
    assert first not in trail and second not in trail


def test_the_people_of_a_tenant_see_their_own(open_tab: Callable[[User], Tab]) -> None:
    ours, theirs = (issuing.create_tenant(slug, name) for slug, name in (("birch", "Birch"), ("larch", "Larch")))
    secrets = {
        tenant: issuing.issue_token(issuing.add_member(tenant, f"app@{tenant.slug}.test"), f"{tenant.slug} app")
        for tenant in (ours, theirs)
    }
    boss, viewer = (hired(ours, role) for role in (Role.ADMINISTRATOR, Role.VIEWER))
    tab = open_tab(boss)
    for _, secret in secrets.values():
        assert call(tab, secret).status_code == 200
    wait_until(lambda: tab.go("/admin/") == 200 and figure(tab, "calls") == "1", what="the call to be in the books")
    assert "birch app" in tab.text() and "larch" not in tab.text().lower()

    shown = tab.press("Proxy tokens")
    assert "birch app" in shown and "larch" not in shown
    tab.press("Add proxy token")
    tab.fill(email="ci@birch.test", name="nightly")
    tab.press("Save")
    assert call(tab, copied(tab)[0]).status_code == 200

    theirs_token = secrets[theirs][0]
    for person in (tab, open_tab(viewer)):
        person.go(page("tokens_proxytoken_change", theirs_token.pk))
        assert "larch app" not in person.text(), "an address typed by hand leads nowhere"
        assert "nightly" in person.press("Proxy tokens")
    assert not person.offers("Add proxy token")
    person.press("birch app")
    assert not [name for name in ("Rotate", "Revoke", "Save") if person.offers(name)], "a viewer looks"
    assert tab.press("birch app") and all(tab.offers(name) for name in ("Rotate", "Revoke", "Save"))


def hired(tenant: Tenant, role: Role) -> User:
    """Somebody with a role in a tenant, and a password."""
    member = issuing.add_member(tenant, f"{role}@{tenant.slug}.test")
    roles.set_role(member, role)
    person = User.objects.get(pk=member.user_id)
    person.set_password(PASSWORD)
    person.save()
    return person


def test_finances_month(open_tab: Callable[[User], Tab], administrator: User, finance: User) -> None:
    books, boss = Books(), open_tab(administrator)
    name = books.tenant.slug
    boss.press("Prices")
    boss.press("Add price")
    boss.fill(model=books.model, currency="EUR", valid_from=f"{LAST}", per_image="0.04")
    assert "0.04 EUR an image" in boss.press("Save")
    used(books, 3)
    used(books, 1, "unresolved")

    tab = open_tab(finance)
    tab.press("Reports")
    tab.select(period="last-month")
    tab.fill(tenant=name)
    tab.do(lambda shown: shown.locator("select[name=by]").first.select_option("token"))
    shown = tab.press("Show")
    assert "0.24 EUR" in shown and "first" in shown
    (row,) = csv.DictReader(io.StringIO(tab.download("CSV").decode("utf-8-sig")))
    assert (row["token_name"], row["requests"], row["images"]) == ("first", "3", "6")
    assert (Decimal(row["cost"]), row["unresolved_requests"]) == (Decimal("0.24"), "1")
    sheet = openpyxl.load_workbook(io.BytesIO(tab.download("Excel"))).worksheets[0]
    assert [value for cells in sheet.values for value in cells if value == 0.24] == [0.24, 0.24], "the row, the total"

    assert "1 unresolved call" in tab.press("Months")
    assert "Closing is for good" in tab.press(f"Close {LAST:%B %Y} of {name}")
    assert f"Closed {LAST:%B %Y} of {name}" in tab.press("Close the month for good")
    statement = Statement.objects.get(tenant=books.tenant)
    shown = tab.press(f"statement {statement}")
    assert "0.24 EUR" in shown and "1 decided: not charged" in shown
    kept = {format_name: tab.download(format_name) for format_name in ("CSV", "PDF statement", "Excel")}
    assert "0.24" in pypdf.PdfReader(io.BytesIO(kept["PDF statement"])).pages[0].extract_text()

    used(books, 1, "unresolved")  # came too late for its month
    boss.press("Unresolved calls")
    boss.do(lambda shown: shown.locator("#result_list tr", has_text=name).get_by_role("link").first.click())
    boss.do(lambda shown: shown.check("[name=outcome][value=estimate]"))
    boss.fill(reason="it is in the provider's account")
    boss.press("Resolve")

    tab.press("All statements")
    assert "of later months are about calls of this one" in tab.press(str(statement))
    assert {format_name: tab.download(format_name) for format_name in kept} == kept, "the same bytes"
    tab.press("Reports")
    tab.fill(tenant=name)
    assert "0.08 EUR" in tab.press("Show"), "it counts in the month that is open"
    draft = "".join(one.extract_text() for one in pypdf.PdfReader(io.BytesIO(tab.download("PDF statement"))).pages)
    assert f"adjusts statement {statement}" in " ".join(draft.split())

    trail = tab.press("Audit trail")
    for deed in (f"Closed statement {statement}", "Exported", "Resolved", "Created price"):
        assert deed in trail, deed


def used(books: Books, calls: int, kind: str = "exact") -> None:
    """Calls of the last month."""
    record([books.event(kind, of=request_id(NOON), day=f"{NOON:%Y-%m-%d}") for _ in range(calls)])

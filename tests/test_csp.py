"""The admin in Chromium under its Content-Security-Policy: every page works, and nothing inline runs."""

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin import site
from django.test import Client
from playwright.sync_api import Page, Route

from tests import browsing
from tests.adminpages import page
from tests.bookkeeping import Customer as Books
from tests.browsing import NARROW, WIDE, Tab
from tests.conftest import Customer
from tokens.models import User
from usage.ledger import record

gateway_url, chromium, tab, signed_in = browsing.gateway_url, browsing.chromium, browsing.tab, browsing.signed_in


def pages_of(customer: Customer) -> list[str]:
    """Every list and form of the admin, each form of a row where there is one."""
    found = ["/admin/", "/admin/password_change/", "/admin/second-factor/", "/admin/second-factor/set-up/"]
    for model in site._registry:
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        found += [page(f"{name}_changelist"), page(f"{name}_add")]
        row = {"tenant": customer.tenant, "membership": customer.member, "proxytoken": customer.token}.get(
            str(model._meta.model_name), model._default_manager.first()
        )
        if row is not None:
            found.append(page(f"{name}_change", row.pk))
    found += [
        page("tokens_proxytoken_history", customer.token.pk),  # that of the others is made likewise
        page("tokens_proxytoken_cut_over", customer.token.pk),
        "/admin/password/forgotten/",
        "/admin/refusals/",
        "/admin/months/",
        "/api/docs",
        "/admin/reports/",
        "/admin/reports/?period=year&by=tenant&margins=1",
        "/admin/exports/",
        "/admin/exceptions/",
    ]
    return [*found, page("tokens_proxytoken_revoke", customer.token.pk), "/nothing/"]


@pytest.mark.browser
def test_no_page_offends_the_policy(tab: Tab, operator: User, customer: Customer) -> None:
    customer.limit("images:100/day", "concurrent:3")
    books = Books()
    record([books.event(), books.event("unresolved")])
    visited = []
    tab.sign_in(operator.email)
    assert tab.page.url == f"{tab.url}/admin/"
    for path in pages_of(customer):
        status = tab.go(path)
        if status in {403, 404}:  # Chromium complains of any such document; what the page itself does still counts
            tab.complaints = [text for text in tab.complaints if "Failed to load resource" not in text]
        else:
            assert status == 200, path
            visited.append(path)
    assert tab.complaints == []
    assert len(visited) > 40


@pytest.mark.browser
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_what_the_theme_does_by_script_works(signed_in: Tab, customer: Customer, size: dict[str, int]) -> None:
    books = Books()
    record([books.event("unresolved")])

    def use(tab: Page) -> None:
        tab.set_viewport_size(size)  # type: ignore[arg-type]
        tab.goto(signed_in.url + page("usage_unresolvedcall_changelist"))
        tab.click("text=Filters")
        assert tab.is_visible("#changelist-filter")
        tab.keyboard.press("Escape")
        tab.locator("#changelist-filter").wait_for(state="hidden")
        tab.locator(".action-select").first.check()
        tab.locator("select[name=action]").wait_for(state="visible")
        tab.evaluate("document.activeElement.blur()")  # the shortcut is the page's, not a field's
        tab.keyboard.press("Control+k")
        # It is shown first and takes the keys a moment later: what is typed in between goes nowhere.
        tab.locator("#search-input-command:focus").wait_for(state="visible")
        tab.keyboard.type("tok")
        tab.locator("#command-results-list li").first.wait_for(state="visible")
        tab.keyboard.press("ArrowDown")
        with tab.expect_navigation():
            tab.keyboard.press("Enter")
        assert "/admin/tokens/" in tab.url

    signed_in.do(use)
    assert signed_in.complaints == []


@pytest.mark.browser
def test_theme_sidebar_rows_and_tabs_work(signed_in: Tab, customer: Customer) -> None:
    def use(tab: Page) -> None:
        tab.goto(f"{signed_in.url}/admin/")
        tab.click("[x-on\\:click='openUserLinks = !openUserLinks']")
        tab.locator("text=Second factor").first.wait_for(state="visible")
        tab.locator("[x-on\\:click*=switchTheme]:has-text('Dark')").first.click()
        assert "dark" in (tab.get_attribute("html", "class") or "")
        tab.reload()
        assert "dark" in (tab.get_attribute("html", "class") or ""), "the choice is remembered"
        toggle = tab.locator("[x-on\\:click='toggleSidebar()']").first
        toggle.click()
        tab.locator("#nav-sidebar").wait_for(state="hidden")
        tab.reload()
        assert not tab.locator("#nav-sidebar").is_visible(), "and so is the sidebar"
        tab.goto(signed_in.url + page("tokens_tenant_change", customer.tenant.pk))
        before = tab.locator("#limits-group .form-group:not(.empty-form)").count()
        tab.locator("#limits-group .add-row a, #limits-group .add-row").first.click()
        assert tab.locator("#limits-group .form-group:not(.empty-form)").count() == before + 1

    signed_in.do(use)
    assert signed_in.complaints == []


@pytest.mark.browser
def test_an_injected_script_does_not_run(signed_in: Tab) -> None:
    attack = (
        "<script>window.pwned = 1</script><img src=/nothing onerror='window.pwned = 2'>"
        '<b x-data="{}" x-init="constructor.constructor(\'window.pwned = 3\')()"></b>'
        "<script src='https://attacker.example/x.js'></script><style>body { opacity: 0 }</style>"
    )

    def inject(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace("</body>", f"{attack}</body>"))

    def visit(tab: Page) -> tuple[Any, Any, list[str]]:
        tab.route(re.compile(r"/admin/$"), inject)
        tab.goto(f"{signed_in.url}/admin/")
        tab.wait_for_timeout(300)
        opacity = tab.evaluate("getComputedStyle(document.body).opacity")
        return tab.evaluate("window.pwned ?? null"), opacity, tab.evaluate("window.violations")

    pwned, opacity, violations = signed_in.do(visit)
    assert (pwned, opacity) == (None, "1")
    assert {violation.split()[0] for violation in violations} >= {
        "script-src-elem",
        "script-src-attr",
        "style-src-elem",
    }


@pytest.mark.browser
def test_control_without_the_policy_the_same_script_runs(signed_in: Tab) -> None:
    def inject(route: Route) -> None:
        answer = route.fetch()
        headers = {name: value for name, value in answer.headers.items() if name != "content-security-policy"}
        body = answer.text().replace("</body>", "<script>window.pwned = 1</script></body>")
        route.fulfill(response=answer, headers=headers, body=body)

    def visit(tab: Page) -> Any:
        tab.route(re.compile(r"/admin/$"), inject)
        tab.goto(f"{signed_in.url}/admin/")
        return tab.evaluate("window.pwned ?? null")

    assert signed_in.do(visit) == 1


@pytest.mark.browser
def test_control_what_offends_is_noticed(signed_in: Tab) -> None:
    signed_in.go("/admin/")
    signed_in.do(
        lambda tab: tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<i style=\"color: red\"></i>')")
    )
    signed_in.do(lambda tab: tab.wait_for_timeout(100))
    assert any("style-src" in complaint for complaint in signed_in.complaints)


def test_the_policy_names_nothing_unsafe(admin: Client) -> None:
    policy = admin.get("/admin/").headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    for directive in ("script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert directive in policy.split("; ")


def test_no_template_of_ours_holds_script_or_style() -> None:
    root = Path(__file__).resolve().parent.parent / "config" / "templates"
    inline = re.compile(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=|hx-on|javascript:", re.IGNORECASE)
    found = [str(path.relative_to(root)) for path in root.rglob("*.html") if inline.search(path.read_text())]
    assert found == []
    for bad in ("<script>", '<i style="x">', '<a onclick="x">', "<style>"):
        assert inline.search(bad)

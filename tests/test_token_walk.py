"""Tokens in a browser: one that leaked, and many at once. What an administrator does in a day is in tests.test_days."""

import pytest
from playwright.sync_api import Page

from tests import browsing
from tests.adminpages import page
from tests.browsing import Tab
from tests.conftest import Customer
from tokens import issuing

gateway_url, chromium, tab, signed_in = browsing.gateway_url, browsing.chromium, browsing.tab, browsing.signed_in
pytestmark = pytest.mark.browser


def test_a_leaked_token_goes_into_no_address(signed_in: Tab, customer: Customer) -> None:
    tab, visited = signed_in, []
    tab.do(lambda shown: shown.on("request", lambda request: visited.append(request.url)))
    tab.go(page("tokens_proxytoken_changelist"))
    tab.do(lambda shown: shown.fill("[name=q]", customer.secret))

    def search(shown: Page) -> str:
        with shown.expect_navigation():
            shown.press("[name=q]", "Enter")
        return shown.inner_text("body")

    assert "STILL WORKS" in str(tab.do(search)).upper()
    tab.do(lambda shown: shown.fill("textarea", f"Authorization: Bearer {customer.secret}"))
    assert "STILL WORKS" in tab.press("Find it").upper()
    assert "Revoke" in tab.press("Revoke…")
    assert [url for url in visited if customer.secret[4:] in url] == []
    assert tab.complaints == []


def test_many_tokens_are_revoked_with_a_bar_that_goes_on_by_itself(signed_in: Tab, customer: Customer) -> None:
    tab = signed_in
    for number in range(120):
        issuing.issue_token(customer.member, f"token {number}")
    tab.go(page("tokens_proxytoken_revoke_all") + f"?tenant__id__exact={customer.tenant.pk}")
    tab.do(lambda shown: shown.fill("[name=reason]", "breached"))
    assert "Revoke 121 tokens?" in tab.press("Continue")
    tab.do(lambda shown: shown.fill("[name=typed]", "121"))

    def revoke(shown: Page) -> None:
        shown.get_by_role("button", name="Revoke for good").click()
        shown.wait_for_selector("text=121 tokens were revoked", timeout=40_000)

    tab.do(revoke)
    assert tab.complaints == []

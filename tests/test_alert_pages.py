"""Quota alerts and API keys in the admin."""

import re
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.adminpages import page
from tests.conftest import Customer
from tokens import apikeys, issuing, roles
from tokens.apikeyrow import ApiScope
from tokens.models import ApiKey, AuditEntry, Role, Tenant, User
from usage.alertrows import DeliveryStatus
from usage.models import Alert, AlertDelivery, AlertSetting, Webhook

# Downloads are streamed for ASGI; the test client is none.
pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous iterators:Warning")


@pytest.fixture
def hire() -> Callable[[Tenant, Role], Client]:
    """Makes people with a role in a tenant; their browser."""

    def make(tenant: Tenant, role: Role) -> Client:
        member = issuing.add_member(tenant, f"{secrets.token_hex(6)}@pages.test")
        roles.set_role(member, role)
        browser = Client()
        browser.force_login(User.objects.get(pk=member.user_id))
        return browser

    return make


def viewer_of(browser: Client) -> User:
    return User.objects.get(pk=browser.session["_auth_user_id"])


def shown_secret(text: str) -> str:
    found = re.search(r'id="secret"[^>]*value="([^"]+)"', text)
    assert found, "no secret is shown"
    return found[1].replace("&#x3D;", "=").replace("&#x2B;", "+")


def add_alert(tenant: Tenant, threshold: int = 80, **changes: Any) -> Alert:
    fields = {"scope": "tenant", "scope_id": tenant.pk, "scope_name": f"Tenant {tenant.name}", "metric": "images"}
    fields |= {"period": "month", "period_name": "month:2026-11", "used": 402, "amount": 500, **changes}
    alert = Alert.objects.create(tenant=tenant, threshold=threshold, **fields)
    mail = {"channel": "email", "target": "ops@example.com", "status": DeliveryStatus.FAILED, "attempts": 8}
    AlertDelivery.objects.create(tenant=tenant, alert=alert, error="It answered 500.", **mail)
    return alert


# API keys


def test_a_key_is_issued_shown_once_and_revoked(admin: Client, customer: Customer) -> None:
    form = {"name": " SAP export ", "tenant": customer.tenant.pk, "scopes": [ApiScope.USAGE_READ], "lifetime": "30d"}
    answer = admin.post(page("tokens_apikey_add"), form)
    secret = shown_secret(answer.text)
    assert "no-store" in answer.headers["Cache-Control"]
    assert f"Bearer {secret}" in answer.text
    key = apikeys.find(secret)
    assert key is not None
    assert (key.name, key.tenant, key.scopes) == ("SAP export", customer.tenant, ["usage:read"])
    assert key.giver == viewer_of(admin)
    assert key.expires_at is not None
    assert 29 <= (key.expires_at - key.created_at).days <= 30
    change = page("tokens_apikey_change", key.pk)
    for text in (admin.get(change).text, admin.get(page("tokens_apikey_changelist")).text):
        assert secret not in text
        assert secret[:11] in text
    revoke = page("tokens_apikey_revoke", key.pk)
    assert "This is final" in admin.get(revoke).text
    assert apikeys.find(secret) == key, "looking doesn't revoke"
    admin.post(revoke)
    assert apikeys.find(secret) is None
    assert revoke not in admin.get(change).text
    entries = AuditEntry.objects.filter(object_type="tokens.apikey", object_id=str(key.pk)).order_by("id")
    assert [entry.verb for entry in entries] == ["issued", "revoked"]
    assert secret not in str(list(entries.values()))


@pytest.mark.parametrize("form", [{"scopes": []}, {"name": " "}, {"scopes": ["everything"]}])
def test_a_key_needs_a_name_and_a_scope(admin: Client, customer: Customer, form: dict[str, Any]) -> None:
    before = ApiKey.objects.count()
    whole = {"name": "x", "tenant": customer.tenant.pk, "scopes": ["usage:read"], **form}
    assert admin.post(page("tokens_apikey_add"), whole).status_code == 200
    assert ApiKey.objects.count() == before


def test_an_administrator_gives_keys_of_their_tenant_only(hire: Any, customer: Customer, make_customer: Any) -> None:
    browser = hire(customer.tenant, Role.ADMINISTRATOR)
    other = make_customer().tenant
    for tenant in ("", other.pk):
        form = {"name": "x", "tenant": tenant, "scopes": ["usage:read"]}
        assert browser.post(page("tokens_apikey_add"), form).status_code == 200
    assert not ApiKey.objects.filter(name="x", created_by__contains="pages.test").exists()
    form = {"name": "mine", "tenant": customer.tenant.pk, "scopes": ["usage:read", "tokens:write"]}
    assert "gemf_" in browser.post(page("tokens_apikey_add"), form).text
    of_all, _ = apikeys.issue(f"all-{secrets.token_hex(4)}", [ApiScope.USAGE_READ], None)
    of_other, _ = apikeys.issue(f"other-{secrets.token_hex(4)}", [ApiScope.USAGE_READ], other)
    listed = browser.get(page("tokens_apikey_changelist")).text
    assert "mine" in listed
    for key in (of_all, of_other):
        assert key.name not in listed
        assert browser.post(page("tokens_apikey_revoke", key.pk)).status_code in {403, 404}
        key.refresh_from_db()
        assert key.revoked_at is None


# Who is told


def test_a_setting_keeps_shares_and_addresses(admin: Client, customer: Customer, mailoutbox: Any) -> None:
    form = {
        "tenant": customer.tenant.pk,
        "thresholds": ["50", "100"],
        "emails": "A@example.com, b@example.com,a@example.com",
    }
    assert admin.post(page("usage_alertsetting_add"), form).status_code == 302
    setting = AlertSetting.objects.get(tenant=customer.tenant)
    assert (setting.thresholds, setting.emails) == ([50, 100], ["a@example.com", "b@example.com"])
    refused: list[dict[str, Any]] = [{"emails": "nobody"}, {"thresholds": ["60"]}, {"thresholds": []}]
    for wrong in refused:
        assert admin.post(page("usage_alertsetting_change", setting.pk), {**form, **wrong}).status_code == 200
    setting.refresh_from_db()
    assert setting.thresholds == [50, 100]
    test = page("usage_alertsetting_test", setting.pk)
    assert "a@example.com, b@example.com" in admin.get(test).text
    assert admin.post(test).status_code == 302
    sent = AlertDelivery.objects.filter(tenant=customer.tenant)
    assert sorted(sent.values_list("target", flat=True)) == ["a@example.com", "b@example.com"]
    assert "A test" in admin.get(page("usage_alertdelivery_changelist")).text


def test_a_webhooks_secret_is_shown_once(admin: Client, customer: Customer) -> None:
    form = {"tenant": customer.tenant.pk, "url": "https://hooks.example.com/q?key=private", "active": "on"}
    first = shown_secret(admin.post(page("usage_webhook_add"), form).text)
    hook = Webhook.objects.get(tenant=customer.tenant)
    change = page("usage_webhook_change", hook.pk)
    assert first.startswith("whsec_")
    assert first not in admin.get(change).text
    listed = admin.get(page("usage_webhook_changelist")).text
    assert "https://hooks.example.com" in listed
    assert "private" not in listed
    again = page("usage_webhook_new_secret", hook.pk)
    assert "refuses messages until" in admin.get(again).text
    second = shown_secret(admin.post(again).text)
    assert second != first
    admin.post(page("usage_webhook_test", hook.pk))
    assert AlertDelivery.objects.get(tenant=customer.tenant).webhook == hook
    for url in ("http://hooks.example.com/", "https://127.0.0.1/", "https://169.254.169.254/latest"):
        assert admin.post(page("usage_webhook_add"), {**form, "url": url}).status_code == 200
    assert Webhook.objects.filter(tenant=customer.tenant).count() == 1


def test_deliveries_are_seen_and_tried_again(admin: Client, customer: Customer) -> None:
    alert = add_alert(customer.tenant)
    text = admin.get(page("usage_alert_change", alert.pk)).text
    assert "402 of 500" in text
    assert "given up after 8 attempts. It answered 500." in text
    delivery = alert.deliveries.get()
    again = page("usage_alertdelivery_again", delivery.pk)
    assert again in admin.get(page("usage_alertdelivery_change", delivery.pk)).text
    admin.post(again)
    delivery.refresh_from_db()
    assert (delivery.status, delivery.attempts) == ("waiting", 0)
    assert again not in admin.get(page("usage_alertdelivery_change", delivery.pk)).text


def test_a_tenants_people_see_their_own(hire: Any, customer: Customer, make_customer: Any) -> None:
    other = make_customer().tenant
    alerts = {tenant.pk: add_alert(tenant) for tenant in (customer.tenant, other)}
    foreign = alerts[other.pk].deliveries.get()
    hook = Webhook(tenant=other, url="https://hooks.example.com/")
    hook.new_secret()
    hook.save()
    for role in (Role.VIEWER, Role.ADMINISTRATOR):
        browser = hire(customer.tenant, role)
        for name in ("alert", "alertdelivery"):
            text = browser.get(page(f"usage_{name}_changelist")).text
            assert customer.tenant.name in text
            assert other.name not in text
        assert browser.get(page("usage_alert_change", alerts[other.pk].pk)).status_code == 302
        for act in (page("usage_alertdelivery_again", foreign.pk), page("usage_webhook_test", hook.pk)):
            assert browser.post(act).status_code in {302, 403, 404}
        assert AlertDelivery.objects.filter(tenant=other).count() == 1
        foreign.refresh_from_db()
        assert foreign.status == DeliveryStatus.FAILED
    viewer = hire(customer.tenant, Role.VIEWER)
    own = alerts[customer.tenant.pk].deliveries.get()
    assert viewer.post(page("usage_alertdelivery_again", own.pk)).status_code == 403, "viewers change nothing"
    assert viewer.get(page("usage_webhook_changelist")).status_code == 403
    roles.set_role(issuing.add_member(other, str(viewer_of(viewer))), Role.ADMINISTRATOR)
    assert viewer.get(page("usage_alertdelivery_change", own.pk)).status_code == 200
    assert viewer.post(page("usage_alertdelivery_again", own.pk)).status_code == 403, "nor whoever administers another"
    assert viewer.post(page("usage_alertdelivery_again", foreign.pk)).status_code == 302, "the control"
    foreign.refresh_from_db()
    assert foreign.status == DeliveryStatus.WAITING


def test_a_test_waits_for_the_one_before(admin: Client, customer: Customer) -> None:
    hook = Webhook(tenant=customer.tenant, url="https://hooks.example.com/")
    hook.new_secret()
    hook.save()
    answers = [admin.post(page("usage_webhook_test", hook.pk), follow=True).text for _ in range(2)]
    assert "still on its way" not in answers[0]
    assert "still on its way" in answers[1], "otherwise one tenant's tests would hold up everybody's alerts"
    assert AlertDelivery.objects.filter(webhook=hook).count() == 1


def test_an_empty_list_says_what_to_do_next(hire: Any, customer: Customer) -> None:
    listed = page("usage_alertsetting_changelist")
    boss, viewer = (hire(customer.tenant, role) for role in (Role.ADMINISTRATOR, Role.VIEWER))
    assert "Add the first one" in boss.get(listed).text
    assert "Add the first one" not in viewer.get(listed).text, "who may not add any"
    beyond = boss.get(f"{listed}?p=2").text
    assert "That was all." in beyond
    assert "Back to the first ones" in beyond
    unresolved = boss.get(page("usage_unresolvedcall_changelist")).text
    assert "No unresolved calls yet." in unresolved
    assert " results (" not in unresolved, "nobody has counted them"


def test_a_list_asks_no_more_for_more_rows(admin: Client, customer: Customer, make_customer: Any) -> None:
    names = ("usage_alert", "usage_alertdelivery", "usage_webhook", "tokens_apikey")

    def add(tenant: Tenant, number: int) -> None:
        add_alert(tenant, period_name=f"day:{number}")
        hook = Webhook(tenant=tenant, url=f"https://hooks.example.com/{number}")
        hook.new_secret()
        hook.save()
        apikeys.issue(f"key {number}", [ApiScope.USAGE_READ], tenant)

    def queries(name: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert admin.get(page(f"{name}_changelist")).status_code == 200
        assert not any("COUNT(" in query["sql"] for query in captured.captured_queries)
        return len(captured)

    add(customer.tenant, 0)
    admin.get(page("usage_alert_changelist"))
    few = {name: queries(name) for name in names}
    for number in range(1, 20):
        add(make_customer().tenant, number)
    for name in names:
        assert queries(name) <= few[name], name

"""Tenants and members in the admin: what others do meanwhile, time zones, and addresses that lead nowhere."""

import threading
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.adminpages import page, rows
from tests.conftest import Customer
from tests.test_directory import assert_equal
from tokens import issuing, stopping
from tokens.admin.limits import LimitFormSet
from tokens.models import Status, Tenant

FIELDS = {"name": "n", "timezone": "UTC", "model": "", "origins": "", "plan": "", "unresolved_policy": "nothing"}
FIELDS |= rows("limits") | rows("members") | rows("members-2")


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Let somebody else act on a connection of their own, between a form's read of the row and its save."""
    original = LimitFormSet.full_clean
    todo = [act]

    def run(act: Any) -> None:
        try:
            act()
        finally:
            connection.close()

    def full_clean(self: LimitFormSet) -> None:
        if todo:
            thread = threading.Thread(target=run, args=[todo.pop()])
            thread.start()
            thread.join()
        original(self)

    monkeypatch.setattr(LimitFormSet, "full_clean", full_clean)


def test_a_form_doesnt_undo_a_suspension(admin: Client, customer: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    meanwhile(monkeypatch, lambda: stopping.suspend_tenant(customer.tenant.slug, "test"))
    assert admin.post(page("tokens_tenant_change", customer.tenant.pk), FIELDS | {"name": "new"}).status_code == 302
    customer.tenant.refresh_from_db()
    assert (customer.tenant.name, customer.tenant.status) == ("new", Status.SUSPENDED)
    meanwhile(monkeypatch, lambda: stopping.suspend_member(customer.member))
    limits = rows("limits", {"metric": "images", "amount": 5, "period": "day", "burst": ""})
    assert admin.post(page("tokens_membership_change", customer.member.pk), limits).status_code == 302
    customer.member.refresh_from_db()
    assert (customer.member.status, customer.member.limits.count()) == (Status.SUSPENDED, 1)
    assert_equal(customer)


def turn_the_month(tenant: Tenant) -> None:
    """Let a tenant's next time zone have begun."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE tokens_tenant SET next_timezone_from = now() WHERE id = %s", [tenant.pk])


def chosen(html: str) -> list[str]:
    """The time zones that a page has selected."""
    return [
        part.partition('"')[0] for part in html.split('<option value="')[1:] if "selected" in part.partition(">")[0]
    ]


def test_the_time_zone_in_force_is_the_one_that_is_shown(admin: Client, customer: Customer) -> None:
    tenant = customer.tenant
    change = page("tokens_tenant_change", tenant.pk)
    admin.post(change, FIELDS | {"timezone": "Asia/Tokyo"})
    assert "UTC" in chosen(admin.get(change).text)
    admin.post(change, FIELDS | {"name": "another"})  # says nothing of the time zone
    tenant.refresh_from_db()
    assert (tenant.timezone, tenant.next_timezone, tenant.name) == ("UTC", "Asia/Tokyo", "another")
    turn_the_month(tenant)
    assert "Asia/Tokyo" in chosen(admin.get(change).text)
    assert "UTC" not in chosen(admin.get(change).text)
    assert "Asia/Tokyo" in admin.get(page("tokens_tenant_changelist") + f"?q={tenant.slug}").text
    admin.post(change, FIELDS | {"timezone": "Asia/Tokyo"})
    tenant.refresh_from_db()
    assert (tenant.zone(tenant.created_at).key, tenant.next_timezone) in {("Asia/Tokyo", ""), ("UTC", "Asia/Tokyo")}
    admin.post(change, FIELDS | {"timezone": "UTC"})
    tenant.refresh_from_db()
    assert (tenant.timezone, tenant.next_timezone) == ("Asia/Tokyo", "UTC")


def test_a_change_of_the_time_zone_can_be_cancelled(admin: Client, customer: Customer) -> None:
    tenant = customer.tenant
    change, keep = page("tokens_tenant_change", tenant.pk), page("tokens_tenant_keep_zone", tenant.pk)
    assert keep not in admin.get(change).text
    admin.post(change, FIELDS | {"timezone": "Asia/Tokyo"})
    assert keep in admin.get(change).text
    assert "The change to Asia/Tokyo" in admin.get(keep).text
    assert admin.post(keep).status_code == 302
    tenant.refresh_from_db()
    assert (tenant.timezone, tenant.next_timezone, tenant.next_timezone_from) == ("UTC", "", None)
    assert keep not in admin.get(change).text
    assert_equal(customer)


@pytest.mark.parametrize("text", ["²", "abc", "9" * 30, "9" * 5000, "-1", "%00"])
def test_addresses_that_lead_nowhere_are_no_errors(admin: Client, text: str) -> None:
    for query in (f"member={text}", f"tenant={text}"):
        assert admin.get(f"{page('tokens_proxytoken_add')}?{query}").status_code == 200, query
        assert admin.get(f"{page('tokens_membership_add')}?{query}").status_code == 200, query
    for name in ("tenant", "membership", "proxytoken"):
        assert admin.get(f"/admin/tokens/{name}/{text}/change/").status_code == 302, name
        for action in ("issue", "suspend", "activate", "keep-zone", "revoke", "rotate"):
            assert admin.get(f"/admin/tokens/{name}/{text}/{action}/").status_code in {302, 404}, (name, action)


def test_a_tenants_page_asks_no_more_for_more_members(admin: Client, customer: Customer) -> None:
    change = page("tokens_tenant_change", customer.tenant.pk)
    admin.get(change)

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert admin.get(change).status_code == 200
        return len(captured)

    few = queries()
    for number in range(8):
        issuing.add_member(customer.tenant, f"{number}.{customer.tenant.slug}@example.com")
    assert queries() == few

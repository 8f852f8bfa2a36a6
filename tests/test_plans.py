"""Plans: what a tenant has from its plan, what it overrides, and how a change of a plan reaches its tenants."""

import io
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from gateway.models import Model
from tests.adminpages import page, rows
from tests.conftest import Customer, Gateway
from tests.test_directory import assert_equal
from tokens import apikeys, issuing, plans
from tokens.audit import AuditEntry
from tokens.errors import Refused
from tokens.limits import parse
from tokens.models import OutboxEntry, Plan, PlanLimit, ProxyToken, Tenant
from tokens.tasks import publish

SMALL = {"prompt": "a lighthouse at dusk", "size": "256x256", "n": 1}
FIELDS = {"timezone": "UTC", "model": "", "origins": "*", "unresolved_policy": "nothing"}


def make_plan(*texts: str, tokens: tuple[str, ...] = ()) -> Plan:
    plan = Plan.objects.create(name=f"plan {uuid.uuid4().hex[:10]}")
    for scope, given in (("tenant", texts), ("token", tokens)):
        for text in map(parse, given):
            PlanLimit.objects.create(plan=plan, scope=scope, metric=text.metric, period=text.period,
                                     amount=text.amount, burst=text.burst)  # fmt: skip
    plan.refresh_from_db()
    return plan


def give(tenant: Tenant, plan: Plan | None) -> None:
    tenant.plan = plan
    tenant.save()
    plans.follow_if_behind(tenant.pk)


def limits(tenant: Tenant) -> list[str]:
    return sorted(str(limit) for limit in issuing.limits_of(tenant))


def change(plan: Plan, name: str, amount: int) -> None:
    row = next(row for row in plan.limits.all() if row.text().name == name)
    row.amount = amount
    row.save()


def test_a_tenant_has_its_plans_limits_and_its_own_override_them(customer: Customer) -> None:
    plan = make_plan("images:500/day", "requests:60/minute:burst=10", "concurrent:8")
    customer.limit("images:50/day")
    give(customer.tenant, plan)
    assert limits(customer.tenant) == ["concurrent:8", "images:50/day", "requests:60/minute:burst=10"]
    customer.limit("requests:60/minute:burst=10")  # the same, but its own from now on
    change(plan, "requests/minute", 5)
    change(plan, "concurrent", 9)
    assert plans.behind().filter(pk=customer.tenant.pk).exists()
    plans.follow(customer.tenant.pk)
    assert limits(customer.tenant) == ["concurrent:9", "images:50/day", "requests:60/minute:burst=10"]
    issuing.remove_limits(customer.tenant, ["images/day"])
    publish()  # the task brings back what was overridden
    assert "images:500/day" in limits(customer.tenant)
    with pytest.raises(Refused, match="comes with the tenant's plan"):
        issuing.remove_limits(customer.tenant, ["images/day"])
    give(Tenant.objects.get(pk=customer.tenant.pk), None)
    assert limits(customer.tenant) == ["requests:60/minute:burst=10"]
    assert not plans.behind().filter(pk=customer.tenant.pk).exists()
    assert_equal(customer)


def test_another_plan_of_the_same_version_is_followed_too(customer: Customer) -> None:
    first, second = make_plan("images:500/day"), make_plan("images:70/day")
    assert first.version == second.version
    give(customer.tenant, first)
    give(Tenant.objects.get(pk=customer.tenant.pk), second)
    assert limits(customer.tenant) == ["images:70/day"]
    old_copy = Tenant.objects.get(pk=customer.tenant.pk)
    give(Tenant.objects.get(pk=customer.tenant.pk), first)
    old_copy.name = "renamed"
    old_copy.save()
    assert (limits(customer.tenant), Tenant.objects.get(pk=customer.tenant.pk).plan) == (["images:500/day"], first)


def test_a_changed_plan_holds_from_the_next_call_on(gateway: Gateway, make_customer: Callable[..., Customer]) -> None:
    plan = make_plan("images:1/day")
    first, second = make_customer(), make_customer()
    for customer in (first, second):
        give(customer.tenant, plan)
        assert [gateway.post(customer.secret, SMALL).status_code for _ in range(2)] == [200, 429]
    change(plan, "images/day", 2)
    publish()
    for customer in (first, second):
        assert [gateway.post(customer.secret, SMALL).status_code for _ in range(2)] == [200, 429]
        assert_equal(customer)
        assert not OutboxEntry.objects.filter(tenant_id=customer.tenant.pk).exists()


def test_control_without_following_the_old_limit_stays(gateway: Gateway, customer: Customer) -> None:
    plan = make_plan("images:1/day")
    give(customer.tenant, plan)
    change(plan, "images/day", 2)
    assert [gateway.post(customer.secret, SMALL).status_code for _ in range(2)] == [200, 429]
    assert limits(customer.tenant) == ["images:1/day"]


def test_the_page_says_how_many_tenants_before_it_saves(admin: Client, make_customer: Callable[..., Customer]) -> None:
    plan = make_plan("images:500/day", tokens=("images:5/day",))
    customers = [make_customer() for _ in range(3)]
    for customer in customers:
        give(customer.tenant, plan)
    customers[0].limit("images:7/day")
    tenant_row, token_row = plan.limits.all()
    data = {"name": plan.name, "description": "", **rows(
        "limits",
        {"id": tenant_row.pk, "plan": plan.pk, "amount": 400, "burst": ""},
        {"id": token_row.pk, "plan": plan.pk, "amount": 5, "burst": ""},
        {"scope": "tenant", "metric": "concurrent", "amount": 4, "period": "day", "burst": ""},
        initial=2,
    )}  # fmt: skip
    address = page("tokens_plan_change", plan.pk)
    asked = admin.post(address, data)
    assert asked.status_code == 200
    for text in ("Change the limits of 3 tenants?", "images:500/day → images:400/day", "none → concurrent:4"):
        assert text in asked.text
    assert dict(asked.context["facts"])["Tenants that override some limit"] == "1"
    assert limits(customers[1].tenant) == ["images:500/day"], "nothing is saved yet"
    done = admin.post(address, dict(asked.context["kept"]), follow=True)
    assert "3 tenants have these limits now." in done.text
    assert [limits(one.tenant) for one in customers] == [["concurrent:4", "images:7/day"]] + [
        ["concurrent:4", "images:400/day"]
    ] * 2
    told = AuditEntry.objects.filter(tenant=customers[1].tenant, part="limit images/day").latest("pk")
    assert (told.changes, told.reason) == ([["amount", "500", "400"]], f"plan {plan.name}")
    renamed = admin.post(address, {**data, **rows("limits"), "description": "new"})
    assert renamed.status_code == 302, "without another limit there is nothing to ask"


def test_overrides_are_shown_and_a_plans_limit_isnt_deleted_on_a_tenants_page(
    admin: Client, customer: Customer
) -> None:
    plan = make_plan("images:500/day", "concurrent:8")
    address = page("tokens_tenant_change", customer.tenant.pk)
    fields = FIELDS | {"name": "n"} | rows("members") | rows("members-2")
    assert admin.post(address, fields | {"plan": plan.pk} | rows("limits")).status_code == 302
    images, concurrent = issuing.limits_of(customer.tenant).order_by("-metric")
    shown = admin.get(address).text
    assert shown.count(f"plan {plan.name}") >= 2
    deleted = {"id": images.pk, "tenant": customer.tenant.pk, "amount": 500, "burst": "", "DELETE": "on"}
    answer = admin.post(address, fields | {"plan": plan.pk} | rows("limits", deleted, initial=1))
    assert "comes with the tenant&#x27;s plan" in answer.text
    override = {"id": images.pk, "tenant": customer.tenant.pk, "amount": 9, "burst": ""}
    assert admin.post(address, fields | {"plan": plan.pk} | rows("limits", override, initial=1)).status_code == 302
    assert limits(customer.tenant) == ["concurrent:8", "images:9/day"]
    assert f"overrides images:500/day of plan {plan.name}" in admin.get(address).text
    assert admin.post(address, fields | {"plan": plan.pk} | rows("limits", {**override, "DELETE": "on"}, initial=1))
    assert limits(customer.tenant) == ["concurrent:8", "images:500/day"], "at once, not at the next task"
    assert concurrent.from_plan


def test_a_token_starts_with_what_the_plan_gives_unless_it_is_given_another(admin: Client, customer: Customer) -> None:
    give(customer.tenant, make_plan(tokens=("images:5/day", "requests:9/minute")))
    data = {"tenant": customer.tenant.pk, "email": "ci@example.com", "name": "ci", "expires": "", "networks": ""}
    own = {"metric": "images", "amount": 7, "period": "day", "burst": ""}
    for usual, expected in (("on", ["images:7/day", "requests:9/minute"]), ("", ["images:7/day"])):
        form: dict[str, Any] = data | rows("limits", own) | ({"usual_limits": usual} if usual else {})
        assert admin.post(page("tokens_proxytoken_add"), form).status_code == 200
        assert sorted(map(str, ProxyToken.objects.latest("pk").limits.all())) == expected


def test_however_a_token_is_issued_it_starts_with_what_the_plan_gives(customer: Customer) -> None:
    give(customer.tenant, make_plan(tokens=("images:5/day", "requests:9/minute")))
    whose = ["--tenant", customer.tenant.slug, "--user", "ci@example.com"]
    secret = apikeys.issue("tests", ["tokens:write"], customer.tenant)[1]
    body = {"user": "ci@example.com", "name": "api", "limits": ["images:7/day"]}

    def by_command(*words: str) -> list[str]:
        call_command("token", *words, *whose, stdout=io.StringIO(), stderr=io.StringIO())
        return sorted(map(str, ProxyToken.objects.latest("pk").limits.all()))

    def by_api(**more: Any) -> list[str]:
        answer = Client().post(
            "/api/tokens", body | more, "application/json", headers={"Authorization": f"Bearer {secret}"}
        )
        assert answer.status_code == 201, answer.text
        return sorted(answer.json()["limits"])

    assert by_command("issue", "--name", "cli", "--limit", "images:7/day") == ["images:7/day", "requests:9/minute"]
    assert by_api() == ["images:7/day", "requests:9/minute"]
    assert by_command("issue", "--name", "cli", "--without-usual-limits") == []
    assert by_api(usual_limits=False) == ["images:7/day"]


@pytest.mark.usefixtures("provider")
def test_command_and_api_take_networks_and_a_model_that_is_offered(customer: Customer) -> None:
    offered = Model.objects.filter(active=True).values_list("name", flat=True)[0]
    words = ["token", "issue", "--tenant", customer.tenant.slug, "--user", "ci@example.com", "--name", "cli"]
    call_command(*words, "--network", "203.0.113.0/24", "--model", offered, stdout=io.StringIO(), stderr=io.StringIO())
    token = ProxyToken.objects.latest("pk")
    assert (token.networks, token.model) == (["203.0.113.0/24"], offered)
    with pytest.raises(CommandError, match="There is no model 'nothing'"):
        call_command(*words, "--model", "nothing")
    headers = {"Authorization": f"Bearer {apikeys.issue('tests', ['tokens:write'], customer.tenant)[1]}"}
    body = {"user": "ci@example.com", "name": "api", "model": "nothing"}
    refused = Client().post("/api/tokens", body, "application/json", headers=headers)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request")
    issued = Client().post("/api/tokens", body | {"model": offered}, "application/json", headers=headers)
    assert issued.json()["model"] == offered


def test_a_plan_that_tenants_have_is_not_deleted_and_the_list_needs_the_same_queries_for_many(
    admin: Client, customer: Customer
) -> None:
    plan = make_plan("images:5/day")
    give(customer.tenant, plan)
    assert admin.post(page("tokens_plan_delete", plan.pk), {"post": "yes"}).status_code == 403
    counts = []
    for _ in range(2):
        with CaptureQueriesContext(
            connection,
        ) as asked:
            assert admin.get(page("tokens_plan_changelist")).status_code == 200
        counts.append(len(asked))
        for _ in range(20):
            make_plan("images:5/day", tokens=("images:1/day",))
    assert counts[0] == counts[1]

"""Plans, keys of the management API, quota alerts and invitations on the command line, for who has no browser."""

import pytest
from django.test import Client
from django.urls import reverse

from gateway.models import Model
from tests.conftest import Customer
from tests.test_commands import refusal, run
from tests.test_issuing import works
from tokens import apikeys, issuing, roles
from tokens.models import ApiKey, AuditEntry, Plan, ProxyToken, Tenant
from usage.alarms import AlarmKind
from usage.models import Alarm, AlertDelivery, Webhook


def lines(*words: str) -> list[list[str]]:
    return [line.split("\t") for line in run(*words)[0].splitlines()]


def limits(customer: Customer) -> list[str]:
    return sorted(str(limit) for limit in issuing.limits_of(customer.tenant))


def test_a_plan_from_its_making_to_its_end(customer: Customer) -> None:
    name, slug = f"plan {customer.tenant.slug}", customer.tenant.slug
    run("plan", "create", name, "--limit", "images:500/day", "--limit", "concurrent:4", "--token-limit", "images:5/day")
    assert "already exists" in refusal("plan", "create", name)
    run("plan", "assign", name, "--tenant", slug)
    assert limits(customer) == ["concurrent:4", "images:500/day"]
    (listed,) = (line for line in lines("plan", "list") if line[0] == name)
    assert listed == [name, "1", "images:500/day, concurrent:4", "images:5/day", "-"]
    assert slug in run("plan", "show", name)[0]
    assert "Tenants that have these limits now: 1." in run("plan", "set", name, "--limit", "images:700/day")[1]
    run("plan", "remove", name, "--limit", "concurrent", "--token-limit", "images/day")
    assert limits(customer) == ["images:700/day"]
    assert "no limit concurrent" in refusal("plan", "remove", name, "--limit", "concurrent")
    assert "is not a limit" in refusal("plan", "set", name, "--limit", "many")
    assert "Say which" in refusal("plan", "set", name)
    assert "A tenant has the plan" in refusal("plan", "delete", name)
    run("plan", "unassign", "--tenant", slug)
    assert limits(customer) == []
    run("plan", "delete", name)
    assert not Plan.objects.filter(name=name).exists()
    assert "There is no plan" in refusal("plan", "show", name)
    told = AuditEntry.objects.filter(object_type="tokens.plan", object_name=name)
    assert {entry.way for entry in told} == {"command"}
    assert told.earliest("pk").verb == "created"


@pytest.mark.usefixtures("provider")
def test_tenant_and_token_are_changed_in_what_is_given(customer: Customer) -> None:
    slug, number = customer.tenant.slug, str(customer.token.pk)
    offered = Model.objects.filter(active=True).values_list("name", flat=True)[0]
    run("tenant", "set", slug, "--name", "Acme Ltd", "--origin", "https://app.example", "--model", offered)
    said = run("tenant", "set", slug, "--unresolved", "estimate", "--timezone", "Asia/Tokyo")[1]
    assert "stays UTC to the month's end: Asia/Tokyo begins" in said
    tenant = Tenant.objects.get(pk=customer.tenant.pk)
    assert (tenant.name, tenant.origins, tenant.model) == ("Acme Ltd", ["https://app.example"], offered)
    assert (tenant.unresolved_policy, tenant.timezone, tenant.next_timezone) == ("estimate", "UTC", "Asia/Tokyo")
    run("tenant", "set", slug, "--no-origins", "--model", "")
    tenant.refresh_from_db()
    assert (tenant.name, tenant.origins, tenant.model) == ("Acme Ltd", [], "")
    assert "There is no model" in refusal("tenant", "set", slug, "--model", "nothing")
    assert "origins" in refusal("tenant", "set", slug, "--origin", "nonsense")
    assert "Say what to change" in refusal("tenant", "set", slug)

    run("token", "set", number, "--name", "batch", "--expires", "90d", "--network", "127.0.0.0/8", "--model", offered)
    token = ProxyToken.objects.get(pk=customer.token.pk)
    assert (token.name, token.networks, token.model) == ("batch", ["127.0.0.0/8"], offered)
    assert token.expires_at is not None and works(customer.secret)
    run("token", "set", number, "--expires", "never", "--all-networks")
    changed = ProxyToken.objects.get(pk=customer.token.pk)
    assert (changed.name, changed.networks) == ("batch", [])
    assert changed.expires_at is None
    assert "is not an expiry" in refusal("token", "set", number, "--expires", "soon")
    assert "would have expired already" in refusal("token", "set", number, "--expires", "2020-01-31")
    assert "Say what to change" in refusal("token", "set", number)
    run("token", "revoke", number)
    assert "revoked, which is final" in refusal("token", "set", number, "--name", "again")


def test_an_alarm_is_dealt_with_for_a_reason(customer: Customer) -> None:
    alarm = Alarm.objects.create(
        kind=AlarmKind.SEQUENCE_GAP, subject=customer.tenant.slug, message="2 events are lost."
    )
    (listed,) = (line for line in lines("alarm", "list") if line[0] == str(alarm.pk))
    assert listed[1:3] + listed[4:] == ["sequence_gap", customer.tenant.slug, "2 events are lost."]
    assert "can't be empty" in refusal("alarm", "deal-with", str(alarm.pk), "--reason", " ")
    assert "There is no alarm" in refusal("alarm", "deal-with", "999999999", "--reason", "x")
    assert run("alarm", "deal-with", str(alarm.pk), "--reason", "a deleted key")[0] == "Dealt with: 1 of 1.\n"
    assert run("alarm", "deal-with", str(alarm.pk), "--reason", "again")[0] == "Dealt with: 0 of 1.\n"
    assert str(alarm.pk) not in {line[0] for line in lines("alarm", "list")}
    assert str(alarm.pk) in {line[0] for line in lines("alarm", "list", "--all")}
    entry = AuditEntry.objects.get(object_type="usage.alarm", object_id=str(alarm.pk))
    assert (entry.verb, entry.way, entry.reason) == ("dealt with", "command", "a deleted key")
    alarm.delete()


def test_a_key_is_shown_once_and_works_until_it_is_revoked(customer: Customer) -> None:
    slug = customer.tenant.slug
    secret, errors = run("key", "issue", "--name", "SAP", "--scope", "tokens:write", "--tenant", slug)
    secret = secret.strip()
    key = apikeys.find(secret)
    assert key is not None and secret not in errors and f"API key {key.pk}" in errors
    headers = {"Authorization": f"Bearer {secret}"}
    assert Client().get("/api/tokens", headers=headers).status_code == 200
    (listed,) = lines("key", "list", "--tenant", slug)
    assert listed[:6] == [str(key.pk), "SAP", slug, "tokens:write", "active", key.shown]
    assert secret not in str(listed)
    run("key", "revoke", str(key.pk))
    assert Client().get("/api/tokens", headers=headers).status_code == 401
    assert "revoked already" in refusal("key", "revoke", str(key.pk))
    assert "There is no API key" in refusal("key", "revoke", "999999999")
    everything = run("key", "issue", "--name", "all", "--scope", "usage:read", "--all-tenants")[0].strip()
    assert apikeys.find(everything).tenant is None  # type: ignore[union-attr]
    ApiKey.objects.filter(name="all", tenant=None).delete()
    entries = AuditEntry.objects.filter(object_type="tokens.apikey", object_id=str(key.pk)).order_by("pk")
    assert [(entry.verb, entry.way) for entry in entries] == [("issued", "command"), ("revoked", "command")]


def test_a_key_whose_giver_may_give_none_is_told_as_ended(admin: Client, customer: Customer) -> None:
    boss = issuing.add_member(customer.tenant, f"boss@{customer.tenant.slug}.test")
    roles.set_role(boss, "administrator")
    key, secret = apikeys.issue("given", ["tokens:write"], customer.tenant, giver=boss.user)
    find = reverse("admin:tokens_proxytoken_find_leaked")
    assert "accepted by the management API" in admin.post(find, {"pasted": secret}).text
    roles.set_role(boss, "viewer")
    assert apikeys.find(secret) is None
    told = admin.post(find, {"pasted": secret}).text
    assert "ended with its giver&#x27;s rights" in told and "accepted by the management API" not in told
    assert reverse("admin:tokens_apikey_revoke", args=[key.pk]) in told, "rights can come back"
    assert lines("key", "list", "--tenant", customer.tenant.slug)[0][4] == "ended"


def test_quota_alerts_are_set_tested_and_tried_again(customer: Customer) -> None:
    slug = customer.tenant.slug
    assert lines("alert", "show", "--tenant", slug) == [["at", "80", "100"]]
    assert "Nobody is told" in refusal("alert", "test", "--tenant", slug)
    shown = lines("alert", "set", "--tenant", slug, "--at", "50", "--at", "100", "--email", "Ops@Acme.test")
    assert shown == [["at", "50", "100"], ["email", "ops@acme.test"]]
    assert lines("alert", "set", "--tenant", slug, "--at", "80") == [["at", "80"], ["email", "ops@acme.test"]]
    assert "emails" in refusal("alert", "set", "--tenant", slug, "--email", "nobody")
    url = "https://hooks.example/private/path"
    secret, errors = run("alert", "webhook-add", "--tenant", slug, url)
    hook = Webhook.objects.get(tenant=customer.tenant)
    assert secret.startswith("whsec_") and secret.strip() not in errors and str(hook.pk) in errors
    assert "public internet" in refusal("alert", "webhook-add", "--tenant", slug, "https://127.0.0.1/")
    assert run("alert", "webhook-secret", str(hook.pk))[0] != secret
    assert lines("alert", "show", "--tenant", slug)[-1] == ["webhook", str(hook.pk), "https://hooks.example", "on"]
    run("alert", "test", "--tenant", slug)
    assert {line[3] for line in lines("alert", "list", "--tenant", slug)} == {"ops@acme.test", "https://hooks.example"}
    waiting = AlertDelivery.objects.filter(tenant=customer.tenant).latest("pk")
    assert "was not given up" in refusal("alert", "retry", str(waiting.pk))
    AlertDelivery.objects.filter(tenant=customer.tenant).update(status="failed")
    run("alert", "retry", str(waiting.pk))
    waiting.refresh_from_db()
    assert waiting.status == "waiting"
    for verb, active in (("webhook-off", False), ("webhook-on", True)):
        run("alert", verb, str(hook.pk))
        assert Webhook.objects.get(pk=hook.pk).active is active
    run("alert", "webhook-remove", str(hook.pk))
    assert lines("alert", "set", "--tenant", slug, "--no-email") == [["at", "80"]]
    assert "There is no webhook" in refusal("alert", "webhook-off", str(hook.pk))
    AlertDelivery.objects.filter(tenant=customer.tenant).delete()


@pytest.mark.parametrize("verb", ["alert", "audit"])
@pytest.mark.parametrize("limit", ["-1", "0", "many"])
def test_a_list_has_one_line_at_least(verb: str, limit: str) -> None:
    assert "from 1 on" in refusal(verb, "list", f"--limit={limit}")

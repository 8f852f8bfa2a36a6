"""Revoking, extending and limiting many tokens: what is asked, what is said, and what becomes of each."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now

from tests.adminpages import page
from tests.conftest import Customer, Gateway
from tokens import bulk, issuing, stopping
from tokens.admin import bulkpages
from tokens.admission.connection import StoreUnavailable
from tokens.audit import AuditEntry, Verb
from tokens.models import ProxyToken, Role, Secret, TokenStatus, User

SMALL = {"prompt": "a lighthouse at dusk", "size": "256x256", "n": 1}


def tokens_of(customer: Customer, count: int) -> list[tuple[ProxyToken, str]]:
    return [issuing.issue_token(customer.member, f"token {number}") for number in range(count)]


def go_through(admin: Client, name: str, query: str, answers: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Answer every page that a bulk action shows; the last one, and those before it."""
    address = page(f"tokens_proxytoken_{name}") + query
    shown = [admin.get(address), admin.post(address, answers)]
    fields = shown[-1].context["kept"]
    typed = {"typed": len(fields) and dict(shown[-1].context["facts"])["Tokens"].partition(":")[0].replace(",", "")}
    while True:
        posted: dict[str, Any] = {}
        for name_, value in fields:
            posted.setdefault(name_, []).append(value)
        answer = admin.post(address, posted | typed, follow=False)
        if answer.status_code == 302:
            return admin.get(answer["Location"]), shown
        shown.append(answer)
        assert answer.status_code == 200
        fields = answer.context["kept"]
        assert "percent" in answer.context, answer.text


def test_many_are_revoked_in_pieces_with_a_bar(
    admin: Client, gateway: Gateway, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulkpages, "PIECE", 10)
    made = tokens_of(customer, 34)
    Secret.objects.filter(token=made[3][0]).update(last_used_at=now())
    assert gateway.post(made[33][1], SMALL).status_code == 200
    query = f"?tenant__id__exact={customer.tenant.pk}"
    end, shown = go_through(admin, "revoke_all", query, {"reason": "the vendor was breached"})
    assert "Revoke 35 tokens" in shown[0].text
    asked = dict(shown[1].context["facts"])
    assert asked["Tokens"] == "35"
    assert asked["Calls that will fail"].startswith(("1 token was", "2 tokens were"))
    assert "can&#x27;t be undone" in shown[1].text
    assert [one.context["seen"] for one in shown[2:]] == [10, 20, 30]
    assert "35 tokens were revoked." in end.text
    assert gateway.post(made[33][1], SMALL).status_code == 403
    own = ProxyToken.objects.filter(tenant=customer.tenant)
    assert set(own.values_list("status", "revoke_reason")) == {(TokenStatus.REVOKED, "the vendor was breached")}
    assert AuditEntry.objects.filter(tenant=customer.tenant, verb=Verb.REVOKED).count() == 35


def test_nothing_happens_before_the_number_is_typed(admin: Client, customer: Customer) -> None:
    tokens_of(customer, 30)
    address = page("tokens_proxytoken_revoke_all") + f"?tenant__id__exact={customer.tenant.pk}"
    assert "This field is required" in admin.post(address, {"reason": ""}).text
    through = ProxyToken.objects.filter(tenant=customer.tenant).latest("pk").pk
    for typed in ("", "30", "yes"):
        sure = {"reason": "x", "stage": "sure", "through": through, "typed": typed}
        assert admin.post(address, sure).status_code == 200
    assert not ProxyToken.objects.filter(tenant=customer.tenant, status=TokenStatus.REVOKED).exists()


def test_tokens_that_come_meanwhile_are_left_alone(admin: Client, customer: Customer) -> None:
    address = page("tokens_proxytoken_revoke_all") + f"?tenant__id__exact={customer.tenant.pk}"
    asked = admin.post(address, {"reason": "x"})
    later, _ = issuing.issue_token(customer.member, "later")
    admin.post(address, dict(asked.context["kept"]))
    statuses = dict(ProxyToken.objects.filter(tenant=customer.tenant).values_list("pk", "status"))
    assert statuses == {customer.token.pk: TokenStatus.REVOKED, later.pk: TokenStatus.ACTIVE}


def test_extending_only_ever_extends(admin: Client, gateway: Gateway, customer: Customer) -> None:
    (short, secret), (endless, _), (long, _) = tokens_of(customer, 3)
    at = now()
    for token, ends in ((short, at - dt.timedelta(days=1)), (long, at + dt.timedelta(days=400))):
        token.expires_at = ends
        token.save()
    assert gateway.post(secret, SMALL).status_code == 403
    ids = ",".join(str(token.pk) for token in (short, endless, long))
    end, shown = go_through(admin, "extend_all", f"?id__in={ids}", {"lifetime": "90d", "until": ""})
    facts = dict(shown[1].context["facts"])
    assert (facts["Tokens that last longer then"], facts["Expired ones that work again"]) == ("1", "1")
    assert facts["Tokens that stay as they are"] == "2"
    for text in ("1 token was extended.", "2 tokens would last as long anyway."):
        assert text in end.text
    assert gateway.post(secret, SMALL).status_code == 200
    short.refresh_from_db()
    assert short.expires_at is not None
    assert dt.timedelta(days=89) < short.expires_at - at < dt.timedelta(days=91)
    over = admin.post(page("tokens_proxytoken_extend_all") + f"?id__in={ids}", {"until": "2020-01-01"})
    assert "That is over already" in over.text


def test_limits_of_many_are_set_and_removed(admin: Client, gateway: Gateway, customer: Customer) -> None:
    made = tokens_of(customer, 3)
    issuing.set_limits(made[0][0], ["images:9/day", "concurrent:2"])
    issuing.set_limits(made[1][0], ["images:1/day"])
    ids = ",".join(str(token.pk) for token, _ in made)
    answers = {"limits": "images:1/day\nrequests:60/minute:burst=10", "removed": "concurrent"}
    end, shown = go_through(admin, "limit_all", f"?id__in={ids}", answers)
    facts = dict(shown[1].context["facts"])
    assert facts["Set images:1/day"] == "new on 1, replaces another amount on 1, unchanged on 1"
    assert facts["Remove concurrent"] == "from 1 token that have it".replace("have", "has")
    assert "3 tokens were given these limits." in end.text
    for token, secret in made:
        assert sorted(map(str, token.limits.all())) == ["images:1/day", "requests:60/minute:burst=10"]
        assert [gateway.post(secret, SMALL).status_code for _ in range(2)] == [200, 429]
    address = page("tokens_proxytoken_limit_all") + f"?id__in={ids}"
    for wrong, sentence in (
        ({"limits": "", "removed": ""}, "Say which limits"),
        ({"limits": "images:many/day"}, "is not a limit"),
        ({"limits": "images:1/day images:2/day"}, "can be given once"),
        ({"limits": "images:1/day", "removed": "images/day"}, "set and removed at once"),
    ):
        assert sentence in admin.post(address, wrong).text, wrong


def test_the_selected_ones_lead_to_the_same_page(admin: Client, customer: Customer) -> None:
    made = tokens_of(customer, 2)
    picked = {"action": "revoke_selected", "_selected_action": [token.pk for token, _ in made]}
    answer = admin.post(page("tokens_proxytoken_changelist"), picked, follow=True)
    assert dict(answer.context["facts"])["Tokens"] == "2: token 0, token 1"
    stopping.revoke(made[0][0].pk, "x")
    stopping.revoke(made[1][0].pk, "x")
    assert "there is nothing to do" in admin.get(answer.request["PATH_INFO"], {"id__in": made[0][0].pk}).text


def test_another_tenants_tokens_are_out_of_reach(make_customer: Callable[..., Customer]) -> None:
    ours, theirs = make_customer(), make_customer()
    person = User.objects.create_user(f"admin-{ours.tenant.slug}@example.com")
    member = issuing.add_member(ours.tenant, person.email)
    member.role = Role.ADMINISTRATOR
    member.save()
    client = Client()
    client.force_login(User.objects.get(pk=person.pk))
    address = page("tokens_proxytoken_revoke_all")
    for query in (f"?id__in={ours.token.pk},{theirs.token.pk}", "", f"?tenant__id__exact={theirs.tenant.pk}"):
        shown = client.post(address + query, {"reason": "x"}).text
        assert theirs.token.name != ours.token.name or theirs.tenant.name not in shown
    sure = {"reason": "x", "stage": "on", "through": 10**12, "total": 2}
    client.post(f"{address}?id__in={ours.token.pk},{theirs.token.pk}", sure)
    statuses = [ProxyToken.objects.get(pk=one.token.pk).status for one in (ours, theirs)]
    assert statuses == [TokenStatus.REVOKED, TokenStatus.ACTIVE]


def test_it_ends_early_when_the_store_is_away(customer: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [token.pk for token, _ in tokens_of(customer, 4)]
    real = stopping.revoke

    def revoke(token_id: int, by: str, reason: str = "") -> bool:
        if token_id == made[2]:
            raise StoreUnavailable("The admission store did not answer.", sent=False)
        return real(token_id, by, reason)

    monkeypatch.setattr(stopping, "revoke", revoke)
    outcome = bulk.revoke(made, "a test", "x")
    assert (outcome.done, outcome.last, bool(outcome.stopped)) == (2, made[1], True)
    assert ProxyToken.objects.filter(pk__in=made, status=TokenStatus.REVOKED).count() == 2

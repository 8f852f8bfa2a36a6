"""The admin: what people do there, and what it must never show or do."""

import re
import uuid
from typing import Any

import pytest
import redis
from django.contrib.admin import site
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.redis import store
from tests.adminpages import PASSWORD, page, rows
from tests.conftest import Customer, Gateway
from tokens.admin import standing
from tokens.admission.connection import StoreUnavailable
from tokens.audit import AuditEntry
from tokens.models import Limit, Membership, ProxyToken, Secret, Status, Tenant, TokenStatus, UnresolvedPolicy, User

BODY = {"prompt": "a lighthouse at dusk", "size": "512x512", "n": 2}


def secret_in(html: str) -> str:
    return str(re.findall(r'value="(gem_[0-9A-Za-z]{46})"', html)[0])


def form_of(answer: Any) -> Any:
    return answer.context["adminform"].form


def issue(admin: Client, tenant: Tenant, **fields: Any) -> Any:
    data = {"tenant": tenant.pk, "email": "ci@example.com", "name": "ci", "expires": "", "networks": ""}
    return admin.post(page("tokens_proxytoken_add"), data | rows("limits") | fields)


def test_strangers_see_nothing(customer: Customer) -> None:
    client = Client()
    client.force_login(User.objects.create_user(f"{uuid.uuid4().hex}@example.com", PASSWORD))
    for model in site._registry:
        answer = client.get(page(f"{model._meta.app_label}_{model._meta.model_name}_changelist"))
        assert answer.status_code == 302, model
        assert "/login/" in answer["Location"]
    revoke = page("tokens_proxytoken_revoke", customer.token.pk)
    assert "/login/" in client.post(revoke, {"reason": ""})["Location"]
    assert ProxyToken.objects.get(pk=customer.token.pk).status == TokenStatus.ACTIVE


def test_every_list_and_form_opens(admin: Client, customer: Customer) -> None:
    answer = admin.get("/admin/")
    assert "Three steps" in answer.text or "Top tokens" in answer.text
    for model, model_admin in site._registry.items():
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        listed = admin.get(page(f"{name}_changelist"))
        assert listed.status_code == 200, name
        assert "to change" not in listed.text.partition("</title>")[0], name
        assert admin.get(page(f"{name}_change", "nonsense")).status_code == 302, name
        can_add = model_admin.has_add_permission(answer.wsgi_request)
        assert admin.get(page(f"{name}_add")).status_code == (200 if can_add else 403), name
        row = model_admin.get_queryset(answer.wsgi_request).first()  # a saved report of another is not
        if row is not None:
            assert admin.get(page(f"{name}_change", row.pk)).status_code == 200, name
    assert "Group" not in {model.__name__ for model in site._registry}


def test_a_tenant_is_created_with_limits_and_members(admin: Client) -> None:
    slug = f"t{uuid.uuid4().hex[:12]}"
    data = {"slug": slug, "name": "Acme", "timezone": "Europe/Berlin", "model": "", "origins": "https://a.example"}
    data |= {
        "plan": "",
        "unresolved_policy": form_of(admin.get(page("tokens_tenant_add")))["unresolved_policy"].value(),
    }
    data |= rows("limits", {"metric": "images", "amount": 500, "period": "day", "burst": ""},
                 {"metric": "concurrent", "amount": 8, "period": "day", "burst": ""})  # fmt: skip
    data |= rows("members", {"email": f"Alice@{slug}.test"})
    answer = admin.post(page("tokens_tenant_add"), data)
    assert answer.status_code == 302, answer.text
    tenant = Tenant.objects.get(slug=slug)
    assert sorted(str(limit) for limit in tenant.limits.all()) == ["concurrent:8", "images:500/day"]
    assert [member.user.email for member in tenant.members.all()] == [f"alice@{slug}.test"]
    assert not tenant.members.get().user.has_usable_password()
    assert tenant.origins == ["https://a.example"]
    assert tenant.unresolved_policy == UnresolvedPolicy.NOTHING


def test_what_unresolved_calls_count_as_is_preselected_and_never_guessed(admin: Client, customer: Customer) -> None:
    tenant, change = customer.tenant, page("tokens_tenant_change", customer.tenant.pk)
    tenant.unresolved_policy = UnresolvedPolicy.ESTIMATE
    tenant.save()
    assert form_of(admin.get(change))["unresolved_policy"].value() == "estimate"
    # A form that doesn't say it would set what the tenant is charged back to the default.
    data = {"name": "other", "timezone": "UTC", "model": "", "origins": "", "plan": ""}
    data |= rows("limits") | rows("members") | rows("members-2")
    refused = admin.post(change, data)
    assert (refused.status_code, list(form_of(refused).errors)) == (200, ["unresolved_policy"])
    assert admin.post(change, data | {"unresolved_policy": "estimate"}).status_code == 302
    tenant.refresh_from_db()
    assert (tenant.name, tenant.unresolved_policy) == ("other", UnresolvedPolicy.ESTIMATE)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ([{"metric": "images", "amount": 5, "period": "day"}] * 2, "There is a limit images/day already"),
        ([{"metric": "images", "amount": 0, "period": "day"}], "greater than or equal to 1"),
        ([{"metric": "images", "amount": 5, "period": ""}], "needs a period"),
        ([{"metric": "images", "amount": 5, "period": "day", "burst": 9}], "can&#x27;t have a burst"),
        ([{"metric": "requests", "amount": 10**9, "period": "second"}], "is too fast"),
    ],
)
def test_a_limit_that_cant_be_kept_is_explained(
    admin: Client, customer: Customer, limits: list[dict[str, Any]], sentence: str
) -> None:
    change = page("tokens_membership_change", customer.member.pk)
    answer = admin.post(change, rows("limits", *limits))
    assert answer.status_code == 200
    assert sentence in answer.text
    assert not customer.member.limits.exists()


def test_a_limit_that_is_there_is_changed_not_doubled(admin: Client, customer: Customer) -> None:
    customer.limit("images:5/day", scope="token")
    limit = customer.token.limits.get()
    change = page("tokens_proxytoken_change", customer.token.pk)
    data = {"name": "test", "expires_at_0": "", "expires_at_1": "", "networks": ""}
    old = {"id": limit.pk, "token": customer.token.pk, "amount": 9, "burst": ""}
    again = {"metric": "images", "amount": 7, "period": "day"}
    assert (
        "There is a limit images/day already" in admin.post(change, data | rows("limits", old, again, initial=1)).text
    )
    # The name of a saved limit stays, whatever is posted.
    forged = {**old, "metric": "requests", "period": "month"}
    assert admin.post(change, data | rows("limits", forged, initial=1)).status_code == 302
    assert str(Limit.objects.get(pk=limit.pk)) == "images:9/day"
    assert admin.post(change, data | rows("limits", {**old, "DELETE": "on"}, again, initial=1)).status_code == 302
    assert [str(row) for row in customer.token.limits.all()] == ["images:7/day"]


def test_a_secret_is_shown_once_and_nowhere_else(admin: Client, gateway: Gateway, customer: Customer) -> None:
    limit = {"metric": "images", "amount": 50, "period": "day", "burst": ""}
    answer = issue(admin, customer.tenant, expires="90d", networks="127.0.0.0/8", **rows("limits", limit))
    secret = secret_in(answer.text)
    assert "no-store" in answer["Cache-Control"]
    token = ProxyToken.objects.latest("pk")
    assert (token.name, token.networks, token.member.user.email) == ("ci", ["127.0.0.0/8"], "ci@example.com")
    assert [str(row) for row in token.limits.all()] == ["images:50/day"]
    assert f'-H "X-Proxy-Token: {secret}"' in answer.text.replace("&quot;", '"')
    assert gateway.post(secret, BODY).status_code == 200

    everywhere = [admin.get(page("tokens_proxytoken_change", token.pk)).text, admin.get("/admin/").text]
    everywhere += [str(dict(answer.items())), str(answer.cookies), str(AuditEntry.objects.values_list())]
    everywhere += [str(Session.objects.get(pk=session.session_key).get_decoded()) for session in [admin.session]]
    everywhere += [str(Secret.objects.filter(token=token).values_list()), dump(store())]
    with connection.cursor() as cursor:
        cursor.execute("SELECT string_agg(t::text, ' ') FROM tokens_proxytoken t")
        everywhere.append(cursor.fetchone()[0])
    assert [place for place in everywhere if secret[10:] in place] == []


def dump(client: redis.Redis) -> str:
    """All names in the store, and the records of tokens."""
    names = list(client.scan_iter(count=1000))
    records = [client.hgetall(name) for name in names if b"}:token:" in name]
    return f"{names} {records}"


def test_what_cant_be_issued_is_explained(admin: Client, customer: Customer) -> None:
    count = ProxyToken.objects.count()
    for fields, sentence in (
        ({"expires": "soon"}, "is not an expiry"),
        ({"expires": "2020-01-01"}, "would have expired already"),
        ({"networks": "10.0.0.1/8"}, "is not a network"),
        ({"email": "nobody"}, "valid email address"),
        ({"name": " "}, "This field is required"),
    ):
        answer = issue(admin, customer.tenant, **fields)
        assert sentence in answer.text, fields
    assert ProxyToken.objects.count() == count


def test_a_revoked_token_gets_403_on_its_very_next_call(admin: Client, gateway: Gateway, customer: Customer) -> None:
    assert gateway.post(customer.secret, BODY).status_code == 200
    revoke = page("tokens_proxytoken_revoke", customer.token.pk)
    assert "Revoke for good" in admin.get(revoke).text
    assert gateway.post(customer.secret, BODY).status_code == 200  # looking at the question revokes nothing
    answer = admin.post(revoke, {"reason": "leaked in a repository"}, follow=True)
    assert gateway.post(customer.secret, BODY).status_code == 403
    token = ProxyToken.objects.get(pk=customer.token.pk)
    assert (token.status, token.revoke_reason) == (TokenStatus.REVOKED, "leaked in a repository")
    assert "leaked in a repository" in answer.text
    assert "/rotate/" not in answer.text  # final: nothing more can be done with it
    rotated = admin.post(page("tokens_proxytoken_rotate", token.pk), {"grace": 24}, follow=True)
    assert "is revoked, which is final" in rotated.text


def test_rotation_with_grace_and_its_early_end(admin: Client, gateway: Gateway, customer: Customer) -> None:
    answer = admin.post(page("tokens_proxytoken_rotate", customer.token.pk), {"grace": 24})
    new = secret_in(answer.text)
    assert "no-store" in answer["Cache-Control"]
    assert [gateway.post(secret, BODY).status_code for secret in (customer.secret, new)] == [200, 200]
    assert "In grace" in admin.get(page("tokens_proxytoken_changelist") + "?state=grace").text
    admin.post(page("tokens_proxytoken_end_grace", customer.token.pk))
    assert [gateway.post(secret, BODY).status_code for secret in (customer.secret, new)] == [403, 200]
    newest = secret_in(admin.post(page("tokens_proxytoken_rotate", customer.token.pk), {"grace": 0}).text)
    assert [gateway.post(secret, BODY).status_code for secret in (new, newest)] == [403, 200]


def test_suspending_and_activating(admin: Client, gateway: Gateway, customer: Customer) -> None:
    for name, row in (("tokens_tenant", customer.tenant), ("tokens_membership", customer.member)):
        assert admin.post(page(f"{name}_suspend", row.pk)).status_code == 302
        assert gateway.post(customer.secret, BODY).status_code == 403
        row.refresh_from_db()
        assert row.status == Status.SUSPENDED
        assert admin.post(page(f"{name}_activate", row.pk)).status_code == 302
        assert gateway.post(customer.secret, BODY).status_code == 200


def test_use_stands_on_the_page_right_after_the_call(admin: Client, gateway: Gateway, customer: Customer) -> None:
    customer.limit("images:10/day", "requests:60/minute")
    customer.limit("tokens:1000000/month", "concurrent:4", scope="token")
    charged = gateway.post(customer.secret, BODY).json()["usage"]["total_tokens"]
    use = standing.read_use(ProxyToken.objects.get(pk=customer.token.pk))
    meters = {(meter.scope, meter.name): (meter.used, meter.reserved, meter.remaining) for meter in use.meters}
    assert meters[("tenant", "Images per day")] == (2, 0, 8)
    assert meters[("tenant", "Requests per minute")] == (1, 0, 59)
    assert meters[("token", "Tokens per month")] == (charged, 0, 1_000_000 - charged)
    assert meters[("token", "Concurrent calls")] == (0, 0, 4)
    assert use.figures["today"].used == {"requests": 1, "images": 2, "tokens": charged}
    html = admin.get(page("tokens_tenant_change", customer.tenant.pk)).text
    assert re.search(r"<b>2</b> of 10\b", html)
    assert "8 remaining" in html
    listed = admin.get(page("tokens_tenant_changelist") + f"?q={customer.tenant.slug}")
    (row,) = listed.context["cl"].result_list
    assert (row.today.used["requests"], row.today.used["images"]) == (1, 2)


def test_pages_work_without_the_store(admin: Client, customer: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    away = redis.Redis(
        unix_socket_path="/nonexistent/valkey.sock", retry=Retry(NoBackoff(), 1)
    )  # as config.redis has it
    monkeypatch.setattr("tokens.admin.standing.store", lambda _: away)
    monkeypatch.setattr("gateway.admin.dashboard.store", lambda _: away)
    with pytest.raises(StoreUnavailable):
        standing.read_use(customer.tenant)
    for address in (
        page("tokens_tenant_change", customer.tenant.pk),
        page("tokens_proxytoken_change", customer.token.pk),
        page("tokens_tenant_changelist"),
        "/admin/",
    ):
        answer = admin.get(address)
        assert answer.status_code == 200
        assert "The admission store did not answer" in answer.text, address


def test_users_sign_in_with_the_password_they_were_given(admin: Client, operator: User) -> None:
    email = f"New.{uuid.uuid4().hex}@Example.com"
    data = {
        "email": email,
        "usable_password": "true",
        "password1": PASSWORD,
        "password2": PASSWORD,
        "is_superuser": "on",
    }
    answer = admin.post(page("tokens_user_add"), data)
    assert answer.status_code == 302, answer.text
    user = User.objects.get(email=email.lower())
    assert user.is_staff
    for written in (email, email.lower(), email.upper()):
        form = {"username": written, "password": PASSWORD}
        assert Client().post("/admin/login/?next=/admin/", form).status_code == 302, written
    assert User.objects.get_by_natural_key(email) == user
    own = page("tokens_user_change", operator.pk)
    admin.post(own, {"email": operator.email, "first_name": "", "last_name": ""})
    operator.refresh_from_db()
    assert operator.is_superuser  # nobody locks themselves out
    assert operator.is_active


def test_what_the_books_refer_to_is_never_deleted(admin: Client, customer: Customer) -> None:
    for name, row in (
        ("tokens_tenant", customer.tenant),
        ("tokens_membership", customer.member),
        ("tokens_proxytoken", customer.token),
        ("tokens_user", customer.member.user),
    ):
        assert admin.post(page(f"{name}_delete", row.pk), {"post": "yes"}).status_code == 403
        action = {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"}
        admin.post(page(f"{name}_changelist"), action)
        assert type(row)._default_manager.filter(pk=row.pk).exists()


def test_a_member_is_added_once(admin: Client, customer: Customer) -> None:
    data = {"tenant": customer.tenant.pk, "email": customer.member.user.email.upper()} | rows("limits")
    assert "This is a member already" in admin.post(page("tokens_membership_add"), data).text
    twice = rows("members", initial=0) | rows("members-2", {"email": "x@example.com"}, {"email": "X@example.com"})
    fields = {"name": "n", "timezone": "UTC", "model": "", "origins": ""} | rows("limits") | twice
    answer = admin.post(page("tokens_tenant_change", customer.tenant.pk), fields)
    assert "given twice" in answer.text
    assert Membership.objects.filter(tenant=customer.tenant).count() == 1

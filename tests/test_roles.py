"""Roles: what a tenant's people, finance and platform administrators can do in the admin, and what they can't."""

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.admin import site
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.adminpages import page, rows
from tests.bookkeeping import Customer as Books
from tests.conftest import Customer
from tests.test_directory import assert_equal
from tokens import apikeys, issuing, roles, stopping
from tokens.admin.scoping import OwnRows
from tokens.errors import Refused
from tokens.models import Limit, Membership, ProxyToken, Role, Status, Tenant, User
from tokens.outbox import OutboxEntry
from usage.ledger import record

FIELDS = {"name": "n", "model": "", "origins": ""} | rows("limits") | rows("members") | rows("members-2")


def email() -> str:
    return f"{uuid.uuid4().hex}@roles.test"


@dataclass
class Person:
    """Somebody with a role in a tenant, and the browser in which they have signed in."""

    member: Membership
    browser: Client

    @property
    def user(self) -> User:
        return User.objects.get(pk=self.member.user_id)


@pytest.fixture
def hire() -> Callable[..., Person]:
    """Makes people with a role in a tenant."""

    def make(tenant: Tenant, role: Role = Role.ADMINISTRATOR) -> Person:
        member = issuing.add_member(tenant, email())
        roles.set_role(member, role)
        browser = Client()
        browser.force_login(User.objects.get(pk=member.user_id))
        return Person(member, browser)

    return make


@pytest.fixture
def finance() -> Client:
    user = User.objects.create_user(email(), is_finance=True)
    browser = Client()
    browser.force_login(user)
    return browser


# What pages are built on


def test_every_page_says_how_its_rows_belong_to_a_tenant() -> None:
    """Default deny: a page that isn't built on OwnRows, or doesn't say it, must be closed to a tenant's people."""
    of_tenants = {name for name, powers in roles.MAY.items() if powers.viewer or powers.administrator}
    for model, model_admin in site._registry.items():
        assert isinstance(model_admin, OwnRows), f"{type(model_admin).__name__} must be built on OwnRows"
        told = model_admin.tenant_field is not None
        assert told == (model._meta.label_lower in of_tenants), model._meta.label


def test_permissions_granted_the_django_way_give_nothing(customer: Customer) -> None:
    user = customer.member.user
    assert not User.objects.get(pk=user.pk).get_all_permissions()
    assert not User.objects.get(pk=user.pk).has_module_perms("usage")


def test_rights_are_read_once_for_a_page(hire: Callable[..., Person], customer: Customer) -> None:
    boss = hire(customer.tenant)
    address = page("tokens_proxytoken_changelist")

    def queries() -> list[str]:
        with CaptureQueriesContext(connection) as captured:
            assert boss.browser.get(address).status_code == 200
        return [query["sql"] for query in captured]

    few = queries()
    assert len([sql for sql in few if '"tokens_membership"."role"' in sql and "timezone" not in sql]) <= 1
    for number in range(20):
        issuing.issue_token(customer.member, f"token {number}")
    assert len(queries()) == len(few)


# A tenant's administrators


def test_an_administrator_runs_their_tenant(hire: Callable[..., Person], customer: Customer) -> None:
    boss, mate = hire(customer.tenant), email()
    add = boss.browser.get(page("tokens_proxytoken_add"))
    assert f'value="{customer.tenant.pk}" selected' in add.text, "of one's only tenant, without being asked"
    limit = rows("limits", {"metric": "images", "amount": 5, "period": "day", "burst": ""})
    data = {"tenant": customer.tenant.pk, "email": mate, "name": "ci", "expires": "", "networks": ""}
    issued = boss.browser.post(page("tokens_proxytoken_add"), data | limit)
    assert "gem_" in issued.text
    token = ProxyToken.objects.get(tenant=customer.tenant, name="ci")
    assert (token.created_by, [str(one) for one in token.limits.all()]) == (boss.user.email, ["images:5/day"])
    assert "gem_" in boss.browser.post(page("tokens_proxytoken_rotate", token.pk), {"grace": 24}).text
    boss.browser.post(page("tokens_proxytoken_revoke", token.pk), {"reason": "x"})
    token.refresh_from_db()
    assert token.status == "revoked"
    member = customer.tenant.members.get(user__email=mate)
    assert boss.browser.post(page("tokens_membership_change", member.pk), {"role": "viewer"} | limit).status_code == 302
    member.refresh_from_db()
    assert (member.role, member.user.is_staff, member.limits.count()) == ("viewer", True, 1)
    boss.browser.post(page("tokens_membership_suspend", member.pk))
    member.refresh_from_db()
    assert (member.status, User.objects.get(pk=member.user_id).is_staff) == (Status.SUSPENDED, False)
    boss.browser.post(page("tokens_membership_activate", member.pk))
    assert User.objects.get(pk=member.user_id).is_staff
    assert_equal(customer)


def test_what_the_platform_sells_is_the_platforms(hire: Callable[..., Person], customer: Customer) -> None:
    boss, tenant = hire(customer.tenant), customer.tenant
    customer.limit("images:100/day")
    change = page("tokens_tenant_change", tenant.pk)
    html = boss.browser.get(change).text
    assert 'name="name"' in html
    assert 'name="timezone"' not in html
    assert 'name="limits-0-amount"' not in html
    assert "images:100/day" in html or "100" in html
    limit = tenant.limits.get()
    forged = {"id": limit.pk, "tenant": tenant.pk, "metric": "images", "period": "day", "amount": 10**6, "burst": ""}
    new = rows("limits", forged, {"metric": "tokens", "amount": 1, "period": "day"}, initial=1)
    sent = FIELDS | new | {"name": "Ours", "slug": "stolen", "status": "active", "timezone": "Asia/Tokyo"}
    boss.browser.post(change, sent)
    tenant.refresh_from_db()
    assert (tenant.name, tenant.timezone, tenant.next_timezone) == ("Ours", "UTC", "")
    assert tenant.slug != "stolen"
    assert [str(one) for one in Limit.objects.filter(tenant=tenant)] == ["images:100/day"]
    for name in ("suspend", "activate", "keep_zone"):
        assert boss.browser.post(page(f"tokens_tenant_{name}", tenant.pk)).status_code == 403
    assert boss.browser.post(page("tokens_tenant_add"), FIELDS | {"slug": "x"}).status_code == 403


def test_nothing_can_be_added_to_another_tenant(
    hire: Callable[..., Person], customer: Customer, make_customer: Callable[..., Customer]
) -> None:
    other = make_customer()
    boss = hire(customer.tenant)
    roles.set_role(issuing.add_member(other.tenant, boss.user.email), Role.VIEWER)  # looking at it changes nothing
    before = (other.tenant.members.count(), other.tenant.tokens.count(), other.tenant.version)
    data = {"tenant": other.tenant.pk, "email": email(), "name": "ci", "expires": "", "networks": "", "role": ""}
    for name in ("tokens_proxytoken_add", "tokens_membership_add"):
        answer = boss.browser.post(page(name), data | rows("limits"))
        assert "Select a valid choice" in answer.text, name
    for name, row in (("tokens_membership", other.member), ("tokens_proxytoken", other.token)):
        shown = boss.browser.get(page(f"{name}_change", row.pk))
        assert shown.status_code == 200
        assert 'name="_save"' not in shown.text
        assert boss.browser.post(page(f"{name}_change", row.pk), {"name": "x"} | rows("limits")).status_code == 403
    for name in ("rotate", "revoke"):
        assert boss.browser.post(page(f"tokens_proxytoken_{name}", other.token.pk), {"grace": 0}).status_code == 403
    assert boss.browser.post(page("tokens_membership_suspend", other.member.pk)).status_code == 403
    assert boss.browser.post(page("tokens_tenant_change", other.tenant.pk), FIELDS).status_code == 403
    other.tenant.refresh_from_db()
    assert (other.tenant.members.count(), other.tenant.tokens.count(), other.tenant.version) == before


def test_no_address_names_another_tenants_people(
    hire: Callable[..., Person], customer: Customer, make_customer: Callable[..., Customer]
) -> None:
    """Prefilled forms, filters and searches: what Django would show of the row that an address names."""
    other = make_customer(name="Secret Customer")
    other.token.name = f"secret-{other.tenant.slug}"
    other.token.save()
    boss = hire(customer.tenant)
    roles.set_role(issuing.add_member(make_customer().tenant, boss.user.email), Role.VIEWER)  # so that filters show
    addresses = [
        f"{page('tokens_proxytoken_add')}?member={other.member.pk}",
        f"{page('tokens_proxytoken_add')}?tenant={other.tenant.pk}",
        f"{page('tokens_membership_add')}?tenant={other.tenant.pk}",
        f"{page('tokens_proxytoken_changelist')}?q={other.token.name}",
        f"{page('tokens_tenant_changelist')}?q={other.tenant.slug}",
    ]
    lists = ("tokens_membership", "tokens_proxytoken", "usage_dailyusage", "usage_usagerecord", "usage_unresolvedcall")
    addresses += [f"{page(f'{name}_changelist')}?tenant__id__exact={other.tenant.pk}" for name in lists]
    addresses += [f"{page(f'{name}_changelist')}?member__id__exact={other.member.pk}" for name in lists]
    for address in addresses:
        answer = boss.browser.get(address, follow=True)
        said = answer.text.replace(f"?q={other.token.name}", "").replace(f'value="{other.token.name}"', "")
        assert "Secret Customer" not in said, address
        assert other.member.user.email not in said, address
    autocomplete = "/admin/autocomplete/?app_label=tokens&model_name=proxytoken&field_name=tenant&term=Secret"
    assert boss.browser.get(autocomplete).json()["results"] == []
    assert boss.browser.get("/admin/search/?s=secret&extended=1").text.count("Secret Customer") == 0


def test_the_control_of_the_above_finds_them(admin: Client, make_customer: Callable[..., Customer]) -> None:
    other = make_customer(name="Secret Customer")
    listed = f"{page('usage_dailyusage_changelist')}?tenant__id__exact={other.tenant.pk}"
    assert "Secret Customer" in admin.get(listed).text
    assert other.member.user.email in admin.get(f"{page('tokens_proxytoken_add')}?member={other.member.pk}").text


def test_nobody_takes_their_own_rights_away(hire: Callable[..., Person], customer: Customer) -> None:
    boss = hire(customer.tenant)
    change = page("tokens_membership_change", boss.member.pk)
    html = boss.browser.get(change).text
    assert 'name="role"' not in html
    assert page("tokens_membership_suspend", boss.member.pk) not in html
    boss.browser.post(change, {"role": ""} | rows("limits"))
    answer = boss.browser.post(page("tokens_membership_suspend", boss.member.pk), follow=True)
    assert "Nobody takes their own rights away" in answer.text
    boss.member.refresh_from_db()
    assert (boss.member.role, boss.member.status) == ("administrator", Status.ACTIVE)


def test_what_is_refused_meanwhile_stands_at_the_field_and_nothing_seems_saved(
    hire: Callable[..., Person], customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = hire(customer.tenant), hire(customer.tenant)

    def refuse(*_args: object) -> None:
        raise Refused("You are no longer an administrator of this tenant.")

    monkeypatch.setattr(roles, "require_right_over", refuse)
    answer = one.browser.post(page("tokens_membership_change", two.member.pk), {"role": ""} | rows("limits"))
    assert answer.status_code == 200
    assert answer.context["adminform"].form.errors["role"] == ["You are no longer an administrator of this tenant."]
    assert "was changed successfully" not in one.browser.get(page("tokens_membership_changelist")).text
    assert Membership.objects.get(pk=two.member.pk).role == Role.ADMINISTRATOR


def test_two_who_take_each_others_rights_leave_one(hire: Callable[..., Person], customer: Customer) -> None:
    one, two = hire(customer.tenant), hire(customer.tenant)
    told: list[str] = []

    def meanwhile() -> None:
        try:
            roles.set_role(one.member, Role.MEMBER, two.user)
        except Refused as exc:
            told.append(str(exc))
        finally:
            connection.close()

    thread = threading.Thread(target=meanwhile)
    with transaction.atomic():
        roles.set_role(two.member, Role.MEMBER, one.user)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "the second waits for the first"
    thread.join()
    assert told == ["You are no longer an administrator of this tenant."]
    held = customer.tenant.members.filter(role=Role.ADMINISTRATOR)
    assert [member.pk for member in held] == [one.member.pk]


def test_a_role_is_nothing_to_the_admission_store(customer: Customer) -> None:
    member, version, written = customer.member, customer.member.version, OutboxEntry.objects.count()
    roles.set_role(member, Role.VIEWER)
    member.refresh_from_db()
    assert (member.role, member.version, OutboxEntry.objects.count()) == ("viewer", version, written)
    member.role = Role.ADMINISTRATOR
    member.save()  # whole, as a form would
    member.refresh_from_db()
    assert (member.role, member.version) == ("administrator", version)
    member.role, member.status = Role.VIEWER, Status.SUSPENDED
    member.save()
    assert member.version == version + 1, "what the store must know goes with it"
    assert_equal(customer)


def test_roles_are_not_given_in_bulk(customer: Customer) -> None:
    with pytest.raises(TypeError):
        Membership.objects.filter(pk=customer.member.pk).update(role=Role.ADMINISTRATOR)


def enters(person: Person) -> bool:
    return User.objects.filter(pk=person.member.user_id, is_staff=True).exists()


def test_who_enters_the_admin_follows_from_the_roles(hire: Callable[..., Person], customer: Customer) -> None:
    person = hire(customer.tenant, Role.VIEWER)
    assert enters(person)
    roles.set_role(person.member, Role.MEMBER)
    assert not enters(person)
    assert person.browser.get("/admin/").status_code == 302
    user = person.user
    for field in ("is_finance", "is_superuser"):
        setattr(user, field, True)
        user.save()
        assert user.is_staff, "the copy knows, too"
        assert enters(person)
        setattr(user, field, False)
        user.save(update_fields=[field])
        assert not enters(person)
    forged = User.objects.create_user(email(), is_staff=True)
    assert not User.objects.get(pk=forged.pk).is_staff, "without a role nobody enters"


def test_in_a_suspended_tenant_one_may_only_look(hire: Callable[..., Person], customer: Customer) -> None:
    boss = hire(customer.tenant)
    stopping.suspend_tenant(customer.tenant.slug, "tests")
    assert boss.browser.get(page("tokens_proxytoken_change", customer.token.pk)).status_code == 200
    assert boss.browser.get(page("tokens_proxytoken_add")).status_code == 403
    assert boss.browser.post(page("tokens_proxytoken_revoke", customer.token.pk), {"reason": ""}).status_code == 403
    stopping.activate_tenant(customer.tenant.slug)
    assert boss.browser.get(page("tokens_proxytoken_add")).status_code == 200


def test_who_isnt_active_has_no_rights(hire: Callable[..., Person], customer: Customer) -> None:
    user = hire(customer.tenant).user
    user.is_active = False
    assert roles.rights_of(user) == roles.Rights()


# The pages that everybody lands on


def test_the_landing_page_is_ones_own(hire: Callable[..., Person], finance: Client) -> None:
    ours, theirs = Books(), Books()
    record([books.event("unresolved") for books in (ours, theirs)])
    viewer = hire(ours.tenant, Role.VIEWER)
    html = viewer.browser.get("/admin/").text
    for absent in ("Three steps", "open alarm", "quarantined event", "way to the books"):
        assert absent not in html
    for model in ("gateway/provider", "gateway/model", "usage/alarm", "usage/price", "tokens/user"):
        assert f"/admin/{model}/" not in html, model
    for model in ("tokens/tenant", "tokens/proxytoken", "usage/dailyusage", "usage/unresolvedcall"):
        assert f"/admin/{model}/" in html, model
    read = finance.get("/admin/").text
    assert "quarantined event" in read
    assert "open alarm" not in read
    assert "/admin/usage/price/" in read
    assert "/admin/gateway/provider/" not in read


def test_finance_reads_all_and_changes_nothing(finance: Client, customer: Customer) -> None:
    books = Books()
    record([books.event()])
    for name in ("tokens_tenant", "tokens_membership", "tokens_proxytoken"):
        row = {"tokens_tenant": customer.tenant, "tokens_membership": customer.member}.get(name, customer.token)
        change = page(f"{name}_change", row.pk)
        assert customer.tenant.slug in finance.get(page(f"{name}_changelist")).text or finance.get(change).status_code
        assert finance.get(change).status_code == 200
        assert finance.post(change, FIELDS).status_code == 403
        assert finance.get(page(f"{name}_add")).status_code == 403
    got = finance.get(f"{page('usage_usagerecord_changelist')}?tenant__id__exact={books.tenant.pk}")
    assert [row.tenant_id for row in got.context["cl"].result_list] == [books.tenant.pk]


def test_an_address_asks_what_filters_and_links_ask_and_no_more(
    hire: Callable[..., Person], admin: Client, customer: Customer
) -> None:
    """Otherwise what no page shows could be guessed letter by letter, and what PostgreSQL can't read would be a 500."""
    boss = hire(customer.tenant).browser
    apikeys.issue("tests", ["usage:read"], customer.tenant)
    keys = page("tokens_apikey_changelist")
    asked = {
        keys: ("digest__startswith=0", "digest=0", "digest__regex=.", "created_at__year=-1", "tenant__name=x"),
        page("tokens_proxytoken_changelist"): ("secrets__gt=0", "networks=(", "name__regex=("),
        page("tokens_tenant_changelist"): ("api_keys__gt=0", "slug__startswith=t"),
        page("usage_usagerecord_changelist"): ("price_id=1", "price__isnull=0", "provider_cost__gt=1", "cost__gt=1"),
    }
    for listed, lookups in asked.items():
        assert boss.get(listed).status_code == 200
        for lookup in lookups:
            assert boss.get(f"{listed}?{lookup}").status_code == 400, lookup
        assert boss.get(f"{listed}?tenant__id__exact=a%00b").headers["Location"].endswith("?e=1")
    text = boss.get(f"{keys}?digest=0").text
    assert "This can&#x27;t be read" in text
    assert boss.get(f"{keys}?tenant__id__exact={customer.tenant.pk}&state=active").status_code == 200, "the control"
    assert admin.get(f"{page('tokens_user_changelist')}?password__startswith=pbkdf2").status_code == 400
    for model, ours in site._registry.items():  # what the filters of each list write into addresses
        listed = page(f"{model._meta.label_lower.replace('.', '_')}_changelist")
        found = admin.get(listed)
        names = {name for one in found.context["cl"].filter_specs for name in one.expected_parameters() if name}
        assert all(ours.lookup_allowed(name, "1", found.wsgi_request) for name in names), f"{listed}: {names}"


def test_the_platforms_people_are_not_named_to_a_tenants(
    hire: Callable[..., Person], admin: Client, operator: User, customer: Customer
) -> None:
    boss = hire(customer.tenant)
    (key, secret), (theirs, _) = (
        apikeys.issue("tests", ["tokens:write"], customer.tenant, str(who)) for who in (boss.user, operator)
    )
    by = {str(operator): "platform staff", str(boss.user): str(boss.user), key.actor: key.actor, "x": "platform staff"}
    for name, shown in by.items():
        token, _ = issuing.issue_token(customer.member, "n", created_by=name)
        stopping.revoke(token.pk, name, "left")
        change = page("tokens_proxytoken_change", token.pk)
        text = boss.browser.get(change).text
        assert text.count(f" by {shown}<") == 2, name
        assert name in {shown, "x"} or name not in text
        assert name in admin.get(change).text
        answer = Client().get(f"/api/tokens/{token.pk}", headers={"Authorization": f"Bearer {secret}"})
        assert answer.json()["created_by"] == shown
    apikeys.revoke(theirs, str(operator))
    for row, named in ((key, str(boss.user)), (theirs, "platform staff")):
        text = boss.browser.get(page("tokens_apikey_change", row.pk)).text
        assert named in text
        assert str(operator) not in text


# People and the command line


def test_a_platform_administrator_gives_the_platforms_roles(admin: Client, customer: Customer) -> None:
    user = User.objects.create_user(email())
    change = page("tokens_user_change", user.pk)
    fields = {"email": user.email, "first_name": "", "last_name": "", "is_active": "on"}
    assert admin.post(change, fields | rows("memberships") | {"is_finance": "on"}).status_code == 302
    user = User.objects.get(pk=user.pk)
    assert (user.is_finance, user.is_superuser, user.is_staff) == (True, False, True)
    roles.set_role(issuing.add_member(customer.tenant, user.email), Role.VIEWER)
    listed = admin.get(f"{page('tokens_user_changelist')}?q={user.email}").text
    assert f"Finance, Viewer of {customer.tenant.slug}" in listed
    shown = admin.get(change).text
    assert "none, so they can&#x27;t sign in" in shown
    assert "algorithm" not in shown, "nothing of how a password is kept"


def test_people_are_found_by_their_role(admin: Client, customer: Customer) -> None:
    mark = uuid.uuid4().hex
    names = ("platform", "finance", "tenant", "none")
    users = {name: User.objects.create_user(f"{name}-{mark}@roles.test") for name in names}
    for name, flag in (("platform", "is_superuser"), ("finance", "is_finance")):
        setattr(users[name], flag, True)
        users[name].save()
    roles.set_role(issuing.add_member(customer.tenant, users["tenant"].email), Role.VIEWER)
    for name in names:
        found = admin.get(f"{page('tokens_user_changelist')}?q={mark}&role={name}").context["cl"].result_list
        assert [user.pk for user in found] == [users[name].pk], name


@pytest.mark.parametrize("name", ["tokens_user", "tokens_membership"])
def test_lists_of_people_ask_no_more_for_more_of_them(admin: Client, customer: Customer, name: str) -> None:
    mark = uuid.uuid4().hex
    address = f"{page(f'{name}_changelist')}?q={mark}"

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert admin.get(address).status_code == 200
        return len(captured)

    issuing.add_member(customer.tenant, f"0-{mark}@roles.test")
    few = queries()
    for number in range(1, 21):
        member = issuing.add_member(customer.tenant, f"{number}-{mark}@roles.test")
        roles.set_role(member, Role.VIEWER)
    assert queries() == few


def test_roles_on_the_command_line(customer: Customer, capsys: pytest.CaptureFixture[str]) -> None:
    slug, who = customer.tenant.slug, customer.member.user.email
    call_command("member", "role", "--tenant", slug, "--user", who, "--role", "administrator")
    captured = capsys.readouterr()
    assert captured.out == f"{who} is administrator in {slug}.\n"
    assert "changepassword" in captured.err
    customer.member.refresh_from_db()
    assert customer.member.role == "administrator"
    call_command("member", "list", "--tenant", slug)
    assert f"{who}\tadministrator\tactive\tno password" in capsys.readouterr().out
    call_command("user", "list")
    assert f"{who}\tAdministrator of {slug}\tactive\tnever" in capsys.readouterr().out
    call_command("member", "role", "--tenant", slug, "--user", who, "--role", "none")
    assert capsys.readouterr().out == f"{who} has no role in {slug}.\n"
    new = email()
    call_command("member", "add", "--tenant", slug, "--user", new, "--role", "viewer")
    assert customer.tenant.members.get(user__email=new).role == "viewer"
    captured = capsys.readouterr()
    assert captured.out == f"{new} is a member of {slug}, viewer.\n"
    assert "changepassword" in captured.err
    call_command("member", "suspend", "--tenant", slug, "--user", new)
    assert not User.objects.get(email=new).is_staff
    call_command("member", "activate", "--tenant", slug, "--user", new)
    assert User.objects.get(email=new).is_staff
    call_command("user", "finance", new, "on")
    assert User.objects.get(email=new).is_finance
    call_command("user", "finance", new.upper(), "off")
    assert not User.objects.get(email=new).is_finance
    call_command("user", "administrator", email(), "on")
    with pytest.raises(CommandError, match="There is no user"):
        call_command("user", "finance", email(), "off")
    with pytest.raises(CommandError, match="has no member"):
        call_command("member", "role", "--tenant", slug, "--user", email(), "--role", "viewer")


# Controls


def test_control_an_action_that_asks_for_no_row_is_caught(
    hire: Callable[..., Person], make_customer: Callable[..., Customer], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = make_customer(), make_customer()
    boss = hire(ours.tenant)
    revoke = page("tokens_proxytoken_revoke", other.token.pk)
    monkeypatch.setattr(OwnRows, "_may", lambda *_: True)
    assert boss.browser.post(revoke, {"reason": "x"}).status_code == 404, "the narrowed rows stop it, too"
    monkeypatch.setattr(OwnRows, "limited", lambda *asked: asked[2])
    assert boss.browser.post(revoke, {"reason": "x"}).status_code == 302
    assert ProxyToken.objects.get(pk=other.token.pk).status == "revoked"


def test_control_a_published_role_is_caught(customer: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    version = customer.member.version
    monkeypatch.setattr(Membership, "UNPUBLISHED", frozenset[Any]())
    roles.set_role(customer.member, Role.VIEWER)
    customer.member.refresh_from_db()
    assert customer.member.version == version + 1

"""The verbs of tokens.issuing and tokens.stopping, and what the admission store knows once they have answered."""

import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import connection, transaction

from config.redis import store
from tests.conftest import Customer
from tokens import control, issuing, limits, records, secrets, stopping
from tokens.admission import keys
from tokens.admission.principal import Principal, locate, read_principal
from tokens.errors import Refused
from tokens.models import Limit, Membership, ProxyToken, Secret, Status, Tenant, TokenStatus, User
from tokens.outbox import OutboxEntry

HOUR = dt.timedelta(hours=1)


def principal(secret: str) -> Principal | None:
    """Who the store says presents `secret`; None for nobody."""
    pepper = settings.TOKEN_PEPPERS[max(settings.TOKEN_PEPPERS)]
    raw: Any = store().get(keys.locator(secrets.digest(secret, pepper)))
    if raw is None:
        return None
    shard, tenant, member, token, _ = found = locate(raw)
    hashes: list[Any] = [
        store().hgetall(name)
        for name in (keys.token(shard, token), keys.member(shard, member), keys.tenant(shard, tenant))
    ]
    return read_principal(found, *hashes)


def works(secret: str) -> bool:
    """Whether the store would let `secret` call now."""
    found = principal(secret)
    return found is not None and found.accepted(time.time())


def unique_imported_secret() -> str:
    return f"former-{uuid.uuid4().hex}"


def test_an_issued_token_works_when_issue_returns(customer: Customer) -> None:
    token, secret = issuing.issue_token(
        customer.member, "ci", networks=["203.0.113.0/24"], limit_texts=["images:5/day", "requests:60/minute:burst=9"]
    )
    found = principal(secret)
    assert found is not None and found.accepted(time.time())
    assert (found.tenant, found.member, found.token) == (customer.tenant.pk, customer.member.pk, token.pk)
    assert [(scoped.scope, scoped.limit.metric, scoped.limit.burst) for scoped in found.limits] == [
        ("token", "images", 0),
        ("token", "requests", 9),
    ]
    assert not OutboxEntry.objects.filter(tenant_id=customer.tenant.pk).exists()


def test_no_store_holds_the_secret(customer: Customer) -> None:
    body = customer.secret[len(secrets.PREFIX) + 6 :]
    row = Secret.objects.filter(token=customer.token).values().get()
    assert body not in str(row)
    assert row["shown"] == customer.secret[:10]
    held = [store().hgetall(records.key_of(customer.token.entry())), *store().scan_iter(match=f"*{body}*")]
    assert body not in str(held)


def test_a_token_expires_and_one_that_has_expired_is_refused(customer: Customer) -> None:
    at = dt.datetime.now(dt.UTC)
    _, secret = issuing.issue_token(customer.member, "short", expires_at=at + HOUR)
    found = principal(secret)
    assert found is not None
    assert found.accepted(at.timestamp()) and not found.accepted((at + HOUR).timestamp())
    with pytest.raises(Refused, match="expired already"):
        issuing.issue_token(customer.member, "late", expires_at=at)


def test_an_imported_secret_works_once(customer: Customer) -> None:
    secret = unique_imported_secret()
    token = issuing.import_token(customer.member, "former", secret)
    assert works(secret)
    assert token.secrets.get().shown == "form"
    with pytest.raises(Refused, match="known already"):
        issuing.import_token(customer.member, "again", secret)
    assert not ProxyToken.objects.filter(tenant=customer.tenant, name="again").exists()


@pytest.mark.parametrize(
    "secret", ["short", "x" * 19, "x" * 256, "with a blank in it, long", "gem_" + "x" * 46, "ü" * 30]
)
def test_what_cannot_be_imported(customer: Customer, secret: str) -> None:
    with pytest.raises(Refused) as refused:
        issuing.import_token(customer.member, "former", secret)
    assert secret not in str(refused.value)


def test_rotation_never_leaves_more_than_two_secrets(customer: Customer) -> None:
    second = issuing.rotate(customer.token, HOUR)
    assert works(customer.secret) and works(second)
    third = issuing.rotate(customer.token, HOUR)
    assert (works(customer.secret), works(second), works(third)) == (False, True, True)
    found = principal(second)
    assert found is not None and not found.accepted(time.time() + 3600)
    fourth = issuing.rotate(customer.token, dt.timedelta())
    assert (works(second), works(third), works(fourth)) == (False, False, True)
    assert Secret.objects.filter(token=customer.token, ended_at=None).count() == 1


def test_grace_ends_early(customer: Customer) -> None:
    new = issuing.rotate(customer.token, HOUR)
    issuing.end_grace(customer.token)
    assert (works(customer.secret), works(new)) == (False, True)
    with pytest.raises(Refused, match="no old secret"):
        issuing.end_grace(customer.token)


def test_revocation_is_final(customer: Customer) -> None:
    stale = ProxyToken.objects.get(pk=customer.token.pk)
    assert stopping.revoke(customer.token.pk, "alice@example.com", "lost laptop") is True
    assert not works(customer.secret)
    stale.name = "renamed by somebody who saw it active"
    stale.save()
    assert not works(customer.secret)
    row = ProxyToken.objects.get(pk=customer.token.pk)
    assert (row.status, row.revoked_by, row.revoke_reason) == (TokenStatus.REVOKED, "alice@example.com", "lost laptop")
    assert row.name == stale.name and row.revoked_at is not None
    stopping.revoke(customer.token.pk, "bob@example.com")
    assert ProxyToken.objects.get(pk=customer.token.pk).revoked_by == "alice@example.com"
    with pytest.raises(Refused, match="final"):
        issuing.rotate(customer.token, HOUR)
    assert control.pending_order(customer.token.entry()) is None


def test_a_token_that_only_the_database_knows_is_revoked_too(customer: Customer) -> None:
    store().delete(records.key_of(customer.token.entry()))
    assert stopping.revoke(customer.token.pk, "alice@example.com") is True
    assert not works(customer.secret) and principal(customer.secret) is not None


def test_revoking_what_does_not_exist_is_refused() -> None:
    with pytest.raises(Refused, match="no token 999999999"):
        stopping.revoke(999_999_999, "alice@example.com")


def test_a_tenant_is_suspended_and_activated(customer: Customer) -> None:
    assert stopping.suspend_tenant(customer.tenant.slug, "alice@example.com") is True
    assert not works(customer.secret)
    assert Tenant.objects.get(pk=customer.tenant.pk).status == Status.SUSPENDED
    assert control.pending_order(customer.tenant.entry()) is None
    customer.limit("images:5/day")
    assert not works(customer.secret)
    stopping.activate_tenant(customer.tenant.slug)
    assert works(customer.secret)
    with pytest.raises(Refused, match="no tenant"):
        stopping.suspend_tenant("there-is-none", "alice@example.com")


def test_a_member_is_suspended_and_activated(customer: Customer) -> None:
    stopping.suspend_member(customer.member)
    assert not works(customer.secret)
    stopping.activate_member(customer.member)
    assert works(customer.secret)


def test_an_order_that_the_database_missed_is_made_durable(customer: Customer) -> None:
    """As after a crash between the store's answer and the database's."""
    order = control.Order("revoked", time.time(), "alice@example.com", "leaked")
    stop = control.Order("suspended", time.time(), "alice@example.com")
    assert control.carry_out(customer.token.entry(), order) and control.carry_out(customer.tenant.entry(), stop)
    customer.tenant.name = "saved meanwhile by somebody who saw it active"
    customer.tenant.save()
    assert not works(customer.secret)
    stopping.apply_orders()
    token, tenant = ProxyToken.objects.get(pk=customer.token.pk), Tenant.objects.get(pk=customer.tenant.pk)
    assert (token.status, token.revoked_by, token.revoke_reason) == ("revoked", "alice@example.com", "leaked")
    assert tenant.status == Status.SUSPENDED
    assert control.pending_order(customer.token.entry()) is control.pending_order(customer.tenant.entry()) is None


def test_an_activation_outranks_a_suspension_that_waits(customer: Customer) -> None:
    stop = control.Order("suspended", time.time(), "alice@example.com")
    control.carry_out(customer.tenant.entry(), stop)
    stopping.activate_tenant(customer.tenant.slug)
    stopping.apply_orders()
    assert works(customer.secret)


def test_an_order_outlives_a_transaction_that_fails_around_the_verb(customer: Customer) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        stopping.suspend_tenant(customer.tenant.slug, "alice@example.com")
        raise ZeroDivisionError
    assert not works(customer.secret) and control.pending_order(customer.tenant.entry()) is not None
    stopping.apply_orders()
    assert Tenant.objects.get(pk=customer.tenant.pk).status == Status.SUSPENDED


def test_members_are_added_once_and_cannot_sign_in(customer: Customer) -> None:
    email = f"{uuid.uuid4().hex}@Example.COM"
    member = issuing.add_member(customer.tenant, f" {email} ")
    assert issuing.add_member(customer.tenant, email.lower()) == member
    assert member.user.email == email.lower() and not member.user.has_usable_password()
    with pytest.raises(ValidationError):
        issuing.add_member(customer.tenant, "not an address")


def test_fields_that_break_their_rules(customer: Customer) -> None:
    with pytest.raises(ValidationError, match="time zone"):
        issuing.create_tenant(f"z{uuid.uuid4().hex}", "Zone", "Europe/Atlantis")
    with pytest.raises(ValidationError, match="network"):
        issuing.issue_token(customer.member, "ci", networks=["203.0.113.5/24"])
    with pytest.raises(ValidationError, match="origin"):
        issuing.create_tenant(f"o{uuid.uuid4().hex}", "Origin", origins=["https://app.example/path"])
    with pytest.raises(ValidationError):
        issuing.issue_token(customer.member, "  ")


def test_a_changed_time_zone_begins_next_month(customer: Customer) -> None:
    tenant = Tenant.objects.get(pk=customer.tenant.pk)
    tenant.timezone = "Pacific/Auckland"
    tenant.save()
    tenant.refresh_from_db()
    assert (tenant.timezone, tenant.next_timezone) == ("UTC", "Pacific/Auckland")
    starts = tenant.next_timezone_from
    assert starts is not None and (starts.day, starts.hour, starts.minute) == (1, 0, 0)
    assert dt.timedelta() < starts - dt.datetime.now(dt.UTC) <= dt.timedelta(days=31)
    assert tenant.zone(starts - dt.timedelta(seconds=1)) == ZoneInfo("UTC")
    assert tenant.zone(starts) == ZoneInfo("Pacific/Auckland")
    tenant.save()
    assert (tenant.timezone, tenant.next_timezone, tenant.next_timezone_from) == ("UTC", "Pacific/Auckland", starts)
    found = principal(customer.secret)
    assert found is not None
    assert (found.calendar.next_zone, found.calendar.changes_at) == ("Pacific/Auckland", int(starts.timestamp()))
    with connection.cursor() as cursor:  # the month has turned
        cursor.execute("UPDATE tokens_tenant SET next_timezone_from = now() WHERE id = %s", [tenant.pk])
    tenant = Tenant.objects.get(pk=tenant.pk)
    tenant.save()
    assert (tenant.timezone, tenant.next_timezone, tenant.next_timezone_from) == ("Pacific/Auckland", "", None)


@pytest.mark.parametrize(
    "text", ["images:500/day", "requests:60/minute:burst=10", "tokens:2000000/month", "concurrent:8", "images:1/total"]
)
def test_limits_are_written_as_they_are_read(text: str) -> None:
    assert str(limits.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("images", "is not a limit"),
        ("images:five/day", "is not a limit"),
        ("images:-5/day", "is not a limit"),
        ("images:5/day:burst=", "is not a limit"),
        ("images:0/day", "from 1"),
        ("images:1000000000001/day", "from 1"),
        ("pictures:5/day", "can't be limited"),
        ("images:5", "needs a period"),
        ("images:5/week", "needs a period"),
        ("concurrent:5/day", "no period"),
        ("images:5/day:burst=3", "can't have a burst"),
        ("concurrent:5:burst=3", "can't have a burst"),
        ("requests:5/second:burst=0", "from 1"),
        ("requests:1000001/second", "too fast"),
        ("tokens:3600000001/hour", "too fast"),
        ("tokens:1/hour:burst=9000", "more than a year"),
    ],
)
def test_limits_that_cannot_be_kept(customer: Customer, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        limits.parse(text)
    with pytest.raises(Refused):
        issuing.set_limits(customer.tenant, ["images:5/day", text])
    assert not issuing.limits_of(customer.tenant).exists()


def test_the_forms_have_the_same_rules(customer: Customer, make_customer: Callable[..., Customer]) -> None:
    limit = Limit(tenant=customer.tenant, metric="images", period="day", amount=5, burst=3)
    with pytest.raises(ValidationError, match="burst"):
        limit.full_clean()
    limit = Limit(tenant=customer.tenant, member=make_customer().member, metric="images", period="day", amount=5)
    with pytest.raises(ValidationError, match="must belong"):
        limit.full_clean()


def test_a_limit_is_replaced_and_goes_on_counting_from_its_creation(customer: Customer) -> None:
    (first,) = issuing.set_limits(customer.token, ["images:5/total"])
    (second,) = issuing.set_limits(customer.token, ["images:9/total"])
    assert (second.pk, second.created_at, second.amount) == (first.pk, first.created_at, 9)
    with pytest.raises(Refused, match="given twice"):
        issuing.set_limits(customer.token, ["images:5/total", "images:6/total"])
    issuing.remove_limits(customer.token, ["images/total"])
    found = principal(customer.secret)
    assert found is not None and found.limits == ()
    with pytest.raises(Refused, match="no limit"):
        issuing.remove_limits(customer.token, ["images/total"])


def test_two_who_set_the_same_limit_at_once_make_one(customer: Customer) -> None:
    barrier, failures = threading.Barrier(4), []

    def set_it(amount: int) -> None:
        try:
            barrier.wait()
            issuing.set_limits(customer.tenant, [f"images:{amount}/day", f"tokens:{amount}/day"])
        except Exception as exc:
            failures.append(exc)
        finally:
            connection.close()

    threads = [threading.Thread(target=set_it, args=(amount,)) for amount in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    amounts = set(issuing.limits_of(customer.tenant).values_list("amount", flat=True))
    assert issuing.limits_of(customer.tenant).count() == 2 and len(amounts) == 1
    found = principal(customer.secret)
    assert found is not None and {scoped.limit.amount for scoped in found.limits} == amounts


def test_members_and_tokens_stay_where_they_are(customer: Customer, make_customer: Callable[..., Customer]) -> None:
    other = make_customer()
    customer.token.member = other.member
    with pytest.raises(ValidationError):
        customer.token.save()
    customer.token.tenant = other.tenant
    with pytest.raises(ValidationError):
        customer.token.save()
    customer.member.tenant = other.tenant
    with pytest.raises(ValidationError):
        customer.member.save()


@pytest.mark.parametrize("model", [Tenant, Membership, ProxyToken, Secret, Limit])
def test_bulk_changes_that_would_go_round_the_store_are_refused(model: Any, customer: Customer) -> None:
    field = {Membership: "status", Secret: "accepted_until", Limit: "amount"}.get(model, "name")
    with pytest.raises(TypeError, match="go round"):
        model.objects.filter(pk=-1).update(**{field: None})
    with pytest.raises(TypeError, match="go round"):
        model.objects.bulk_create([model()])
    row = model.objects.first() or model(pk=1)
    with pytest.raises(TypeError, match="go round"):
        model.objects.bulk_update([row], [field])


def test_bulk_changes_through_a_relation_are_refused_too(customer: Customer) -> None:
    with pytest.raises(TypeError, match="go round"):
        customer.tenant.tokens.update(name="all")
    before = ProxyToken.objects.get(pk=customer.token.pk).version
    Secret.objects.filter(token=customer.token).update(last_used_by="curl")
    assert ProxyToken.objects.get(pk=customer.token.pk).version == before


def test_a_user_signs_in_with_the_address_in_lower_case() -> None:
    user = User.objects.create_user(f"{uuid.uuid4().hex}@EXAMPLE.com", "a long password")
    assert user.email == user.email.lower() and str(user) == user.email

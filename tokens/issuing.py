"""The verbs that give a right to call: tenants, members, tokens with their secrets, limits.

Each changes PostgreSQL in one transaction and publishes after the commit: with the store up, what a verb returns
works at once; with the store down it works as soon as that is back. Verbs raise Refused, or ValidationError for a
field that breaks its rules.
"""

import datetime as dt
from collections.abc import Iterable, Sequence

from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils.timezone import now

from tokens import directory, limits, secrets
from tokens.errors import Refused
from tokens.models import Limit, Membership, ProxyToken, Secret, Tenant, TokenStatus, User
from tokens.planrow import PlanScope, limits_given

Scope = Tenant | Membership | ProxyToken

TOO_LATE = "The token would have expired already: choose a time to come."


@transaction.atomic
def create_tenant(
    slug: str,
    name: str,
    timezone: str = "UTC",
    *,
    origins: Sequence[str] = (),
    model: str = "",
    limit_texts: Iterable[str] = (),
) -> Tenant:
    """A new tenant; `timezone` is an IANA name, `limit_texts` are such as ``images:500/day``, "" the default model."""
    tenant = Tenant(slug=slug, name=name, timezone=timezone, origins=list(origins), model=model)
    tenant.full_clean()
    tenant.save()
    set_limits(tenant, limit_texts)
    return tenant


@transaction.atomic
def add_member(tenant: Tenant, email: str) -> Membership:
    """The member of a tenant with this e-mail address, made if there is none; a new user can't sign in."""
    email = email.strip().lower()
    validate_email(email)
    user, _ = User.objects.get_or_create(email=email, defaults={"password": make_password(None)})
    member, _ = Membership.objects.get_or_create(tenant=tenant, user=user)
    return member


@transaction.atomic
def issue_token(
    member: Membership,
    name: str,
    *,
    expires_at: dt.datetime | None = None,
    networks: Sequence[str] = (),
    limit_texts: Iterable[str] = (),
    created_by: str = "",
    model: str = "",
    secret: str = "",
    usual_limits: bool = True,
) -> tuple[ProxyToken, str]:
    """A new token and its secret, which is not stored and can't be shown again; `model` "" is the tenant's.

    Where `limit_texts` say nothing it starts with what the tenant's plan gives to each new token; `usual_limits` False:
    without that. `secret` is one of secrets.derive_secret, for a caller who can make it once more; otherwise a new one
    is made.
    """
    secret = secret or secrets.make_secret()
    token = _make_token(member, name, expires_at, networks, limit_texts, created_by, model)
    _add_secret(token, secret, imported=False)
    if usual_limits:
        start_with_plan(token)
    return token, secret


@transaction.atomic
def import_token(
    member: Membership,
    name: str,
    secret: str,
    *,
    expires_at: dt.datetime | None = None,
    networks: Sequence[str] = (),
    limit_texts: Iterable[str] = (),
    created_by: str = "",
    model: str = "",
    usual_limits: bool = True,
) -> ProxyToken:
    """A token whose secret a former system issued: 20 to 255 visible ASCII characters, not beginning with ``gem_``.

    Otherwise as `issue_token`.
    """
    if secret.startswith((secrets.PREFIX, secrets.API_PREFIX)):
        prefix = secret.partition("_")[0] + "_"
        raise Refused(f"A secret that begins with {prefix} is a gateway's own and can't be imported.")
    if not secrets.is_plausible(secret):
        raise Refused(
            f"A secret to import has {secrets.LEAST_IMPORTED_LENGTH} to {secrets.MOST_LENGTH} visible ASCII "
            "characters and no blanks."
        )
    token = _make_token(member, name, expires_at, networks, limit_texts, created_by, model)
    _add_secret(token, secret, imported=True)
    if usual_limits:
        start_with_plan(token)
    return token


def start_with_plan(token: ProxyToken) -> None:
    """Give a token that was just issued what its tenant's plan starts tokens with, but for limits that it has."""
    given = limits_given(token.tenant.plan, PlanScope.TOKEN)
    if given:
        for limit in limits_of(token):
            given.pop(limit.text().name, None)
        set_limits(token, map(str, given.values()))


def _make_token(
    member: Membership,
    name: str,
    expires_at: dt.datetime | None,
    networks: Sequence[str],
    limit_texts: Iterable[str],
    created_by: str,
    model: str,
) -> ProxyToken:
    if expires_at is not None and expires_at <= now():
        raise Refused(TOO_LATE)
    token = ProxyToken(
        tenant=member.tenant,
        member=member,
        name=name.strip(),
        expires_at=expires_at,
        networks=list(networks),
        model=model,
        created_by=created_by,
    )
    token.full_clean()
    token.save()
    set_limits(token, limit_texts)
    return token


def _add_secret(token: ProxyToken, secret: str, *, imported: bool) -> Secret:
    known = Refused("This secret is known already, and a secret belongs to one token only.")
    if Secret.objects.filter(digest__in=secrets.digests(secret, settings.TOKEN_PEPPERS)).exists():
        raise known
    version = max(settings.TOKEN_PEPPERS)
    # Of an imported secret whose length is our minimum, ten characters shown would be half of it.
    shown = secret[:4] if imported else secret[: secrets.SHOWN_CHARACTERS]
    try:
        with transaction.atomic():
            return Secret.objects.create(
                token=token,
                digest=secrets.digest(secret, settings.TOKEN_PEPPERS[version]),
                pepper_version=version,
                shown=shown,
                imported=imported,
            )
    except IntegrityError as exc:
        raise known from exc


def rotate(token: ProxyToken, grace: dt.timedelta) -> str:
    """Give a token a new secret; the one before is accepted for `grace` more, and one before that no longer.

    Returns the new secret, which can't be shown again: so this doesn't raise when the store is down, and then the old
    secret counts until it is back (`directory.is_waiting` tells).
    """
    if grace < dt.timedelta():
        raise Refused("The grace can't be negative.")
    secret = secrets.make_secret()
    at = now()
    with transaction.atomic():
        token = _lock(token)
        for old in token.secrets.filter(ended_at=None):
            if old.accepted_until is None and grace:
                old.accepted_until = at + grace
            else:
                old.ended_at = at
            old.save(update_fields=["accepted_until", "ended_at"])
        _add_secret(token, secret, imported=False)
    return secret


def end_grace(token: ProxyToken) -> None:
    """End the old secret of a rotated token now. When this returns, no admission with it succeeds.

    Raises Refused when there is none, StoreUnavailable when it ends only when the store is back.
    """
    at = now()
    with transaction.atomic():
        token = _lock(token)
        old = list(token.secrets.filter(ended_at=None, accepted_until__isnull=False))
        if not any(secret.accepted_until and secret.accepted_until > at for secret in old):
            raise Refused(f"Token {token.pk} has no old secret that is still accepted.")
        for secret in old:
            secret.ended_at = at
            secret.save(update_fields=["ended_at"])
    directory.require_published(token)


def _lock(token: ProxyToken) -> ProxyToken:
    locked = ProxyToken.objects.select_for_update(no_key=True).get(pk=token.pk)
    if locked.status == TokenStatus.REVOKED:
        raise Refused(f"Token {token.pk} is revoked, which is final. Issue another one.")
    return locked


def set_limits(scope: Scope, limit_texts: Iterable[str]) -> list[Limit]:
    """Set limits of a tenant, a member or a token; each replaces the one of the same metric and period.

    A changed total quota goes on counting from its creation.
    """
    wanted = [limits.parse(text) for text in limit_texts]
    names = [limit.name for limit in wanted]
    for name in names:
        if names.count(name) > 1:
            raise Refused(f"{name} is given twice.")
    with transaction.atomic():
        _lock_scope(scope)
        return [_set_limit(scope, limit) for limit in wanted]


def _set_limit(scope: Scope, wanted: limits.LimitText) -> Limit:
    limit = limits_of(scope).filter(metric=wanted.metric, period=wanted.period).first()
    if limit is not None and limit.text() == wanted and not limit.from_plan:
        return limit
    if limit is None:
        limit = Limit(**_columns(scope), metric=wanted.metric, period=wanted.period)
    limit.amount, limit.burst, limit.from_plan = wanted.amount, wanted.burst, False
    limit.full_clean()
    limit.save()
    return limit


def remove_limits(scope: Scope, names: Iterable[str]) -> None:
    """Remove limits by name, such as ``images/day`` or ``concurrent``. Raises Refused for one that isn't set."""
    with transaction.atomic():
        _lock_scope(scope)
        for name in names:
            metric, period = limits.parse_name(name)
            limit = limits_of(scope).filter(metric=metric, period=period).first()
            if limit is None:
                raise Refused(f"There is no limit {name} to remove.")
            if limit.from_plan:
                raise Refused(f"{name} comes with the tenant's plan: set another amount, or choose another plan.")
            limit.delete()


def limits_of(scope: Scope) -> QuerySet[Limit]:
    """The limits of exactly this scope: a tenant's don't include its members'."""
    return Limit.objects.filter(**_columns(scope)).order_by("pk")


def _columns(scope: Scope) -> dict[str, Tenant | Membership | ProxyToken | None]:
    """A limit's tenant, member and token."""
    if isinstance(scope, Tenant):
        return {"tenant": scope, "member": None, "token": None}
    member = scope if isinstance(scope, Membership) else None
    return {"tenant": scope.tenant, "member": member, "token": scope if isinstance(scope, ProxyToken) else None}


def _lock_scope(scope: Scope) -> None:
    """So that two who set the same limit at once do so one after the other."""
    type(scope)._default_manager.select_for_update(no_key=True).get(pk=scope.pk)

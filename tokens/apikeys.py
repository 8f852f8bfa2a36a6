"""Keys of the management API: made, recognised, ended.

A key's secret is ``gemf_`` + 40 base62 characters + 6 of checksum, kept as an HMAC under the peppers as a proxy
token's is. It opens no call: no proxy token begins so. The database decides at every request, so a revoked key is
refused by the next one.
"""

import datetime as dt
import hmac
from collections.abc import Sequence

from django.conf import settings
from django.db import transaction
from django.db.models import BooleanField, Exists, ExpressionWrapper, OuterRef, Q, QuerySet
from django.utils.timezone import now

from tokens import secrets
from tokens.errors import Refused
from tokens.models import ApiKey, Membership, Role, Tenant, User
from tokens.roles import HOLDS_ROLE

USE_NOTED_EVERY = dt.timedelta(minutes=1)
LENGTH = len(secrets.API_PREFIX) + secrets.RANDOM_CHARACTERS + secrets.CHECK_CHARACTERS
SHOWN_CHARACTERS = len(secrets.API_PREFIX) + 6

# Whether who gave a key could give it now: otherwise whoever left would still hold what they had made a key to. A
# suspended tenant's administrators count as ever; what its keys may do meanwhile is another question.
_ADMINISTERS = Membership.objects.filter(
    HOLDS_ROLE, role=Role.ADMINISTRATOR, user=OuterRef("giver"), tenant=OuterRef("tenant")
)
BACKED = Q(giver=None) | (Q(giver__is_active=True) & (Q(giver__is_superuser=True) | Exists(_ADMINISTERS)))


def issue(
    name: str,
    scopes: Sequence[str],
    tenant: Tenant | None,
    created_by: str = "",
    *,
    giver: User | None = None,
    expires_at: dt.datetime | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its secret, which can't be shown again. Raises ValidationError for a field that breaks its rules.

    `tenant` None: it opens all tenants' usage and tokens. It opens nothing while `giver`, the person who gives it,
    couldn't give it again; one from the command line has none.
    """
    secret = secrets.make_secret(secrets.API_PREFIX)
    version = max(settings.TOKEN_PEPPERS)
    key = ApiKey(
        name=name.strip(),
        tenant=tenant,
        scopes=sorted(set(scopes)),
        digest=secrets.digest(secret, settings.TOKEN_PEPPERS[version]),
        pepper_version=version,
        shown=secret[:SHOWN_CHARACTERS],
        created_by=created_by,
        giver=giver,
        expires_at=expires_at,
    )
    key.full_clean()
    key.save()
    return key, secret


def revoke(key: ApiKey, by: str) -> None:
    """End a key for good. Raises Refused when it is revoked already."""
    with transaction.atomic():
        current = ApiKey.objects.select_for_update().get(pk=key.pk)
        if current.revoked_at is not None:
            raise Refused(f"{current.name} is revoked already.")
        current.revoked_at, current.revoked_by = now(), by
        current.save(update_fields=["revoked_at", "revoked_by"])


def in_force() -> Q:
    """The keys that are neither revoked nor expired."""
    return Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=now()))


def with_backing(keys: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
    """The same keys, each with `backed`: whether who gave it could give it now."""
    return keys.annotate(backed=ExpressionWrapper(BACKED, output_field=BooleanField()))


def find(secret: str) -> ApiKey | None:
    """The key with that secret, unless it is revoked or expired, or who gave it may give no such key any more."""
    if not is_plausible(secret):
        return None
    digests = secrets.digests(secret, settings.TOKEN_PEPPERS)
    return ApiKey.objects.filter(in_force(), BACKED, digest__in=digests).select_related("tenant").first()


def is_plausible(secret: str) -> bool:
    """Whether it can be a key's secret, decided without a look-up: prefix, length and checksum."""
    if not (secret.startswith(secrets.API_PREFIX) and len(secret) == LENGTH and secret.isascii()):
        return False
    body, check = secret[: -secrets.CHECK_CHARACTERS], secret[-secrets.CHECK_CHARACTERS :]
    return hmac.compare_digest(secrets.checksum(body), check)


def note_use(key: ApiKey, address: str) -> None:
    """Remember when and from where a key was used, at most once a minute."""
    at = now()
    if key.last_used_at is None or key.last_used_at < at - USE_NOTED_EVERY or key.last_used_from != (address or None):
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=at, last_used_from=address or None)

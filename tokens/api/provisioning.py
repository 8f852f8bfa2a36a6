"""Issuing a token once, however often automation asks for it under the same idempotency key.

A lost answer must not be a lost secret, and a secret is stored nowhere. So under an idempotency key the token's secret
is derived: from the API key's secret and the idempotency key, which only the client has, and from a nonce of ours,
which is deleted after a day. The same request then returns the same token and the same secret.
"""

import datetime as dt
import hashlib
import re
import secrets as system_random
from typing import Any, NamedTuple

import msgspec
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils.timezone import now

from tokens import issuing, secrets
from tokens.api.errors import ApiProblem, invalid
from tokens.management.base import parse_expiry
from tokens.models import ApiKey, IssueReceipt, ProxyToken, Secret, Tenant, TokenStatus
from tokens.offering import require_offered

KEPT = dt.timedelta(hours=24)
DELETED_AT_ONCE = 500
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class Issued(NamedTuple):
    """A token with its secret; `repeated` when it was issued before. The secret is None once it has ended."""

    token: ProxyToken
    secret: str | None
    repeated: bool


class Caller(NamedTuple):
    """The API key, its secret as presented, and who it is in words."""

    key: ApiKey
    secret: str
    name: str


def provision(caller: Caller, tenant: Tenant, wanted: dict[str, Any], idempotency_key: str | None) -> Issued:
    """Issue the token that a request describes (fields of forms.TokenRequest).

    Raises ApiProblem (400, 422), Refused and ValidationError.
    """
    with transaction.atomic():
        if idempotency_key is None:
            return Issued(*_issue(caller, tenant, wanted, ""), repeated=False)
        if not _KEY.fullmatch(idempotency_key):
            raise invalid("Idempotency-Key: It must have 1 to 255 visible ASCII characters.")
        receipt, known = _receipt(caller, tenant, wanted, idempotency_key)
        secret = _derive(caller, receipt, idempotency_key)
        if known:
            return _repeat(receipt, secret)
        token, _ = _issue(caller, tenant, wanted, secret)
        receipt.token = token
        receipt.save(update_fields=["token"])
        return Issued(token, secret, repeated=False)


def _issue(caller: Caller, tenant: Tenant, wanted: dict[str, Any], secret: str) -> tuple[ProxyToken, str]:
    expires = wanted["expires"].strip()
    return issuing.issue_token(
        issuing.add_member(tenant, wanted["user"]),
        wanted["name"],
        expires_at=parse_expiry(expires, tenant, now()) if expires else None,
        networks=wanted["networks"],
        limit_texts=wanted["limits"],
        created_by=caller.name[:254],
        model=require_offered(wanted["model"]),
        secret=secret,
        usual_limits=wanted["usual_limits"],
    )


def _receipt(caller: Caller, tenant: Tenant, wanted: dict[str, Any], key: str) -> tuple[IssueReceipt, bool]:
    """The receipt under this idempotency key, and whether it was there. Who comes second waits for the first."""
    _forget_old()
    fingerprint = hashlib.sha256(msgspec.json.encode([tenant.pk, sorted(wanted.items())])).hexdigest()
    hashed = hashlib.sha256(f"{caller.key.pk}\n{key}".encode()).hexdigest()
    try:
        with transaction.atomic():
            nonce = system_random.token_hex(32)
            made = IssueReceipt(api_key=caller.key, key_hash=hashed, fingerprint=fingerprint, nonce=nonce)
            made.save(force_insert=True)
            return made, False
    except IntegrityError:
        found = IssueReceipt.objects.select_related("token").get(api_key=caller.key, key_hash=hashed)
    if found.fingerprint != fingerprint:
        text = "This Idempotency-Key was used with another request."
        raise ApiProblem(422, "idempotency_mismatch", text)
    return found, True


def _derive(caller: Caller, receipt: IssueReceipt, key: str) -> str:
    return secrets.derive_secret(caller.secret.encode(), f"provision\n{receipt.nonce}\n{key}".encode())


def _repeat(receipt: IssueReceipt, secret: str) -> Issued:
    token = receipt.token
    if token is None:
        raise ApiProblem(404, "not_found", "The token that was issued under this Idempotency-Key is gone.")
    digests = secrets.digests(secret, settings.TOKEN_PEPPERS)
    current = Secret.objects.filter(token=token, digest__in=digests, ended_at=None).exists()
    works = current and token.status == TokenStatus.ACTIVE
    return Issued(token, secret if works else None, repeated=True)


def _forget_old() -> None:
    old = IssueReceipt.objects.filter(created_at__lt=now() - KEPT).order_by("created_at").values_list("pk", flat=True)
    IssueReceipt.objects.filter(pk__in=list(old[:DELETED_AT_ONCE])).delete()

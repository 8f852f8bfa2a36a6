"""A token's status as people see it, for one token and as a filter of the list."""

import datetime as dt
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.utils.timezone import now
from unfold.contrib.filters.admin import DropdownFilter

from tokens.models import ProxyToken, Secret, Status, TokenStatus

SOON = dt.timedelta(days=14)
TEXTS = {
    "active": "Active",
    "unused": "Never used",
    "soon": "Expires within 14 days",
    "grace": "In grace",
    "suspended": "Suspended",
    "expired": "Expired",
    "revoked": "Revoked",
}
COLOURS = {
    "active": "success",
    "unused": "info",
    "soon": "warning",
    "grace": "warning",
    "suspended": "danger",
    "expired": "danger",
    "revoked": "danger",
}


def live_secrets(token: ProxyToken, at: dt.datetime) -> list[Secret]:
    """The secrets that are accepted at that moment, newest first."""
    secrets = [secret for secret in token.secrets.all() if secret.ended_at is None]
    return [secret for secret in secrets if secret.accepted_until is None or secret.accepted_until > at]


def last_used_at(token: ProxyToken) -> dt.datetime | None:
    """When any of its secrets was last used, as far as the books know."""
    return max((secret.last_used_at for secret in token.secrets.all() if secret.last_used_at), default=None)


def last_used_in_words(token: ProxyToken) -> str:
    """When, from where and by what it was last used."""
    used = [secret for secret in token.secrets.all() if secret.last_used_at is not None]
    if not used:
        return "never, as far as the books know"
    last = max(used, key=lambda secret: secret.last_used_at or secret.created_at)
    by = f" by {last.last_used_by}" if last.last_used_by else ""
    return f"{last.last_used_at:%Y-%m-%d %H:%M} UTC, from {last.last_used_from or 'an unknown address'}{by}"


def status_of(token: ProxyToken) -> str:
    """One of TEXTS: what matters most comes first. "suspended": by its member or tenant."""
    at = now()
    if token.status == TokenStatus.REVOKED:
        return "revoked"
    if token.expires_at is not None and token.expires_at <= at:
        return "expired"
    if Status.SUSPENDED in (token.tenant.status, token.member.status):
        return "suspended"
    if len(live_secrets(token, at)) > 1:
        return "grace"
    if token.expires_at is not None and token.expires_at <= at + SOON:
        return "soon"
    return "active" if last_used_at(token) else "unused"


class StatusFilter(DropdownFilter):
    """Tokens by what can be said of them; a token may be listed under several."""

    title = "status"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """All there are."""
        return list(TEXTS.items())

    def queryset(self, request: HttpRequest, queryset: QuerySet[ProxyToken]) -> QuerySet[ProxyToken]:
        """Narrow the list."""
        at = now()
        secrets = Secret.objects.filter(token=OuterRef("pk"))
        alive = Q(status=TokenStatus.ACTIVE) & (Q(expires_at=None) | Q(expires_at__gt=at))
        conditions = {
            "active": alive & Q(tenant__status=Status.ACTIVE, member__status=Status.ACTIVE),
            "unused": alive & ~Exists(secrets.filter(last_used_at__isnull=False)),
            "soon": alive & Q(expires_at__lte=at + SOON),
            "grace": alive & Exists(secrets.filter(ended_at=None, accepted_until__gt=at)),
            "suspended": alive & (Q(tenant__status=Status.SUSPENDED) | Q(member__status=Status.SUSPENDED)),
            "expired": Q(status=TokenStatus.ACTIVE, expires_at__lte=at),
            "revoked": Q(status=TokenStatus.REVOKED),
        }
        condition = conditions.get(self.value() or "")
        return queryset if condition is None else queryset.filter(condition)

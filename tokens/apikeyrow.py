"""The rows that are keys of the management API, and what was issued under an idempotency key of theirs."""

from collections.abc import Collection
from typing import ClassVar, Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.validators import RegexValidator
from django.db import models
from django.utils.timezone import now

from tokens.audit import Verb
from tokens.audited import Audited


class ApiScope(models.TextChoices):
    """What a key opens."""

    USAGE_READ = "usage:read", "Read usage: GET /api/usage"
    TOKENS_WRITE = "tokens:write", "Issue, list and revoke proxy tokens: /api/tokens"


class ApiKey(Audited):
    """What finance's tools and automation present to the management API. Only a digest of its secret is kept."""

    VERB_WHEN_NEW = Verb.ISSUED
    UNAUDITED: ClassVar[frozenset[str]] = frozenset({"last_used_at", "last_used_from"})
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"digest"})

    name = models.CharField(
        max_length=100,
        validators=[RegexValidator(r"\S", "Give it a name that can be read.")],
        help_text="What it is for, such as: SAP export.",
    )
    tenant = models.ForeignKey(
        "tokens.Tenant",
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="api_keys",
        help_text="The one tenant whose usage and tokens it opens. Empty: those of all tenants.",
    )
    scopes = ArrayField(models.CharField(max_length=32, choices=ApiScope), verbose_name="may")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    pepper_version = models.PositiveIntegerField(editable=False)
    shown = models.CharField("first characters", max_length=16, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)
    created_by = models.CharField(max_length=254, blank=True, editable=False)
    giver = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        null=True,
        editable=False,
        related_name="+",
        verbose_name="given by",
        help_text="Who gave it in the admin: it opens nothing once they may not give it any more. Empty: an operator.",
    )
    expires_at = models.DateTimeField("expires", null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)
    revoked_by = models.CharField(max_length=254, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, editable=False)
    last_used_from = models.GenericIPAddressField(null=True, editable=False)

    class Meta:
        verbose_name = "API key"
        verbose_name_plural = "API keys"
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.name

    @property
    def actor(self) -> str:
        """Who acts when it is used, for what is changed."""
        return f"API key {self.name} ({self.shown}…)"

    @property
    def state(self) -> str:
        """Of itself: active, expired or revoked. Who gave it is looked at when it is used (tokens.apikeys)."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now() else "active"

    def audit_verb(self, before: Self | None, changed: Collection[str]) -> str | None:
        """Revoking it has a word of its own."""
        if before is not None and "revoked_at" in changed and self.revoked_at is not None:
            return Verb.REVOKED
        return super().audit_verb(before, changed)


class IssueReceipt(models.Model):
    """That a key has issued a token under an idempotency key, so that a repeat returns that token and its secret.

    The secret follows from the API key's secret, the idempotency key and this row's nonce (secrets.derive_secret).
    None of the first two is stored: whoever has the database, or the database and the peppers, can't make it.
    """

    api_key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, related_name="+")
    key_hash = models.CharField(max_length=64)
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of the request, as it was read.")
    nonce = models.CharField(max_length=64)
    token = models.ForeignKey("tokens.ProxyToken", on_delete=models.CASCADE, null=True, related_name="+")
    created_at = models.DateTimeField(default=now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["api_key", "key_hash"], name="one_receipt_per_idempotency_key")]
        indexes = [models.Index(fields=["created_at"], name="receipts_of_a_time")]

    def __str__(self) -> str:
        return f"receipt {self.pk}"

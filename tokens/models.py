"""Tenants, their members, proxy tokens with their secrets, and limits.

Whatever decides a call is published to the admission store (tokens.outbox, tokens.directory). Each of Tenant,
Membership and ProxyToken carries a `version` that every such change raises, by the verbs in tokens.issuing and
tokens.stopping or by `save()` and `delete()`; bulk updates are refused, they would leave the store with the old truth.
"""

import datetime as dt
import zoneinfo
from collections.abc import Collection, Iterable
from typing import Any, Self

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.db.models.signals import pre_delete
from django.utils.timezone import now

from tokens import limits
from tokens.limits import Metric as Metric
from tokens.limits import Period as Period
from tokens.outbox import Entry, Kind, Part, Published, note_deletion
from tokens.outbox import OutboxEntry as OutboxEntry
from tokens.users import User as User
from tokens.validators import validate_model_name, validate_network, validate_origin, validate_timezone


class Status(models.TextChoices):
    """Whether a tenant or a member may call."""

    ACTIVE = "active", "Active"
    SUSPENDED = "suspended", "Suspended"


class Tenant(Published):
    """A customer: members, tokens, limits, a calendar, and the web origins its browser clients come from."""

    slug = models.SlugField(max_length=63, unique=True, help_text="Short name for commands and reports. It stays.")
    name = models.CharField(max_length=200)
    status = models.CharField(max_length=16, choices=Status, default=Status.ACTIVE)
    timezone = models.CharField(
        "time zone",
        max_length=64,
        default="UTC",
        validators=[validate_timezone],
        help_text="Days and months of quotas and reports are this zone's. A change takes effect next month.",
    )
    next_timezone = models.CharField(max_length=64, blank=True, editable=False)
    next_timezone_from = models.DateTimeField(null=True, editable=False)
    origins = ArrayField(
        models.CharField(max_length=255, validators=[validate_origin]),
        default=list,
        blank=True,
        verbose_name="allowed origins",
        help_text="Web origins whose pages may call, such as https://app.example, separated by commas. * allows all.",
    )
    model = models.CharField(
        max_length=100,
        blank=True,
        validators=[validate_model_name],
        help_text="The model that answers its calls. Empty: the gateway's default model.",
    )
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.name

    def zone(self, at: dt.datetime) -> zoneinfo.ZoneInfo:
        """The tenant's time zone at an aware moment: a changed one begins with `next_timezone_from`."""
        changed = self.next_timezone_from is not None and at >= self.next_timezone_from
        return zoneinfo.ZoneInfo(self.next_timezone if changed else self.timezone)

    def entry(self) -> Entry:
        """The tenant's record."""
        return Entry(Kind.TENANT, self.pk, self.pk)

    def prepare(self, stored: Self | None, changed: Collection[str]) -> Iterable[str]:
        """Let a changed time zone begin with the next month of the one in force, so that no open period changes.

        Saving the zone in force by name (`update_fields`) cancels a change that has yet to begin.
        """
        if stored is None:
            return ()
        at = now()
        current = stored.zone(at).key
        pending = stored.next_timezone if stored.next_timezone != current else ""
        wanted = self.timezone if "timezone" in changed else pending
        self.timezone, self.next_timezone, self.next_timezone_from = current, "", None
        if wanted and wanted != current:
            zone = zoneinfo.ZoneInfo(current)
            month = (at.astimezone(zone).replace(day=1) + dt.timedelta(days=32)).replace(day=1)
            starts = month.replace(hour=0, minute=0, second=0, microsecond=0, fold=0).astimezone(dt.UTC)
            self.next_timezone = wanted
            self.next_timezone_from = stored.next_timezone_from if wanted == pending else starts
        return ("timezone", "next_timezone", "next_timezone_from")


class Membership(Published):
    """A member: a user in a tenant."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="members")
    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="memberships")
    status = models.CharField(max_length=16, choices=Status, default=Status.ACTIVE)
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        verbose_name = "member"
        ordering = ["tenant", "user"]
        constraints = [models.UniqueConstraint(fields=["tenant", "user"], name="one_membership_per_user_and_tenant")]

    def __str__(self) -> str:
        return f"{self.user.email} ({self.tenant.slug})"

    def entry(self) -> Entry:
        """The member's record."""
        return Entry(Kind.MEMBER, self.pk, self.tenant_id)

    def prepare(self, stored: Self | None, changed: Collection[str]) -> Iterable[str]:
        """Keep the member in its tenant: tokens and the books refer to it there."""
        if stored is not None and (stored.tenant_id, stored.user_id) != (self.tenant_id, self.user_id):
            raise ValidationError("A member stays who it is, in its tenant. Add another member instead.")
        return ()


class TokenStatus(models.TextChoices):
    """A token's life: revoked is final."""

    ACTIVE = "active", "Active"
    REVOKED = "revoked", "Revoked"


REVOCATION = ("status", "revoked_at", "revoked_by", "revoke_reason")


class ProxyToken(Published):
    """What a client app presents instead of a provider key. It has one secret, during rotation two."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="tokens")
    member = models.ForeignKey(Membership, on_delete=models.PROTECT, related_name="tokens")
    name = models.CharField(max_length=100, validators=[RegexValidator(r"\S", "Give it a name that can be read.")])
    status = models.CharField(max_length=16, choices=TokenStatus, default=TokenStatus.ACTIVE, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Empty: it doesn't expire.")
    networks = ArrayField(
        models.CharField(max_length=50, validators=[validate_network]),
        default=list,
        blank=True,
        verbose_name="allowed networks",
        help_text="Client addresses that may use it, such as 203.0.113.0/24, separated by commas. Empty: all.",
    )
    created_at = models.DateTimeField(default=now, editable=False)
    created_by = models.CharField(max_length=254, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)
    revoked_by = models.CharField(max_length=254, blank=True, editable=False)
    revoke_reason = models.CharField(max_length=200, blank=True, editable=False)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.name} (token {self.pk})"

    def entry(self) -> Entry:
        """The token's record."""
        return Entry(Kind.TOKEN, self.pk, self.tenant_id)

    def prepare(self, stored: Self | None, changed: Collection[str]) -> Iterable[str]:
        """Keep the token with its member, and a revoked one revoked, whatever an older copy of the row says."""
        if self.member.tenant_id != self.tenant_id:
            raise ValidationError("The member belongs to another tenant.")
        if stored is None:
            return ()
        if stored.member_id != self.member_id:
            raise ValidationError("A token stays with its member. Issue another one instead.")
        if stored.status == TokenStatus.REVOKED:
            for name in REVOCATION:
                setattr(self, name, getattr(stored, name))
        return REVOCATION


class Secret(Part):
    """One secret of a token, as its digest.

    `accepted_until` is set when a rotation replaces it; `ended_at` when it was taken out before that or by the next
    rotation, and then the store no longer knows it. At most two secrets of a token have not ended.
    """

    UNPUBLISHED = frozenset({"last_used_at", "last_used_from", "last_used_by"})

    token = models.ForeignKey(ProxyToken, on_delete=models.CASCADE, related_name="secrets")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    pepper_version = models.PositiveIntegerField(editable=False)
    shown = models.CharField("first characters", max_length=16, editable=False)
    imported = models.BooleanField(default=False, editable=False)
    accepted_until = models.DateTimeField(null=True, editable=False)
    ended_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)
    last_used_at = models.DateTimeField(null=True, editable=False)
    last_used_from = models.GenericIPAddressField(null=True, editable=False)
    last_used_by = models.CharField(max_length=200, blank=True, editable=False)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.shown}…"

    def owner(self) -> Published:
        """Its token."""
        return self.token


class Limit(Part):
    """A rate limit or a quota of a tenant, of one of its members, or of one of its tokens."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="limits")
    member = models.ForeignKey(Membership, on_delete=models.CASCADE, null=True, blank=True, related_name="limits")
    token = models.ForeignKey(ProxyToken, on_delete=models.CASCADE, null=True, blank=True, related_name="limits")
    metric = models.CharField(max_length=16, choices=Metric)
    period = models.CharField(max_length=16, choices=Period, blank=True, default=Period.NONE)
    amount = models.PositiveBigIntegerField(validators=[MinValueValidator(1)])
    burst = models.PositiveBigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Rates only. Empty: the amount."
    )
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "member", "token", "metric", "period"],
                name="one_limit_per_scope_metric_and_period",
                nulls_distinct=False,
            ),
            models.CheckConstraint(
                condition=models.Q(member__isnull=True) | models.Q(token__isnull=True),
                name="limit_has_one_scope",
            ),
            models.CheckConstraint(
                condition=models.Q(metric=Metric.CONCURRENT, period=Period.NONE)
                | (~models.Q(metric=Metric.CONCURRENT) & ~models.Q(period=Period.NONE)),
                name="only_concurrent_has_no_period",
            ),
        ]

    def __str__(self) -> str:
        return str(self.text())

    def text(self) -> limits.LimitText:
        """The limit as it is written, without its scope."""
        return limits.LimitText(self.metric, self.period, self.amount, self.burst)

    def owner(self) -> Published:
        """The token, member or tenant that it limits."""
        return self.token or self.member or self.tenant

    def clean(self) -> None:
        """The rules of tokens.limits, and that member and token belong to the tenant. Raises ValidationError."""
        scope = self.token or self.member
        if scope is not None and scope.tenant_id != self.tenant_id:
            raise ValidationError("A limit's member or token must belong to its tenant.")
        amount: int | None = self.amount
        if amount is None:
            return  # the field's own error says so
        try:
            limits.check(self.text())
        except ValueError as exc:
            raise ValidationError(str(exc)) from exc

    def save(self, *args: Any, **kwargs: Any) -> None:
        """As every part of a record; a limit of a member or a token takes its tenant from there."""
        scope = self.token or self.member
        if scope is not None:
            self.tenant_id = scope.tenant_id
        super().save(*args, **kwargs)


class Installation(models.Model):
    """The installation, in one row: its number of shards, which must never change under it, and its emergency stop."""

    shards = models.PositiveSmallIntegerField()
    stopped_at = models.DateTimeField(null=True, editable=False)  # nobody is admitted since; None: calls are
    store_name = models.CharField(max_length=36, blank=True, editable=False)  # the uuid it was last opened under
    created_at = models.DateTimeField(default=now)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(pk=1), name="one_installation")]

    def __str__(self) -> str:
        return f"{self.shards} shards"


# Deletions by a query set or a cascade never call `delete()`, but always tell.
for _model in (Tenant, Membership, ProxyToken, Secret, Limit):
    pre_delete.connect(note_deletion, sender=_model)

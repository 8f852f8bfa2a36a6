"""Tenants, their members, proxy tokens with their secrets, and limits.

Whatever decides a call is published to the admission store (tokens.outbox, tokens.directory). Each of Tenant,
Membership and ProxyToken carries a `version` that every such change raises, by the verbs in tokens.issuing and
tokens.stopping or by `save()` and `delete()`; bulk updates are refused, they would leave the store with the old truth.
"""

import datetime as dt
import zoneinfo
from collections.abc import Collection, Iterable
from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex, OpClass
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models
from django.db.models.functions import Upper
from django.db.models.signals import pre_delete
from django.utils.timezone import now

from tokens.apikeyrow import ApiKey as ApiKey
from tokens.apikeyrow import IssueReceipt as IssueReceipt
from tokens.audit import AuditEntry as AuditEntry
from tokens.audit import Verb
from tokens.installationrow import Installation as Installation
from tokens.limitrow import Limit as Limit
from tokens.limits import Metric as Metric
from tokens.limits import Period as Period
from tokens.outbox import Entry, Kind, Part, Published, note_deletion
from tokens.outbox import OutboxEntry as OutboxEntry
from tokens.planrow import Plan as Plan
from tokens.planrow import PlanLimit as PlanLimit
from tokens.secretuserow import SecretUse as SecretUse
from tokens.users import Role as Role
from tokens.users import User as User
from tokens.validators import validate_model_name, validate_network, validate_origin, validate_timezone


class Status(models.TextChoices):
    """Whether a tenant or a member may call."""

    ACTIVE = "active", "Active"
    SUSPENDED = "suspended", "Suspended"


class UnresolvedPolicy(models.TextChoices):
    """What calls of unknown outcome count as when a month is closed."""

    NOTHING = "nothing", "Nothing: they aren't charged"
    ESTIMATE = "estimate", "Their estimate: it is charged"


STATUS_VERBS = {"status": {Status.SUSPENDED: Verb.SUSPENDED, Status.ACTIVE: Verb.ACTIVATED}}


class Tenant(Published):
    """A customer: members, tokens, limits, a calendar, and the web origins its browser clients come from."""

    UNPUBLISHED = frozenset({"unresolved_policy", "plan", "plan_version"})  # of the plan the store knows the limits
    UNAUDITED = Published.UNAUDITED | {"plan_version"}
    VERBS = STATUS_VERBS

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
    plan = models.ForeignKey(
        Plan,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="tenants",
        help_text="Gives the tenant its limits. A limit of its own overrides the plan's of the same metric and period.",
    )
    # The version of the plan that its limits follow; 0: there is none, null: they have yet to follow (tokens.plans).
    plan_version = models.PositiveBigIntegerField(null=True, default=0, editable=False)
    unresolved_policy = models.CharField(
        "unresolved calls",
        max_length=16,
        choices=UnresolvedPolicy,
        default=UnresolvedPolicy.NOTHING,
        help_text="What they count as when a month is closed and nobody has decided on them before.",
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
        if self.plan_id != (None if stored is None else stored.plan_id):
            self.plan_version = None
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
        return ("timezone", "next_timezone", "next_timezone_from", "plan_version")


class Membership(Published):
    """A member: a user in a tenant. The role decides what they may do in the admin, and no call."""

    UNPUBLISHED = frozenset({"role"})
    VERBS = STATUS_VERBS

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="members")
    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="memberships")
    role = models.CharField(
        max_length=16,
        choices=Role,
        blank=True,
        default=Role.MEMBER,
        help_text="What they may do here, in this tenant only. Who has a role signs in, and needs a password for that.",
    )
    status = models.CharField(max_length=16, choices=Status, default=Status.ACTIVE)
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        verbose_name = "member"
        ordering = ["tenant", "user"]
        constraints = [models.UniqueConstraint(fields=["tenant", "user"], name="one_membership_per_user_and_tenant")]

    def __str__(self) -> str:
        return f"{self.user.email} ({self.tenant.slug})"

    def audit_name(self) -> str:
        """Without the tenant, which the entry names."""
        return self.user.email

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

    VERB_WHEN_NEW = Verb.ISSUED
    VERBS = {"status": {TokenStatus.REVOKED: Verb.REVOKED}}

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
    model = models.CharField(
        max_length=100,
        blank=True,
        validators=[validate_model_name],
        help_text="The model that answers its calls. Empty: the tenant's.",
    )
    created_at = models.DateTimeField(default=now, editable=False)
    created_by = models.CharField(max_length=254, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)
    revoked_by = models.CharField(max_length=254, blank=True, editable=False)
    revoke_reason = models.CharField(max_length=200, blank=True, editable=False)

    class Meta:
        ordering = ["-id"]
        indexes = [GinIndex(OpClass(Upper("name"), name="gin_trgm_ops"), name="tokens_by_a_part_of_a_name")]

    def __str__(self) -> str:
        return f"{self.name} (token {self.pk})"

    def audit_name(self) -> str:
        """Without its id, which the entry has apart."""
        return self.name

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

    UNPUBLISHED = UNAUDITED = frozenset({"last_used_at", "last_used_from", "last_used_by"})
    HIDDEN = frozenset({"digest"})

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
        indexes = [models.Index(OpClass("shown", name="text_pattern_ops"), name="secrets_by_first_characters")]

    def __str__(self) -> str:
        return f"{self.shown}…"

    def audit_verb(self, before: Self | None, changed: Collection[str]) -> str | None:
        """Made for somebody to see, once; or brought along; or ended."""
        if before is None:
            return Verb.IMPORTED if self.imported else Verb.SHOWN
        return Verb.ENDED if "ended_at" in changed else Verb.CHANGED

    def owner(self) -> Published:
        """Its token."""
        return self.token


# Deletions by a query set or a cascade never call `delete()`, but always tell.
for _model in (Tenant, Membership, ProxyToken, Secret, Limit):
    pre_delete.connect(note_deletion, sender=_model)

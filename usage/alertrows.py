"""Quota alerts: who wants to be told at which share of a quota, what was told, and how each delivery went."""

import uuid
from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.timezone import now

from config.encryption import encrypt
from tokens.audited import Audited
from tokens.models import Metric, Period, Tenant
from usage.alerting import addresses, signing

THRESHOLDS = (50, 80, 100)  # percent of a quota
ANSWER_CHARACTERS = 200  # kept of a webhook's answer, and of an error


def usual_thresholds() -> list[int]:
    """At which shares a tenant is told that has chosen none."""
    return [80, 100]


class AlertSetting(Audited):
    """At which shares of its quotas a tenant is told, and by mail to whom."""

    tenant = models.OneToOneField(Tenant, on_delete=models.CASCADE, related_name="alert_setting")
    thresholds = ArrayField(
        models.PositiveSmallIntegerField(validators=[MinValueValidator(1), MaxValueValidator(100)]),
        default=usual_thresholds,
        verbose_name="tell at",
        help_text="Once each in a quota's day, month or total, for quotas of the tenant, its members and its tokens.",
    )
    emails = ArrayField(
        models.EmailField(max_length=254),
        default=list,
        blank=True,
        verbose_name="e-mail addresses",
        help_text="Who is told by mail, separated by commas. Webhooks have a page of their own.",
    )

    def __str__(self) -> str:
        return f"alerts of {self.tenant.slug}"


class Webhook(Audited):
    """An address of the tenant's that is called for each alert, signed with a secret that both sides know."""

    HIDDEN: ClassVar[frozenset[str]] = frozenset({"encrypted"})

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="webhooks")
    url = models.CharField(
        "URL",
        max_length=500,
        validators=[addresses.validate_url],
        help_text="Such as https://hooks.example.com/quotas. It must be on the public internet, unless the operator "
        "of the gateway has allowed its network.",
    )
    encrypted = models.BinaryField(editable=False)
    active = models.BooleanField(default=True, help_text="Alerts are sent to active ones only.")
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["tenant", "id"]

    def __str__(self) -> str:
        return f"webhook {self.audit_name()}"

    def audit_name(self) -> str:
        """Its host only: the rest of the URL may hold a secret."""
        return addresses.shown(self.url)

    def audit_words(self, name: str) -> str | None:
        """The URL likewise."""
        return addresses.shown(self.url) if name == "url" else None

    def new_secret(self) -> str:
        """Take a new secret, to be shown once; `save` keeps it, encrypted."""
        secret = signing.make_secret()
        self.encrypted = encrypt(secret)
        return secret

    def clean(self) -> None:
        """It stays with its tenant."""
        stored = type(self)._base_manager.filter(pk=self.pk).first() if self.pk is not None else None
        if stored is not None and stored.tenant_id != self.tenant_id:
            raise ValidationError("A webhook stays with its tenant. Add another one instead.")


class Alert(models.Model):
    """That a quota has reached a threshold in one of its periods. The unique constraint tells it once.

    Of a quota it keeps what it was then; `period_name` is the period in the store, such as ``month:2026-11``.
    """

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    scope = models.CharField(max_length=8, help_text="Whose quota: tenant, member or token.")
    scope_id = models.BigIntegerField()
    scope_name = models.CharField("whose", max_length=400)
    metric = models.CharField(max_length=16, choices=Metric)
    period = models.CharField(max_length=16, choices=Period)
    period_name = models.CharField(max_length=40)
    threshold = models.PositiveSmallIntegerField(help_text="Percent.")
    used = models.BigIntegerField()
    amount = models.BigIntegerField()
    at = models.DateTimeField(default=now)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "scope", "scope_id", "metric", "period_name", "threshold"],
                name="one_alert_per_threshold_and_period",
            )
        ]
        indexes = [
            models.Index(fields=["tenant", "id"], name="alerts_of_a_tenant"),
            models.Index(fields=["at"], name="alerts_of_a_time"),
        ]

    def __str__(self) -> str:
        return f"{self.threshold} % of {self.quota} used by {self.scope_name}"

    @property
    def quota(self) -> str:
        """Such as "images per month"."""
        return f"{Metric(self.metric).label.lower()} {Period(self.period).label}"


class Channel(models.TextChoices):
    """By which way somebody is told."""

    EMAIL = "email", "E-mail"
    WEBHOOK = "webhook", "Webhook"


class DeliveryStatus(models.TextChoices):
    """How far a delivery has come."""

    WAITING = "waiting", "Waiting"
    SENT = "sent", "Delivered"
    FAILED = "failed", "Given up"


class AlertDelivery(models.Model):
    """One alert on its way to one address or webhook, or a test (without an alert), with what came of it."""

    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="+")
    alert = models.ForeignKey(Alert, on_delete=models.CASCADE, null=True, related_name="deliveries")
    channel = models.CharField(max_length=8, choices=Channel)
    webhook = models.ForeignKey(Webhook, on_delete=models.SET_NULL, null=True, related_name="+")
    target = models.CharField("to", max_length=300, help_text="The e-mail address, or the webhook's host.")
    message_id = models.UUIDField(
        "message", default=uuid.uuid4, unique=True, editable=False, help_text="The same in every attempt."
    )
    status = models.CharField(max_length=8, choices=DeliveryStatus, default=DeliveryStatus.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField("next attempt", default=now)
    last_status = models.PositiveSmallIntegerField("last HTTP status", null=True)
    answer = models.CharField("beginning of the answer", max_length=ANSWER_CHARACTERS, blank=True)
    error = models.CharField("last error", max_length=ANSWER_CHARACTERS, blank=True)
    created_at = models.DateTimeField(default=now)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = "delivery"
        verbose_name_plural = "deliveries"
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["tenant", "id"], name="deliveries_of_a_tenant"),
            models.Index(
                fields=["next_attempt_at"],
                name="deliveries_that_wait",
                condition=models.Q(status=DeliveryStatus.WAITING),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.about} to {self.target}"

    @property
    def about(self) -> str:
        """What is told, in words."""
        return str(self.alert) if self.alert is not None else "a test"

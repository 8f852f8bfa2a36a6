"""The books: the ledger and its rollups, prices, receipts of the events that came in, and events that were refused.

Only usage.ledger writes UsageRecord, EventReceipt and DailyUsage. Their figures are per call and add up: the rows of
one request id sum to what is known about it now, and the rollups of a day sum the ledger rows booked on that day.
"""

from decimal import Decimal
from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.utils.timezone import now

from tokens.models import Membership, ProxyToken, Tenant
from usage.alarmrow import Alarm as Alarm
from usage.alertrows import Alert as Alert
from usage.alertrows import AlertDelivery as AlertDelivery
from usage.alertrows import AlertSetting as AlertSetting
from usage.alertrows import Webhook as Webhook
from usage.pricerow import PRICE_DIGITS, PRICE_PLACES
from usage.pricerow import Price as Price
from usage.reportrows import ExportJob as ExportJob
from usage.reportrows import ReportSending as ReportSending
from usage.reportrows import SavedReport as SavedReport
from usage.statementrows import Statement as Statement
from usage.statementrows import StatementFile as StatementFile
from usage.statementrows import StatementPiece as StatementPiece

# Tokens are priced by the million, which adds six places to a price's eight: fourteen hold any cost without rounding.
COST_PLACES = 14
COST_DIGITS = 30


class Kind(models.TextChoices):
    """What a ledger row is. The first three open a request id and rank in this order; a correction amends one."""

    UNRESOLVED = "unresolved", "Unresolved"
    VOID = "void", "Void"
    EXACT = "exact", "Exact"
    CORRECTION = "correction", "Correction"


class Provenance(models.TextChoices):
    """Where the charged tokens come from."""

    REPORTED = "reported", "Reported by the provider"
    DERIVED = "derived", "Derived from what the provider reported"
    ESTIMATED = "estimated", "Estimated"
    MISSING = "missing", "Not reported: charged at the estimate"
    DECIDED = "decided", "Decided by a person"


class Unpriced(models.TextChoices):
    """Why what a call costs isn't known."""

    NO_PRICE = "no_price", "There was no price"
    SPLIT_UNKNOWN = "split_unknown", "Input and output tokens have prices of their own, and only their sum is known"


def _price(help_text: str = "") -> "models.DecimalField[Any, Any]":
    return models.DecimalField(max_digits=PRICE_DIGITS, decimal_places=PRICE_PLACES, null=True, help_text=help_text)


def _cost(help_text: str) -> "models.DecimalField[Any, Any]":
    return models.DecimalField(max_digits=COST_DIGITS, decimal_places=COST_PLACES, null=True, help_text=help_text)


class UsageRecord(models.Model):
    """One row of the ledger; append-only, which the database enforces.

    The table is partitioned by month of the request id (a UUIDv7) and keyed by (request_id, kind, number); one row of
    a request id, the primary, is no correction. `id` is unique by its sequence and serves the admin. A correction
    holds differences: images, tokens and cost of all rows of a request id sum to the newest absolute figures.
    Foreign keys are not checked row by row: a batch's rollups are, in the same transaction.
    """

    id = models.BigAutoField(primary_key=True)
    request_id = models.UUIDField()
    kind = models.CharField(choices=Kind)
    number = models.PositiveSmallIntegerField(help_text="0 for the primary row, then 1, 2 for its corrections.")
    outcome = models.CharField(choices=Kind, help_text="What the call counts as once this row is written.")
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, db_constraint=False, related_name="+")
    member = models.ForeignKey(Membership, on_delete=models.PROTECT, db_constraint=False, related_name="+")
    token = models.ForeignKey(ProxyToken, on_delete=models.PROTECT, db_constraint=False, related_name="+")
    model = models.CharField()
    size = models.CharField(blank=True)
    quality = models.CharField(blank=True, help_text="That the provider was asked for. Empty: its own choice.")
    n = models.PositiveIntegerField("images asked for")
    images = models.IntegerField("images delivered")
    input_tokens = models.BigIntegerField(null=True)
    output_tokens = models.BigIntegerField(null=True)
    reported_tokens = models.BigIntegerField(null=True, help_text="As the provider said. Empty: it said nothing.")
    charged_tokens = models.BigIntegerField()
    provenance = models.CharField(choices=Provenance)
    cost = _cost("Empty: it isn't known.")
    provider_cost = _cost("What the provider asks for it. Empty: it isn't known.")
    price = models.ForeignKey(
        Price, on_delete=models.DO_NOTHING, null=True, db_constraint=False, db_index=False, related_name="+"
    )
    price_per_image = _price()
    price_per_million_input = _price()
    price_per_million_output = _price()
    currency = models.CharField(blank=True, help_text="Empty: what it costs isn't known.")
    unpriced = models.CharField(choices=Unpriced, blank=True, help_text="Why what it costs isn't known.")
    day = models.DateField(help_text="The tenant's day on which the call was admitted.")
    booked_day = models.DateField(help_text="The tenant's day on which this row counts in reports.")
    provider = models.CharField(blank=True)
    provider_request_id = models.CharField(blank=True)
    latency_ms = models.BigIntegerField()
    reason = models.CharField(blank=True)
    at = models.DateTimeField(help_text="When the call came in, from its request id.")
    recorded_at = models.DateTimeField()
    generation = models.CharField(blank=True, help_text="Empty: it did not come through the store's stream.")
    sequence = models.BigIntegerField(null=True)

    class Meta:
        managed = False
        db_table = "usage_record"
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.kind} {self.request_id}"


def is_unresolved() -> models.Q:
    """The condition on a ledger row that it opens a call whose outcome isn't known: no later row has corrected it."""
    later = UsageRecord.objects.filter(request_id=models.OuterRef("request_id"), kind=Kind.CORRECTION).order_by()
    return models.Q(~models.Exists(later), kind=Kind.UNRESOLVED)


class UnresolvedCalls(models.Manager["UnresolvedCall"]):
    """Only calls that are unresolved to this day."""

    def get_queryset(self) -> models.QuerySet["UnresolvedCall"]:
        """Narrow the ledger."""
        return super().get_queryset().filter(is_unresolved())


class UnresolvedCall(UsageRecord):
    """The one row of a call whose outcome isn't known; the right to change these is the right to resolve them."""

    objects: ClassVar[UnresolvedCalls] = UnresolvedCalls()

    class Meta:
        proxy = True
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"call {self.request_id}"


class EventReceipt(models.Model):
    """That the event with this sequence number of a tenant came in: a number that is missing is a lost event."""

    pk = models.CompositePrimaryKey("tenant_id", "generation", "sequence")
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, db_constraint=False, db_index=False, related_name="+")
    generation = models.TextField()
    sequence = models.BigIntegerField()

    def __str__(self) -> str:
        return f"event {self.sequence} of tenant {self.tenant_id}"


class DailyUsage(models.Model):
    """What a token used of a model on one booked day, in one currency ("" where what it costs isn't known).

    `unpriced_requests` are those whose cost, `uncosted_requests` those whose provider's cost isn't known: neither is in
    the sums, and the former are among the latter.

    Figures of calls that ended exactly are to be invoiced. Unresolved ones are held apart, at their estimates, and are
    not. When one is resolved on a later day, that day takes it back: its unresolved figures may be negative, and no
    closed day changes.
    """

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, db_index=False, related_name="+")
    member = models.ForeignKey(Membership, on_delete=models.PROTECT, related_name="+")
    token = models.ForeignKey(ProxyToken, on_delete=models.PROTECT, related_name="+")
    model = models.CharField(max_length=100)
    booked_day = models.DateField()
    currency = models.CharField(max_length=3, blank=True)
    requests = models.BigIntegerField(default=0)
    images = models.BigIntegerField(default=0)
    charged_tokens = models.BigIntegerField(default=0)
    input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    cost = models.DecimalField(max_digits=COST_DIGITS, decimal_places=COST_PLACES, default=Decimal(0))
    provider_cost = models.DecimalField(max_digits=COST_DIGITS, decimal_places=COST_PLACES, default=Decimal(0))
    unpriced_requests = models.BigIntegerField(default=0)
    uncosted_requests = models.BigIntegerField(default=0)
    unresolved_requests = models.BigIntegerField(default=0)
    unresolved_images = models.BigIntegerField(default=0)
    unresolved_tokens = models.BigIntegerField(default=0)
    voided_requests = models.BigIntegerField(default=0)

    class Meta:
        verbose_name_plural = "daily usage"
        ordering = ["-booked_day"]
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "booked_day", "member", "token", "model", "currency"], name="one_rollup_per_key"
            )
        ]
        indexes = [models.Index(fields=["booked_day"])]

    def __str__(self) -> str:
        return f"{self.booked_day} token {self.token_id} {self.model}"


class QuarantinedEvent(models.Model):
    """A usage event that could not be booked as it came, kept whole for a person to look at."""

    raw = models.JSONField(help_text="The event's fields as they came.")
    digest = models.CharField(max_length=64, unique=True, editable=False)  # the same event delivered again adds no row
    error = models.CharField(max_length=100)
    message = models.TextField(blank=True)
    at = models.DateTimeField(default=now)
    resolved_at = models.DateTimeField(null=True, blank=True, editable=False)
    resolved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, editable=False, related_name="+"
    )
    resolution = models.TextField(blank=True, editable=False, help_text="What became of it, and why.")

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.error} {self.at:%Y-%m-%d %H:%M:%S}"


class UnsettledCall(models.Model):
    """A call that was booked while the admission store was out of reach: the store must still end its reservation.

    Written in the same transaction as the call's ledger row, deleted once the store has taken the ending.
    """

    request_id = models.UUIDField(primary_key=True)
    ending = models.BinaryField(help_text="JSON of tokens.admission.settlement.Ending.")
    at = models.DateTimeField(default=now)

    def __str__(self) -> str:
        return str(self.request_id)


class SequenceCheck(models.Model):
    """Up to where all sequence numbers of a tenant in a generation of the store have come in, without a gap."""

    pk = models.CompositePrimaryKey("tenant_id", "generation")
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, db_constraint=False, db_index=False, related_name="+")
    generation = models.TextField(help_text="Its uuid, without the server's run id.")
    through = models.BigIntegerField()
    checked_at = models.DateTimeField(default=now)

    def __str__(self) -> str:
        return f"tenant {self.tenant_id} through {self.through}"

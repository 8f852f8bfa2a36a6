"""Reports that people keep and have sent to them, what became of each sending, and exports that take longer."""

import uuid
from typing import ClassVar

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.timezone import now

from tokens.audited import Audited
from tokens.models import Tenant

ERROR_CHARACTERS = 300


class Sharing(models.TextChoices):
    """Who finds a saved report besides its owner."""

    OWNER = "owner", "Only me"
    FINANCE = "finance", "Finance and platform administrators"
    TENANT = "tenant", "They, and all who may look at the tenant"


class Schedule(models.TextChoices):
    """How often a report is sent."""

    NEVER = "", "Never: only when somebody opens it"
    DAILY = "daily", "Every day"
    WEEKLY = "weekly", "Every week"
    MONTHLY = "monthly", "Every month"


class Weekday(models.IntegerChoices):
    """As ISO 8601 numbers them."""

    MONDAY = 1
    TUESDAY = 2
    WEDNESDAY = 3
    THURSDAY = 4
    FRIDAY = 5
    SATURDAY = 6
    SUNDAY = 7


class SavedReport(Audited):
    """A question with a name, and, if it has a schedule, to whom its answer is sent and when.

    Whoever opens it, and whoever is its owner when it is sent, sees what they may see then and nothing else.
    """

    UNAUDITED: ClassVar[frozenset[str]] = frozenset({"next_due_at", "created_at"})

    name = models.CharField(max_length=100)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, editable=False, related_name="+")
    tenant = models.ForeignKey(
        Tenant, on_delete=models.CASCADE, null=True, editable=False, related_name="+", help_text="Empty: all tenants."
    )
    question = models.TextField(editable=False, help_text="As the report's address has it.")
    sharing = models.CharField("who finds it", max_length=8, choices=Sharing, default=Sharing.OWNER)
    schedule = models.CharField("send it", max_length=8, choices=Schedule, default=Schedule.NEVER, blank=True)
    weekday = models.PositiveSmallIntegerField(
        "weekday", choices=Weekday, default=Weekday.MONDAY, help_text="Of a report that is sent every week."
    )
    month_day = models.PositiveSmallIntegerField(
        "day of the month",
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(31)],
        help_text="Of a report that is sent every month; in a shorter month its last day.",
    )
    hour = models.PositiveSmallIntegerField(
        default=6,
        validators=[MaxValueValidator(23)],
        help_text="0 to 23, on the tenant's clock; of a report about all tenants in UTC.",
    )
    recipients = ArrayField(
        models.EmailField(max_length=254),
        default=list,
        blank=True,
        verbose_name="e-mail addresses",
        help_text="To whom it is sent, separated by commas.",
    )
    format = models.CharField("attached as", max_length=10, default="csv")
    next_due_at = models.DateTimeField("next sent at", null=True, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["name", "id"]
        indexes = [models.Index(fields=["next_due_at"], name="saved_reports_that_are_due")]

    def __str__(self) -> str:
        return self.name


class SendingStatus(models.TextChoices):
    """How far a report that was due has come."""

    WAITING = "waiting", "Waiting"
    SENT = "sent", "Sent"
    FAILED = "failed", "Given up"


class ReportSending(models.Model):
    """A saved report that was due once, with what came of it. The unique constraint has it sent once for each time."""

    report = models.ForeignKey(SavedReport, on_delete=models.CASCADE, related_name="sendings")
    due_at = models.DateTimeField()
    recipients = ArrayField(models.EmailField(max_length=254), default=list)
    message_id = models.UUIDField(default=uuid.uuid4, editable=False, help_text="The same in every attempt.")
    status = models.CharField(max_length=8, choices=SendingStatus, default=SendingStatus.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(default=now)
    error = models.CharField(max_length=ERROR_CHARACTERS, blank=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-due_at"]
        constraints = [models.UniqueConstraint(fields=["report", "due_at"], name="one_sending_per_due_time")]
        indexes = [
            models.Index(
                fields=["next_attempt_at"],
                name="sendings_that_wait",
                condition=models.Q(status=SendingStatus.WAITING),
            )
        ]

    def __str__(self) -> str:
        return f"{self.report} of {self.due_at:%Y-%m-%d %H:%M}"


class JobStatus(models.TextChoices):
    """How far an export has come."""

    WAITING = "waiting", "Waiting"
    RUNNING = "running", "Being made"
    DONE = "done", "Ready"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"


class ExportJob(models.Model):
    """An export that is made by a worker, to be fetched by whoever asked for it within a week."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, null=True, related_name="+")
    question = models.TextField()
    format = models.CharField(max_length=10)
    status = models.CharField(max_length=9, choices=JobStatus, default=JobStatus.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    expected = models.BigIntegerField(default=0, help_text="Rows to be read, about.")
    read = models.BigIntegerField(default=0, help_text="Rows that were read.")
    file = models.CharField(max_length=100, blank=True, help_text="Its random name within EXPORT_ROOT.")
    size = models.BigIntegerField(default=0, help_text="Bytes.")
    error = models.CharField(max_length=ERROR_CHARACTERS, blank=True)
    created_at = models.DateTimeField(default=now)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["owner", "-created_at"], name="exports_of_a_person"),
            models.Index(fields=["created_at"], name="exports_of_a_time"),
        ]

    def __str__(self) -> str:
        return f"export {self.id}"

    @property
    def percent(self) -> int:
        """How much of it is done; 100 only when all is."""
        if self.status == JobStatus.DONE:
            return 100
        return min(99, self.read * 100 // self.expected) if self.expected else 0

"""Plans: named sets of limits that tenants are sold (tokens.plans brings them to the tenants)."""

from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.db.models import F
from django.utils.timezone import now

from tokens import limits
from tokens.audited import Audited
from tokens.limits import Metric, Period


class Plan(Audited):
    """A named set of limits. `version` rises with each change of its limits; a tenant knows which one it follows."""

    UNAUDITED: ClassVar[frozenset[str]] = frozenset({"version"})

    name = models.CharField(
        max_length=100, unique=True, validators=[RegexValidator(r"\S", "Give it a name that can be read.")]
    )
    description = models.CharField(max_length=300, blank=True, help_text="For whoever chooses a plan for a tenant.")
    version = models.PositiveBigIntegerField(default=1, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class PlanScope(models.TextChoices):
    """Whose limit it becomes."""

    TENANT = "tenant", "The tenant"
    TOKEN = "token", "Each new token"


class PlanLimit(Audited):
    """One limit of a plan: of each tenant that has the plan, or what a token that is issued there starts with."""

    PART = "limit"

    plan = models.ForeignKey(Plan, on_delete=models.CASCADE, related_name="limits")
    scope = models.CharField("applies to", max_length=8, choices=PlanScope, default=PlanScope.TENANT)
    metric = models.CharField(max_length=16, choices=Metric)
    period = models.CharField(max_length=16, choices=Period, blank=True, default=Period.NONE)
    amount = models.PositiveBigIntegerField(validators=[MinValueValidator(1)])
    burst = models.PositiveBigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Rates only. Empty: the amount."
    )

    class Meta:
        ordering = ["scope", "id"]  # the tenant's first
        constraints = [
            models.UniqueConstraint(
                fields=["plan", "scope", "metric", "period"], name="one_limit_per_plan_scope_metric_and_period"
            )
        ]

    def __str__(self) -> str:
        return str(self.text())

    def text(self) -> limits.LimitText:
        """The limit as it is written."""
        return limits.LimitText(self.metric, self.period, self.amount, self.burst)

    def audit_parent(self) -> models.Model:
        """Its plan."""
        return self.plan

    def audit_name(self) -> str:
        """Without its amount, which changes: images/day."""
        return self.text().name + (" of each new token" if self.scope == PlanScope.TOKEN else "")

    def clean(self) -> None:
        """The rules of tokens.limits. Raises ValidationError."""
        amount: int | None = self.amount
        if amount is None:
            return  # the field's own error says so
        try:
            limits.check(self.text())
        except ValueError as exc:
            raise ValidationError(str(exc)) from exc

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save; the plan's tenants have something new to follow."""
        self._raise_version()
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """The same for a limit that goes."""
        self._raise_version()
        return super().delete(*args, **kwargs)

    def _raise_version(self) -> None:
        Plan.objects.filter(pk=self.plan_id).update(version=F("version") + 1)


def limits_given(plan: Plan | None, scope: PlanScope) -> dict[str, limits.LimitText]:
    """What a plan gives to a tenant, or to a new token, by the limit's name."""
    rows = PlanLimit.objects.none() if plan is None else plan.limits.filter(scope=scope)
    return {row.text().name: row.text() for row in rows}

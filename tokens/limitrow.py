"""The row that is a limit."""

from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.utils.timezone import now

from tokens import limits
from tokens.limits import Metric, Period
from tokens.outbox import Part, Published


class Limit(Part):
    """A rate limit or a quota of a tenant, of one of its members, or of one of its tokens."""

    tenant = models.ForeignKey("tokens.Tenant", on_delete=models.CASCADE, related_name="limits")
    member = models.ForeignKey(
        "tokens.Membership", on_delete=models.CASCADE, null=True, blank=True, related_name="limits"
    )
    token = models.ForeignKey(
        "tokens.ProxyToken", on_delete=models.CASCADE, null=True, blank=True, related_name="limits"
    )
    metric = models.CharField(max_length=16, choices=Metric)
    period = models.CharField(max_length=16, choices=Period, blank=True, default=Period.NONE)
    amount = models.PositiveBigIntegerField(validators=[MinValueValidator(1)])
    burst = models.PositiveBigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Rates only. Empty: the amount."
    )
    from_plan = models.BooleanField(default=False, editable=False)  # the tenant's plan gave it (tokens.plans)
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

    def audit_name(self) -> str:
        """Without its amount, which changes: images/day."""
        return self.text().name

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

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """As every part of a record; what overrode a limit of the tenant's plan gives way to that (tokens.plans)."""
        tenant = self.tenant
        gone = super().delete(*args, **kwargs)
        if self.member_id is None and self.token_id is None and not self.from_plan and tenant.plan_id is not None:
            type(tenant).objects.filter(pk=tenant.pk).update(plan_version=None)
        return gone

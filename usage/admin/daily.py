"""Daily usage in the admin: the rollups that reports are made of."""

import datetime as dt
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.timezone import now
from unfold.contrib.filters.admin import DropdownFilter, RangeDateFilter
from unfold.decorators import display

from tokens.admin.scoping import TenantFilter
from tokens.roles import narrow, sees_margins
from usage.admin.readonly import ReadOnlyAdmin, in_one_line
from usage.exports import separated, signed
from usage.models import DailyUsage

MODELS_OF = dt.timedelta(days=92)  # older ones can still be asked for in the address


class ModelFilter(DropdownFilter):
    """By model, of those that were called lately."""

    title = "model"
    parameter_name = "model__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Their names, read from the rollups that the person may see."""
        lately = DailyUsage.objects.filter(booked_day__gte=now().date() - MODELS_OF)
        lately = narrow(lately, request.user, "usage.view_dailyusage", "tenant_id")
        names = lately.order_by("model").values_list("model", flat=True).distinct()
        return [(name, name) for name in names]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Narrow the list."""
        return queryset.filter(model=self.value()) if self.value() else queryset


@admin.register(DailyUsage)
class DailyUsageAdmin(ReadOnlyAdmin):
    """What each token used of a model on a day. Unresolved calls stand apart and are not invoiced."""

    tenant_field = "tenant_id"
    list_display = (
        "day",
        "tenant_slug",
        "caller",
        "model",
        "calls",
        "pictures",
        "charged",
        "shown_cost",
        "shown_unresolved",
    )
    list_filter = (("tenant", TenantFilter), ModelFilter, ("booked_day", RangeDateFilter))
    list_select_related = ("tenant", "member__user", "token")
    ordering = ("-booked_day", "-id")
    csv_name = "daily-usage"
    csv_columns = {
        "day": "booked_day",
        "tenant": "tenant__slug",
        "user": "member__user__email",
        "token": "token_id",
        "token_name": "token__name",
        "model": "model",
        "requests": "requests",
        "images": "images",
        "tokens": "charged_tokens",
        "input_tokens": "input_tokens",
        "output_tokens": "output_tokens",
        "cost": "cost",
        "currency": "currency",
        "unresolved_requests": "unresolved_requests",
        "unresolved_tokens": "unresolved_tokens",
        "voided_requests": "voided_requests",
        "unpriced_requests": "unpriced_requests",
    }
    margin_columns = {"provider_cost": "provider_cost", "uncosted_requests": "uncosted_requests"}

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        """With what is left of the cost, for those who may see it."""
        return (*self.list_display, "margin") if sees_margins(request.user) else self.list_display

    @display(ordering="booked_day")
    def day(self, row: DailyUsage) -> SafeString:
        """The tenant's day on which it counts."""
        return in_one_line(row.booked_day.isoformat())

    @display(description="tenant", ordering="tenant__slug")
    def tenant_slug(self, row: DailyUsage) -> str:
        """The tenant's short name."""
        return row.tenant.slug

    @display(ordering="requests")
    def calls(self, row: DailyUsage) -> str:
        """Calls that ended exactly."""
        return signed(row.requests)

    @display(description="images", ordering="images")
    def pictures(self, row: DailyUsage) -> str:
        """Images delivered."""
        return signed(row.images)

    @display(description="tokens", ordering="charged_tokens")
    def charged(self, row: DailyUsage) -> str:
        """Tokens charged."""
        return signed(row.charged_tokens)

    @display(description="token", header=True)
    def caller(self, row: DailyUsage) -> list[str]:
        """The token, and whose it is."""
        return [row.token.name, row.member.user.email]

    @display(description="cost", ordering="cost")
    def shown_cost(self, row: DailyUsage) -> SafeString:
        """Exact, with its currency; "–" where nothing was charged."""
        if row.currency:
            return in_one_line(f"{separated(row.cost)} {row.currency}")
        return in_one_line("unknown" if row.unpriced_requests else "–")

    @display(description="margin")
    def margin(self, row: DailyUsage) -> SafeString:
        """The cost less the provider's; "–" where either isn't known."""
        known = row.currency and row.uncosted_requests == row.unpriced_requests
        return in_one_line(f"{separated(row.cost - row.provider_cost)} {row.currency}" if known else "–")

    @display(description="unresolved", empty_value="–", label={"some": "warning", "fewer": "default"})
    def shown_unresolved(self, row: DailyUsage) -> tuple[str, str] | None:
        """Calls whose outcome isn't known; negative, and no warning, where those of an earlier day came to be known."""
        count = row.unresolved_requests
        return ("some" if count > 0 else "fewer", signed(count)) if count else None

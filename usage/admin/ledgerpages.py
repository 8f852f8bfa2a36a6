"""The ledger's rows in the admin."""

import datetime as dt
import uuid
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    ChoicesDropdownFilter,
    DropdownFilter,
    RangeDateFilter,
)
from unfold.decorators import display

from usage.admin.daily import ModelFilter
from usage.admin.readonly import ReadOnlyAdmin, in_one_line
from usage.exports import plain
from usage.models import Kind, Provenance, UsageRecord
from usage.unresolved import admitted_between, still_unresolved

KIND_COLOURS = {"exact": "success", "void": "default", "unresolved": "warning", "correction": "info"}


class DayFilter(RangeDateFilter):
    """By the tenant's day, from and to; by request id, too, which begins with the time and finds the partition."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord] | None:
        """Narrow the list."""
        narrowed: QuerySet[UsageRecord] | None = super().queryset(request, queryset)
        if narrowed is None:
            return None
        first, last = (parse_day(self.used_parameters.get(f"{self.parameter_name}_{end}")) for end in ("from", "to"))
        return admitted_between(narrowed, first, last)


def parse_day(text: Any) -> dt.date | None:
    """A day such as 2026-11-22; None for anything else, which the form reports."""
    try:
        return dt.date.fromisoformat(text or "")
    except (TypeError, ValueError):
        return None


class OutcomeFilter(DropdownFilter):
    """By what is known of a call today: its first row says what was known then."""

    title = "outcome"
    parameter_name = "open"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """One choice."""
        return [("1", "Still unresolved")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        """Narrow the list."""
        return still_unresolved(queryset) if self.value() else queryset


def rows_url(request_id: uuid.UUID) -> str:
    """The address of the list of all ledger rows of a call."""
    return f"{reverse('admin:usage_usagerecord_changelist')}?q={request_id}"


@admin.register(UsageRecord)
class UsageRecordAdmin(ReadOnlyAdmin):
    """The ledger, newest first."""

    list_display = (
        "when",
        "shown_kind",
        "tenant_slug",
        "caller",
        "drawn_by",
        "pictures",
        "charged",
        "shown_cost",
    )
    list_filter: tuple[Any, ...] = (
        ("tenant", AutocompleteSelectFilter),
        ("kind", ChoicesDropdownFilter),
        OutcomeFilter,
        ModelFilter,
        ("day", DayFilter),
    )
    list_select_related = ("tenant", "member__user", "token")
    search_fields = ("request_id",)
    search_help_text = "A request id, as the X-Request-Id header says"
    ordering = ("-id",)
    sortable_by = ()
    csv_name = "usage-records"
    csv_columns = {
        "request_id": "request_id",
        "kind": "kind",
        "at": "at",
        "day": "day",
        "booked_day": "booked_day",
        "tenant": "tenant__slug",
        "user": "member__user__email",
        "token": "token_id",
        "token_name": "token__name",
        "model": "model",
        "size": "size",
        "n": "n",
        "images": "images",
        "reported_tokens": "reported_tokens",
        "charged_tokens": "charged_tokens",
        "provenance": "provenance",
        "cost": "cost",
        "currency": "currency",
        "provider": "provider",
        "provider_request_id": "provider_request_id",
        "latency_ms": "latency_ms",
        "reason": "reason",
    }

    fieldsets = (
        (
            "Call",
            {
                "fields": (
                    ("request_id", "at"),
                    ("tenant", "member"),
                    ("token", "reason"),
                    ("model", "size"),
                    ("n", "images"),
                    "rows_of_call",
                )
            },
        ),
        (
            "Charged",
            {
                "fields": (
                    ("kind", "outcome"),
                    ("charged_tokens", "provenance"),
                    "reported_tokens",
                    ("input_tokens", "output_tokens"),
                    "shown_cost",
                    ("price_per_image", "price_per_million_tokens"),
                    ("day", "booked_day"),
                )
            },
        ),
        (
            "Trace",
            {
                "fields": (
                    ("provider", "provider_request_id"),
                    ("latency_ms", "recorded_at"),
                    "shown_generation",
                    "sequence",
                )
            },
        ),
    )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[UsageRecord], search_term: str
    ) -> tuple[QuerySet[UsageRecord], bool]:
        """A whole request id, by its index; anything else finds nothing."""
        if not search_term.strip():
            return queryset, False
        try:
            return queryset.filter(request_id=uuid.UUID(search_term.strip())), False
        except ValueError:
            return queryset.none(), False

    @display(description="at (UTC)")
    def when(self, row: UsageRecord) -> SafeString:
        """When the call came in; of a correction, when it was recorded, too."""
        at = in_one_line(f"{row.at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}")
        if row.kind != Kind.CORRECTION:
            return at
        recorded = f"{row.recorded_at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"
        return format_html('{}<br><span class="gw-quiet gw-when">recorded {}</span>', at, recorded)

    @display(description="the call's rows")
    def rows_of_call(self, row: UsageRecord) -> SafeString:
        """A link to all rows of its request id: the first, and its corrections."""
        count = UsageRecord.objects.filter(request_id=row.request_id).count()
        text = "This is the only one" if count == 1 else f"All {count}, corrections too"
        return format_html('<a class="gw-link" href="{}">{}</a>', rows_url(row.request_id), text)

    @display(description="images")
    def pictures(self, row: UsageRecord) -> str:
        """Images delivered."""
        return f"{row.images:,}"

    @display(description="tokens")
    def charged(self, row: UsageRecord) -> SafeString:
        """Tokens charged, and where the figure comes from unless the provider reported it."""
        usual = row.kind == Kind.VOID or row.provenance == Provenance.REPORTED
        note = "" if usual else row.provenance
        return format_html('{}<br><span class="gw-quiet">{}</span>', f"{row.charged_tokens:,}", note)

    @display(description="kind", label=KIND_COLOURS)
    def shown_kind(self, row: UsageRecord) -> tuple[str, str]:
        """Unresolved ones are not invoiced."""
        return row.kind, row.get_kind_display()

    @display(description="tenant")
    def tenant_slug(self, row: UsageRecord) -> str:
        """The tenant's short name."""
        return row.tenant.slug

    @display(description="token", header=True)
    def caller(self, row: UsageRecord) -> list[str]:
        """The token, and whose it is."""
        return [row.token.name, row.member.user.email]

    @display(description="model", header=True)
    def drawn_by(self, row: UsageRecord) -> list[str]:
        """The model, and the size that was asked for."""
        return [row.model, row.size]

    @display(description="generation")
    def shown_generation(self, row: UsageRecord) -> SafeString:
        """Of the admission store, when it gave the number."""
        return format_html('<span class="gw-wrap">{}</span>', row.generation or "–")

    @display(description="cost")
    def shown_cost(self, row: UsageRecord) -> SafeString:
        """Exact, with its currency; "–" where there was no price."""
        return in_one_line(f"{plain(row.cost)} {row.currency}" if row.cost is not None else "–")

"""The ledger's rows in the admin."""

import datetime as dt
import uuid
from typing import Any

from django.contrib import admin
from django.db.models import F, Func, QuerySet, TextField, Value
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import (
    ChoicesDropdownFilter,
    DropdownFilter,
    RangeDateFilter,
)
from unfold.decorators import display

from tokens.admin.scoping import TenantFilter
from tokens.audit import STAFF, Subject
from tokens.roles import sees_margins, sees_staff
from usage.admin.daily import ModelFilter
from usage.admin.figurefields import figure
from usage.admin.readonly import ReadOnlyAdmin, in_one_line
from usage.exports import separated, signed
from usage.models import Kind, Provenance, UsageRecord
from usage.resolving import subject_of
from usage.unresolved import admitted_between, still_unresolved

BOOKED = ("booked_day__gte", "booked_day__lt")
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

    tenant_field = "tenant_id"
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
        ("tenant", TenantFilter),
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
        "quality": "quality",
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
        "reason": "told_reason",
    }
    margin_columns = {"provider_cost": "provider_cost"}

    fieldsets = (
        (
            "Call",
            {
                "fields": (
                    ("request_id", "at"),
                    ("tenant", "member"),
                    ("token", "why"),
                    ("model", "size"),
                    ("quality", "n"),
                    ("delivered", "rows_of_call"),
                )
            },
        ),
        (
            "Charged",
            {
                "fields": (
                    ("kind", "outcome"),
                    ("all_tokens", "provenance"),
                    ("of_input", "of_output"),
                    "reported",
                    ("shown_cost", "unpriced"),
                    ("at_image", "at_input"),
                    "at_output",
                    ("day", "booked_day"),
                )
            },
        ),
        (
            "Trace",
            {
                "fields": (
                    ("provider", "provider_request_id"),
                    ("took", "recorded_at"),
                    "shown_generation",
                    "sequence",
                )
            },
        ),
    )

    delivered = figure("images", "images delivered")
    all_tokens = figure("charged_tokens", "charged tokens")
    reported = figure("reported_tokens", "tokens that the provider reported")
    of_input = figure("input_tokens", "input tokens")
    of_output = figure("output_tokens", "output tokens")
    at_image = figure("price_per_image", "price of an image")
    at_input = figure("price_per_million_input", "price of a million input tokens")
    at_output = figure("price_per_million_output", "price of a million output tokens")
    asked = figure("provider_cost", "provider cost")
    took = figure("latency_ms", "latency, ms")

    def get_queryset(self, request: HttpRequest) -> QuerySet[UsageRecord]:
        """With the reason of a decision as the person may see it: of whose it was, a tenant's people learn no more."""
        queryset: QuerySet[UsageRecord] = super().get_queryset(request)
        asked = (F("reason"), Value("^resolved by [^:]*: "), Value(f"resolved by {STAFF}: "))
        discreet = Func(*asked, function="regexp_replace", output_field=TextField())
        return queryset.annotate(told_reason=F("reason") if sees_staff(request.user) else discreet)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """With the provider's side, for those who may see it."""
        fieldsets = super().get_fieldsets(request, obj)
        asked = ("Asked by the provider", {"fields": (("asked", "shown_price"),)})
        return (*fieldsets[:2], asked, *fieldsets[2:]) if sees_margins(request.user) else fieldsets

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

    @display(description="reason")
    def why(self, row: UsageRecord) -> str:
        """Why it ended so, or who has decided it."""
        return row.told_reason or "–"  # type: ignore[attr-defined]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """By booked days, too: so the rows of a report lead here."""
        return lookup in BOOKED or super().lookup_allowed(lookup, value, request)

    def trailed(self, obj: UsageRecord) -> Subject:
        """The call, whichever of its rows this is."""
        return subject_of(obj)

    @display(description="at (UTC)")
    def when(self, row: UsageRecord) -> SafeString:
        """When the call came in; of a correction, when it was recorded, too."""
        at = in_one_line(f"{row.at.astimezone(dt.UTC):%Y-%m-%d %H:%M}")
        if row.kind != Kind.CORRECTION:
            return at
        recorded = f"{row.recorded_at.astimezone(dt.UTC):%Y-%m-%d %H:%M}"
        return format_html('{}<br><span class="gw-quiet gw-when">recorded {}</span>', at, recorded)

    @display(description="the call's rows")
    def rows_of_call(self, row: UsageRecord) -> SafeString:
        """A link to all rows of its request id: the first, and its corrections."""
        count = UsageRecord.objects.filter(request_id=row.request_id, tenant=row.tenant_id).count()
        text = "This is the only one" if count == 1 else f"All {count}, corrections too"
        return format_html('<a class="gw-link" href="{}">{}</a>', rows_url(row.request_id), text)

    @display(description="images")
    def pictures(self, row: UsageRecord) -> str:
        """Images delivered."""
        return signed(row.images)

    @display(description="tokens")
    def charged(self, row: UsageRecord) -> SafeString:
        """Tokens charged, and where the figure comes from unless the provider reported it."""
        usual = row.kind == Kind.VOID or row.provenance == Provenance.REPORTED
        note = "" if usual else row.provenance
        return format_html('{}<br><span class="gw-quiet">{}</span>', signed(row.charged_tokens), note)

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

    @display(description="price")
    def shown_price(self, row: UsageRecord) -> SafeString | str:
        """The price of the book that it was charged at."""
        if row.price is None:
            return "–"
        url = reverse("admin:usage_price_change", args=(row.price_id,))
        return format_html('<a class="gw-link" href="{}">{}</a>', url, row.price)

    @display(description="cost")
    def shown_cost(self, row: UsageRecord) -> SafeString:
        """Exact, with its currency."""
        return in_one_line(f"{separated(row.cost)} {row.currency}" if row.cost is not None else "unknown")

"""Statements in the admin: closed months, what they say, and their files."""

from decimal import Decimal
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import F, QuerySet, TextField, Value
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
    StreamingHttpResponse,
)
from django.template.defaultfilters import pluralize
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import RangeDateFilter
from unfold.decorators import display

from tokens import audit
from tokens.admin.scoping import TenantFilter
from tokens.audit import STAFF, Verb
from tokens.roles import sees_staff
from usage import keeping
from usage.admin import monthpages
from usage.admin.readonly import Pieces, ReadOnlyAdmin, in_one_line
from usage.admin.reporttable import Cell, money
from usage.exporting.formats import FORMATS
from usage.models import Statement, UsageRecord
from usage.unresolved import admitted_between

ONE_DAY = monthpages.ONE_DAY


@admin.register(Statement)
class StatementAdmin(ReadOnlyAdmin):
    """Closed months, the newest first. A tenant's people find their own."""

    tenant_field = "tenant_id"
    list_display = ("shown_number", "tenant_name", "of_month", "amount", "calls", "closed")
    list_display_links = ("shown_number",)
    list_filter = (("tenant", TenantFilter), ("month", RangeDateFilter))
    list_select_related = ("tenant",)
    search_fields = ("number", "tenant__slug", "tenant__name")
    search_help_text = "A statement's number, or a tenant"
    ordering = ("-id",)
    sortable_by = ()
    csv_name = "statements"
    csv_columns = {
        "number": "number",
        "tenant": "tenant__slug",
        "month": "month",
        "rows": "rows",
        "content_hash": "content_hash",
        "closed_by": "closer",
        "closed_at": "closed_at",
    }

    def get_queryset(self, request: HttpRequest) -> QuerySet[Statement]:
        """With who closed it, as the person may see it."""
        queryset: QuerySet[Statement] = super().get_queryset(request)
        closer = F("closed_by") if sees_staff(request.user) else Value(STAFF, TextField())
        return queryset.annotate(closer=closer)

    def get_urls(self) -> list[URLPattern]:
        """With the files of a statement."""
        download = self.admin_site.admin_view(self.download)
        of_file = path("<int:number>/files/<slug:format>/", download, name="usage_statement_file")
        return [of_file, *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """All that a statement says, and its files."""
        statement = self.get_object(request, object_id)
        if not self.has_view_or_change_permission(request, statement):
            raise PermissionDenied
        if statement is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[no-any-return]
        if request.method == "POST":
            raise PermissionDenied
        kept = {file.format: file for file in statement.files.all()}
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": statement,
            "title": f"Statement {statement}",
            "statement": statement,
            "figures": _figures(statement),
            "adjustments": [{**row, "amount": _money(row)} for row in statement.adjustments],
            "files": [
                {"name": chosen.name, "format": name, "file": kept.get(name)} for name, chosen in FORMATS.items()
            ],
            "later": _corrected_later(statement),
        }
        return TemplateResponse(request, "admin/usage/statement.html", context)

    def download(self, request: HttpRequest, number: int, format: str) -> HttpResponseBase:
        """A file, as it was made when the month was closed; made now if that wasn't possible then."""
        statement = self.get_object(request, str(number))
        if statement is None or format not in FORMATS:
            raise Http404
        if not self.has_view_permission(request, statement):
            raise PermissionDenied
        if not statement.files.filter(format=format).exists():
            keeping.keep(statement)
        file = statement.files.filter(format=format).first()
        if file is None:
            text = f"There is no {FORMATS[format].name} of this statement: it has too many rows for it, or see the log."
            messages.warning(request, text)
            return HttpResponseRedirect(reverse("admin:usage_statement_change", args=(number,)))
        audit.note(Verb.EXPORTED, statement, changes=[("file", "", FORMATS[format].name)])
        name = f"statement-{statement.number}-{statement.tenant.slug}{FORMATS[format].suffix}"
        headers = {
            "Content-Disposition": f'attachment; filename="{name}"',
            "Content-Length": str(file.size),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        pieces = Pieces(keeping.content(file))
        return StreamingHttpResponse(pieces, content_type=FORMATS[format].content_type, headers=headers)

    @display(description="number")
    def shown_number(self, statement: Statement) -> SafeString:
        """In one line."""
        return in_one_line(statement.number)

    @display(description="tenant")
    def tenant_name(self, statement: Statement) -> str:
        """For people."""
        return statement.tenant.name or statement.tenant.slug

    @display(description="month")
    def of_month(self, statement: Statement) -> SafeString:
        """Such as October 2026."""
        return in_one_line(statement.month_name)

    @display(description="amount")
    def amount(self, statement: Statement) -> SafeString:
        """By currency, to the cent; unknown where no call has a price, a dash where nothing was charged."""
        costs = [_money(row).text for row in monthpages.money_first(statement.totals) if row["currency"]]
        unpriced = any(row["unpriced_requests"] for row in statement.totals)
        return in_one_line(", ".join(costs) or ("unknown" if unpriced else "–"))

    @display(description="calls")
    def calls(self, statement: Statement) -> str:
        """Those that ended exactly."""
        return f"{sum(row['requests'] for row in statement.totals):,}"

    @display(description="closed")
    def closed(self, statement: Statement) -> SafeString:
        """When, in UTC."""
        return in_one_line(f"{statement.closed_at:%Y-%m-%d %H:%M}")


def _figures(statement: Statement) -> list[tuple[str, Cell]]:
    """What it comes to: an amount for each currency, and the counts of all calls."""
    totals = monthpages.money_first(statement.totals)
    found = [("amount", _money(row)) for row in totals if row["currency"]]
    for name, words in (("requests", "calls"), ("images", "images"), ("tokens", "tokens")):
        found.append((words, Cell(f"{sum(row[name] for row in totals):,}")))
    if unpriced := sum(row["unpriced_requests"] for row in totals):
        found.append((f"call{pluralize(unpriced)} without a known price, in no amount", Cell(f"{unpriced:,}")))
    return found


def _money(row: dict[str, Any]) -> Cell:
    return money(Decimal(row["cost"]) if row["currency"] else None, row["currency"])


def _corrected_later(statement: Statement) -> int:
    """How many rows of later months are about calls of this one."""
    rows = UsageRecord.objects.filter(tenant=statement.tenant, booked_day__gte=statement.end)
    return admitted_between(rows, statement.month, statement.end - ONE_DAY).count()

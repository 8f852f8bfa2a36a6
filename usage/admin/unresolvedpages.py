"""Unresolved calls in the admin: find them, and decide what they count as, one by one or many at once."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.defaultfilters import pluralize
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import FieldTextFilter
from unfold.decorators import action, display

from tokens.admin.scoping import TenantFilter
from tokens.roles import narrow
from usage import resolving
from usage.admin.daily import ModelFilter
from usage.admin.ledgerpages import DayFilter, UsageRecordAdmin, rows_url
from usage.admin.readonly import in_one_line
from usage.admin.resolvingforms import ListForm, ManyForm, OneForm, written
from usage.models import UnresolvedCall, UsageRecord
from usage.resolving import Result

ID_DIGITS = 19  # no id has so many
MOST_AT_ONCE = 10_000  # a page must answer; the command line has no such bound
REASONS = {
    "lease_ended": "Its process ended",
    "upstream_timeout": "No answer in time",
    "upstream_failed": "Connection broke off",
    "no_image": "Answer without an image",
    "storage_failed": "Image could not be stored",
    "internal_error": "Error of the gateway",
}
SHOWN = 5  # tenants and refusals that a page names


@admin.register(UnresolvedCall)
class UnresolvedCallAdmin(UsageRecordAdmin):
    """Calls whose outcome isn't known to this day. They hold their quota and are not invoiced."""

    list_display = ("when", "tenant_slug", "caller", "drawn_by", "asked_for", "bound", "shown_reason", "call")
    list_filter = (
        ("tenant", TenantFilter),
        ModelFilter,
        ("reason", FieldTextFilter),
        ("day", DayFilter),
    )
    actions = ("resolve_selected", "selected_csv")
    actions_list = ("resolve_all", "resolve_list", "csv")
    csv_name = "unresolved-calls"

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Whoever has the right to change unresolved calls resolves them."""
        options = self.opts
        return bool(request.user.has_perm(f"{options.app_label}.change_{options.model_name}"))

    # One call

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """A call, and the form that resolves it."""
        call = self.get_object(request, unquote(object_id))
        if not self.has_view_or_change_permission(request, call):
            raise PermissionDenied
        if call is None:
            return self._gone(request, unquote(object_id))
        texts = {
            "original": call,
            "title": "Unresolved call",
            "text": "What became of it isn't known. Until it is resolved it holds its quota and is not invoiced.",
            "facts": self._facts(call),
        }
        if not self.has_change_permission(request, call):
            if request.method == "POST":
                raise PermissionDenied
            return self._ask(request, forms.Form(), **texts)
        form = OneForm(call, request.POST or None)
        if form.is_valid():
            result = resolving.resolve(form.rulings(), form.cleaned_data["reason"], request.user)  # type: ignore[arg-type]
            self._tell(request, result)
            return HttpResponseRedirect(self._list_url())
        return self._ask(request, form, **texts, submit_text="Resolve")

    def _gone(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """To the ledger's page of a call that was resolved meanwhile; else back to the list."""
        number = object_id if object_id.isascii() and object_id.isdigit() and len(object_id) < ID_DIGITS else None
        own = narrow(UsageRecord.objects.all(), request.user, "usage.view_usagerecord", self.tenant_field)
        if number and own.filter(pk=number).exists():
            messages.info(request, "This call is resolved.")
            return HttpResponseRedirect(reverse("admin:usage_usagerecord_change", args=(number,)))
        answer: HttpResponse = self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        return answer

    def _facts(self, call: UnresolvedCall) -> list[tuple[str, Any]]:
        return [
            ("Request id", call.request_id),
            ("At (UTC)", self.when(call)),
            ("Tenant", call.tenant),
            ("Member", call.member.user.email),
            ("Token", call.token.name),
            ("Model", f"{call.model}, {call.size}, {call.n:,} image{pluralize(call.n)}"),
            ("At most", f"{call.charged_tokens:,} tokens"),
            ("Why it isn't known", _why(call.reason)),
            ("Provider, its request id", f"{call.provider or '–'}, {call.provider_request_id or 'unknown'}"),
        ]

    # Many

    @action(description="Resolve selected calls", permissions=["change"])
    def resolve_selected(self, request: HttpRequest, queryset: QuerySet[UnresolvedCall]) -> HttpResponse:
        """On to the page that asks, for these rows."""
        ids = ",".join(str(pk) for pk in queryset.values_list("pk", flat=True))
        return HttpResponseRedirect(f"{reverse('admin:usage_unresolvedcall_resolve_all')}?id__in={ids}")

    @action(description="Resolve all listed", icon="gavel", url_path="resolve", permissions=["change"])
    def resolve_all(self, request: HttpRequest) -> HttpResponse:
        """Ask about every call that the filters in the address let through, then resolve those."""
        try:
            calls = self.get_changelist_instance(request).get_queryset(request).order_by("id")
        except IncorrectLookupParameters:
            return HttpResponseRedirect(f"{self._list_url()}?e=1")
        until = request.POST.get("until", "")
        if until.isascii() and until.isdigit() and len(until) < ID_DIGITS:
            calls = calls.filter(pk__lte=int(until))
        found = list(calls.values_list("pk", "charged_tokens", "images", "tenant__slug")[: MOST_AT_ONCE + 1])
        more, found = len(found) > MOST_AT_ONCE, found[:MOST_AT_ONCE]
        tokens, images = (sum(row[place] for row in found) for place in (1, 2))
        if request.method == "POST":
            form = ManyForm(tokens, images, request.POST)
            if form.is_valid():
                reason = form.cleaned_data["reason"]
                result = resolving.resolve_matching(calls, form.ruling(), reason, request.user)  # type: ignore[arg-type]
                self._tell(request, result)
                return HttpResponseRedirect(self._list_url(request))
        if not found:
            messages.info(request, "No unresolved call matches.")
            return HttpResponseRedirect(self._list_url(request))
        if request.method != "POST":
            form = ManyForm(tokens, images, initial={"until": found[-1][0]})
        tenants = sorted({row[3] for row in found})
        names = ", ".join(tenants[:SHOWN]) + (f" and {len(tenants) - SHOWN} more" if len(tenants) > SHOWN else "")
        return self._ask(
            request,
            form,
            title=f"Resolve {_calls(len(found))}?",
            text=f"These are the oldest {MOST_AT_ONCE:,}; more match. Come again for the rest."
            if more
            else "Each gets a correction in the books.",
            facts=[
                ("Calls", f"{len(found):,}"),
                ("At their bounds", f"{tokens:,} tokens, {images:,} image{'' if images == 1 else 's'}"),
                ("Tenants", f"{len(tenants):,}: {names}"),
            ],
            submit_text="Resolve all of them",
        )

    @action(
        description="Resolve from a list", icon="playlist_add_check", url_path="resolve-list", permissions=["change"]
    )
    def resolve_list(self, request: HttpRequest) -> HttpResponse:
        """What calls really cost, pasted from the provider's account."""
        form = ListForm(request.POST or None)
        if form.is_valid():
            data = form.cleaned_data
            result = resolving.resolve(data["calls"], data["reason"], request.user)  # type: ignore[arg-type]
            self._tell(request, result)
            if not result.refused:
                return HttpResponseRedirect(self._list_url())
            left = {request_id: ruling for request_id, ruling in data["calls"].items() if request_id in result.refused}
            form = ListForm(initial={"calls": written(left), "reason": data["reason"]})
        return self._ask(
            request,
            form,
            title="Resolve from a list",
            text="For calls of which the provider's account says what they really cost.",
            submit_text="Resolve these calls",
        )

    # Both

    def _ask(self, request: HttpRequest, form: forms.Form, **texts: Any) -> TemplateResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": None,
            "form": form,
            "back": self._list_url(),
            **texts,
        }
        return TemplateResponse(request, "admin/confirm.html", context)

    def _tell(self, request: HttpRequest, result: Result) -> None:
        if result.resolved:
            text = f"Resolved {_calls(len(result.resolved))}."
            if len(result.resolved) == 1:
                link = '{} <a class="gw-link" href="{}">Its rows in the books</a>'
                text = format_html(link, text, rows_url(result.resolved[0].request_id))
            messages.success(request, text)
        for request_id, why in list(result.refused.items())[:SHOWN]:
            messages.warning(request, f"Call {request_id} {why}.")
        if len(result.refused) > SHOWN:
            messages.warning(request, f"{len(result.refused) - SHOWN:,} more were not resolved for such reasons.")
        if result.waiting:
            text = "The admission store did not answer: the books are right, and quota is free when it is back."
            messages.warning(request, text)

    def _list_url(self, request: HttpRequest | None = None) -> str:
        """The list; with the filters of a request's address, but not the rows that were selected."""
        url = reverse("admin:usage_unresolvedcall_changelist")
        if request is None:
            return url
        query = request.GET.copy()
        query.pop("id__in", None)
        return f"{url}?{query.urlencode()}" if query else url

    # Columns

    @display(description="images")
    def asked_for(self, row: UnresolvedCall) -> int:
        """Images asked for."""
        return row.n

    @display(description="tokens at most")
    def bound(self, row: UnresolvedCall) -> SafeString:
        """What it can have cost at most."""
        return in_one_line(f"{row.charged_tokens:,}")

    @display(description="reason")
    def shown_reason(self, row: UnresolvedCall) -> SafeString:
        """Why its outcome isn't known, in words, and as the filter takes it."""
        return format_html(
            '<span>{}<br><span class="gw-quiet">{}</span></span>', in_one_line(_why(row.reason)), row.reason
        )

    @display(description="request id")
    def call(self, row: UnresolvedCall) -> SafeString:
        """As the client was told it."""
        return format_html('<code class="gw-id">{}</code>', row.request_id)


def _why(reason: str) -> str:
    """A reason of the ledger in words."""
    status = reason.removeprefix("provider_")
    return f"Provider answered {status}" if status != reason else REASONS.get(reason, reason or "–")


def _calls(count: int) -> str:
    return f"{count:,} call{'' if count == 1 else 's'}"

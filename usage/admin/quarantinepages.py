"""Events that couldn't be booked: look at them, try them again, set them aside."""

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import F, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import DropdownFilter
from unfold.dataclasses import UnfoldAction
from unfold.decorators import action, display

from tokens.errors import Refused
from tokens.models import Tenant
from usage import retrying
from usage.admin.readonly import UnchangeableAdmin, in_one_line
from usage.admin.reasons import ask_for_many
from usage.admin.resolvingforms import ReasonForm
from usage.models import QuarantinedEvent
from usage.quarantine import USED_TWICE, whose

ERRORS = {
    "BadEventError": "Can't be read",
    "FutureEventError": "Of a newer version than this one",
    "PoisonError": "Booking it ended processes",
    "IntegrityError": "Refused by the database",
    "DataError": "Refused by the database",
    USED_TWICE: "Booked; its number came twice",
}


class OpenFilter(DropdownFilter):
    """By whether somebody has dealt with it."""

    title = "state"
    parameter_name = "open"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Two choices."""
        return [("1", "Open"), ("0", "Dealt with")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[QuarantinedEvent]) -> QuerySet[QuarantinedEvent]:
        """Narrow the list."""
        return queryset.filter(resolved_at__isnull=self.value() == "1") if self.value() in {"0", "1"} else queryset


@admin.register(QuarantinedEvent)
class QuarantinedEventAdmin(UnchangeableAdmin):
    """Events that couldn't be booked, with what became of them."""

    list_display = ("shown_at", "state", "shown_tenant", "call", "shown_error", "message")
    list_display_links = ("shown_at",)
    list_per_page = 50
    sortable_by = ()
    ordering = (F("resolved_at").desc(nulls_first=True), "-id")
    list_filter = (OpenFilter,)
    list_filter_submit = True
    search_fields = ("error", "message")
    fields = (
        "number",
        "shown_at",
        "shown_error",
        "message",
        "state",
        "shown_resolution",
        "shown_by",
        "shown_end",
        "call",
        "fields_as_they_came",
    )
    readonly_fields = fields
    actions = ("retry_selected", "set_aside_selected")
    actions_detail = ("retry", "set_aside")

    def has_resolve_permission(self, request: HttpRequest, object_id: object = None) -> bool:
        """Whoever has the right to change events deals with them."""
        return bool(request.user.has_perm("usage.change_quarantinedevent"))

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list, each row with its tenant's short name as far as the event can be read.

        An empty list says of what there is none.
        """
        listed = super().get_changelist_instance(request)
        entries: list[Any] = list(listed.result_list)
        tenants = {entry.pk: whose(entry.raw)[0] for entry in entries}
        known = {tenant for tenant in tenants.values() if tenant is not None}
        slugs = dict(Tenant.objects.filter(pk__in=known).values_list("pk", "slug"))
        for entry in entries:
            entry.tenant_slug = slugs.get(tenants[entry.pk] or 0)
        listed.result_list = entries
        listed.nothing = "No open events." if request.GET.get("open") == "1" and not listed.query else ""
        return listed

    def get_actions_detail(self, request: HttpRequest, object_id: int) -> list[UnfoldAction]:
        """What can be done with an open event; with one that was dealt with, nothing."""
        entry = self.get_object(request, str(object_id))
        return super().get_actions_detail(request, object_id) if entry and entry.resolved_at is None else []

    @action(description="Try again", icon="replay", url_path="retry", permissions=["resolve"])
    def retry(self, request: HttpRequest, object_id: int) -> HttpResponse:
        """Ask, then read and book it once more."""
        return self._ask(
            request,
            object_id,
            forms.Form,
            lambda entry, _: retrying.retry(entry, request.user),  # type: ignore[arg-type]
            done="Booked: it is in the books now.",
            title="Try this event again?",
            text="It is read and booked once more, as after a fix. A call is charged once, however often that is done.",
            submit_text="Try again",
        )

    @action(description="Set aside", icon="archive", url_path="set-aside", permissions=["resolve"])
    def set_aside(self, request: HttpRequest, object_id: int) -> HttpResponse:
        """Ask why, then close it without booking it."""
        return self._ask(
            request,
            object_id,
            ReasonForm,
            lambda entry, form: retrying.set_aside(entry, form.cleaned_data["reason"], request.user),  # type: ignore[arg-type]
            done="Set aside. It stays readable here.",
            title="Set this event aside?",
            text="It will not be booked. Should the same event come once more, it is open again.",
            submit_text="Set aside",
        )

    @action(description="Try selected events again", permissions=["resolve"])
    def retry_selected(self, request: HttpRequest, queryset: QuerySet[QuarantinedEvent]) -> None:
        """Each on its own: one that fails holds up no other."""
        booked, failed = 0, 0
        for entry in queryset.filter(resolved_at=None):
            try:
                retrying.retry(entry, request.user)  # type: ignore[arg-type]
                booked += 1
            except Refused:
                failed += 1
        text = f"{booked} booked, {failed} not: each says why."
        messages.add_message(request, messages.WARNING if failed else messages.SUCCESS, text)

    @action(description="Set selected events aside", permissions=["resolve"])
    def set_aside_selected(self, request: HttpRequest, queryset: QuerySet[QuarantinedEvent]) -> HttpResponse | None:
        """Ask why, then close those of the selected that are open."""
        entries = list(queryset.filter(resolved_at=None))
        if not entries:
            messages.info(request, "All of these were dealt with already.")
            return None
        reason = ask_for_many(
            self,
            request,
            title=f"Set {len(entries)} event{'' if len(entries) == 1 else 's'} aside?",
            text="They will not be booked. Should one of them come once more, it is open again.",
            submit_text="Set aside",
            back=reverse("admin:usage_quarantinedevent_changelist"),
        )
        if not isinstance(reason, str):
            return reason
        done = 0
        for entry in entries:
            try:
                retrying.set_aside(entry, reason, request.user)  # type: ignore[arg-type]
                done += 1
            except Refused as exc:
                messages.warning(request, f"Event {entry.pk}: {exc}")
        messages.success(request, f"{done} set aside.")
        return None

    def _ask(
        self,
        request: HttpRequest,
        object_id: int,
        form_class: type[forms.Form],
        deal_with: Callable[[QuarantinedEvent, forms.Form], None],
        done: str,
        **texts: Any,
    ) -> HttpResponse:
        """Ask first, act on POST only."""
        entry = self.get_object(request, str(object_id))
        if entry is None:
            raise Http404
        back = reverse("admin:usage_quarantinedevent_change", args=(entry.pk,))
        if request.method == "GET" and entry.resolved_at is not None:
            messages.info(request, f"It was dealt with already: {entry.resolution}.")
            return HttpResponseRedirect(back)
        form = form_class(request.POST if request.method == "POST" else None)
        if form.is_valid():
            try:
                deal_with(entry, form)
                messages.success(request, done)
            except Refused as exc:
                messages.error(request, str(exc))
            return HttpResponseRedirect(back)
        context = {
            **self.admin_site.each_context(request),
            **texts,
            "opts": self.opts,
            "original": entry,
            "form": form,
            "back": back,
        }
        return TemplateResponse(request, "admin/confirm.html", context)

    @display(description="state", label={"Open": "danger", "Booked": "success", "Set aside": "default"})
    def state(self, entry: QuarantinedEvent) -> str:
        """Whether somebody must still look at it."""
        if entry.resolved_at is None:
            return "Open"
        return "Booked" if entry.resolution.startswith(retrying.BOOKED) else "Set aside"

    @display(description="what became of it")
    def shown_resolution(self, entry: QuarantinedEvent) -> str:
        """What was done, and why."""
        if entry.resolved_at is None:
            return "Open: nobody has dealt with it"
        return entry.resolution[:1].upper() + entry.resolution[1:]

    @display(description="by")
    def shown_by(self, entry: QuarantinedEvent) -> str:
        """Who did it; the command line's user stands with what was done."""
        return str(entry.resolved_by) if entry.resolved_by else "–"

    @display(description="dealt with at (UTC)")
    def shown_end(self, entry: QuarantinedEvent) -> SafeString:
        """When that was."""
        return _moment(entry.resolved_at)

    @display(description="at (UTC)")
    def shown_at(self, entry: QuarantinedEvent) -> SafeString:
        """When it was put aside."""
        return _moment(entry.at)

    @display(description="id")
    def number(self, entry: QuarantinedEvent) -> int:
        """As the command line names it."""
        return entry.pk

    @display(description="error")
    def shown_error(self, entry: QuarantinedEvent) -> str:
        """Why it wasn't booked as it came, in words."""
        return ERRORS.get(entry.error, entry.error)

    @display(description="tenant")
    def shown_tenant(self, entry: Any) -> str:
        """Its short name, as far as the event can be read."""
        return entry.tenant_slug or "–"

    @display(description="request id")
    def call(self, entry: QuarantinedEvent) -> SafeString:
        """As the client was told it, as far as the event can be read."""
        return format_html('<code class="gw-id">{}</code>', whose(entry.raw)[1] or "–")

    @display(description="event")
    def fields_as_they_came(self, entry: QuarantinedEvent) -> SafeString:
        """The event, indented."""
        return format_html('<pre class="gw-raw">{}</pre>', json.dumps(entry.raw, indent=2, ensure_ascii=False))


def _moment(at: dt.datetime | None) -> SafeString:
    return in_one_line(f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}" if at else "–")

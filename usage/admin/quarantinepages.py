"""Events that couldn't be booked: look at them, try them again, set them aside."""

import json
from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import DropdownFilter
from unfold.decorators import action, display

from tokens.errors import Refused
from usage import retrying
from usage.admin.resolvingforms import ReasonForm
from usage.models import QuarantinedEvent


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
class QuarantinedEventAdmin(ModelAdmin):
    """Events that couldn't be booked, with what became of them."""

    list_display = ("at", "state", "error", "message")
    list_filter = (OpenFilter,)
    list_filter_submit = True
    search_fields = ("error", "message")
    fields = ("at", "error", "message", "shown_resolution", "fields_as_they_came")
    readonly_fields = fields
    actions = ("retry_selected",)
    actions_detail = ("retry", "set_aside")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody: an event stays as it came."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody: each stands for usage that wasn't in the books."""
        return False

    def has_resolve_permission(self, request: HttpRequest, object_id: object = None) -> bool:
        """Whoever has the right to change events deals with them."""
        return bool(request.user.has_perm("usage.change_quarantinedevent"))

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
        entry = get_object_or_404(QuarantinedEvent, pk=object_id)
        back = reverse("admin:usage_quarantinedevent_change", args=(entry.pk,))
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
        """What was done, by whom and when."""
        if entry.resolved_at is None:
            return "Open: nobody has dealt with it"
        by = f" by {entry.resolved_by}" if entry.resolved_by else ""
        return f"{entry.resolution.capitalize()}{by}, {entry.resolved_at:%Y-%m-%d %H:%M} UTC"

    @display(description="event")
    def fields_as_they_came(self, entry: QuarantinedEvent) -> SafeString:
        """The event, indented."""
        return format_html('<pre class="gw-raw">{}</pre>', json.dumps(entry.raw, indent=2, ensure_ascii=False))

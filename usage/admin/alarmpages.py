"""Alarms in the admin: what needs a person now, and what did."""

import datetime as dt
from typing import Any

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

from tokens.audit import AuditEntry, Verb
from usage import alarms
from usage.admin.readonly import UnchangeableAdmin, in_one_line
from usage.admin.reasons import ask_for_many
from usage.admin.resolvingforms import ReasonForm
from usage.alarms import ADVICE, AlarmKind
from usage.models import Alarm

LATER = "This closes it. What is still wrong at the next look, within a minute, opens again; lost events don't."


class StateFilter(DropdownFilter):
    """Open alarms, or those that are over."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Both."""
        return [("open", "Open"), ("closed", "Closed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Alarm]) -> QuerySet[Alarm]:
        """Narrow the list."""
        return queryset.filter(closed_at__isnull=self.value() == "open") if self.value() else queryset


class KindFilter(DropdownFilter):
    """By kind."""

    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Every kind that there is."""
        return [(kind.value, Alarm(kind=kind).kind_in_words) for kind in AlarmKind]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Alarm]) -> QuerySet[Alarm]:
        """Narrow the list."""
        return queryset.filter(kind=self.value()) if self.value() else queryset


@admin.register(Alarm)
class AlarmAdmin(UnchangeableAdmin):
    """Open alarms first. They close by themselves; a person closes what can't come right, such as a lost event."""

    list_display = ("shown_state", "shown_kind", "shown_subject", "shown_message", "opened", "closed")
    list_display_links = ("shown_kind",)
    list_filter = (StateFilter, KindFilter)
    list_filter_submit = True
    list_per_page = 50
    ordering = (F("closed_at").desc(nulls_first=True), "-id")
    fields = (
        "state",
        "shown_kind",
        "shown_subject",
        "message",
        "what_to_do",
        "opened",
        "seen",
        "mailed",
        "closed",
        "how_it_ended",
        "exact_subject",
    )
    readonly_fields = fields
    actions = ("close",)
    actions_detail = ("deal_with",)

    def has_close_permission(self, request: HttpRequest, object_id: object = None) -> bool:
        """Whoever may change alarms."""
        return request.user.has_perm("usage.change_alarm")

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list; an empty one says of what there is none."""
        listed = super().get_changelist_instance(request)
        listed.nothing = "No open alarms." if request.GET.get("state") == "open" else ""
        return listed

    def get_actions_detail(self, request: HttpRequest, object_id: int) -> list[UnfoldAction]:
        """What can be done with an open alarm; with a closed one, nothing."""
        alarm = self.get_object(request, str(object_id))
        return super().get_actions_detail(request, object_id) if alarm and alarm.closed_at is None else []

    @action(description="Mark as dealt with", icon="task_alt", url_path="deal-with", permissions=["close"])
    def deal_with(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask why, then close it."""
        alarm = self.get_object(request, object_id)
        if alarm is None:
            raise Http404
        back = reverse("admin:usage_alarm_change", args=(alarm.pk,))
        form = ReasonForm(request.POST if request.method == "POST" else None)
        if form.is_valid():
            closed = alarms.deal_with([alarm], form.cleaned_data["reason"])
            messages.success(request, "Dealt with." if closed else "It was over already.")
            return HttpResponseRedirect(back)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": alarm,
            "form": form,
            "back": back,
            "title": "Mark this alarm as dealt with?",
            "text": f"{alarm.message} {LATER}",
            "submit_text": "Mark as dealt with",
        }
        return TemplateResponse(request, "admin/confirm.html", context)

    @action(description="Mark as dealt with", permissions=["close"])
    def close(self, request: HttpRequest, queryset: QuerySet[Alarm]) -> HttpResponse | None:
        """Ask why, then close those of the selected that are open."""
        open_ones = list(queryset.filter(closed_at=None))
        if not open_ones:
            messages.info(request, "All of these are closed.")
            return None
        reason = ask_for_many(
            self,
            request,
            title=f"Mark {_alarms(len(open_ones))} as dealt with?",
            text=LATER,
            submit_text="Mark as dealt with",
            back=reverse("admin:usage_alarm_changelist"),
        )
        if not isinstance(reason, str):
            return reason
        messages.success(request, f"{_alarms(alarms.deal_with(open_ones, reason))} closed.")
        return None

    @display(description="state", label={"open": "danger", "closed": "success"})
    def shown_state(self, alarm: Alarm) -> tuple[str, str]:
        """Whether it is still so."""
        return ("closed", "Closed") if alarm.closed_at else ("open", "Open")

    @display(description="state")
    def state(self, alarm: Alarm) -> str:
        """The same on its page, which knows no labels."""
        return "Closed" if alarm.closed_at else "Open"

    @display(description="kind")
    def shown_kind(self, alarm: Alarm) -> SafeString:
        """The kind, in words."""
        return in_one_line(alarm.kind_in_words)

    @display(description="subject")
    def shown_subject(self, alarm: Alarm) -> str:
        """What it is about."""
        return alarm.about or "–"

    @display(description="exact subject")
    def exact_subject(self, alarm: Alarm) -> str:
        """As the log has it, with the store's uuid."""
        return alarm.subject or "–"

    @display(description="what to do")
    def what_to_do(self, alarm: Alarm) -> SafeString:
        """A sentence or two, and the page for it."""
        advice = ADVICE[AlarmKind(alarm.kind)]
        if not advice.page:
            return format_html("{}", advice.text)
        address = reverse(f"admin:{advice.page}") + (f"?{advice.query}" if advice.query else "")
        return format_html('{} <a class="gw-link" href="{}">Go there</a>', advice.text, address)

    @display(description="how it ended")
    def how_it_ended(self, alarm: Alarm) -> str:
        """By itself, or who closed it and why."""
        if alarm.closed_at is None:
            return "–"
        told = AuditEntry.objects.filter(object_type=alarm._meta.label_lower, object_id=str(alarm.pk))
        entry = told.filter(verb=Verb.DEALT_WITH, at__gte=alarm.closed_at).order_by("id").first()
        return f"Dealt with: {entry.reason} ({entry.actor})" if entry else "By itself: what it told of is right again."

    @display(description="message")
    def shown_message(self, alarm: Alarm) -> str:
        """What is wrong, as far as fits."""
        return alarm.message if len(alarm.message) <= 160 else f"{alarm.message[:159]}…"

    @display(description="opened (UTC)")
    def opened(self, alarm: Alarm) -> SafeString:
        """Since when."""
        return _moment(alarm.opened_at)

    @display(description="last seen (UTC)")
    def seen(self, alarm: Alarm) -> SafeString:
        """When it was last found to be so."""
        return _moment(alarm.seen_at)

    @display(description="mailed (UTC)")
    def mailed(self, alarm: Alarm) -> SafeString:
        """When it was mailed."""
        return _moment(alarm.mailed_at)

    @display(description="closed (UTC)")
    def closed(self, alarm: Alarm) -> SafeString:
        """Until when."""
        return _moment(alarm.closed_at)


def _moment(at: dt.datetime | None) -> SafeString:
    return in_one_line(f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}" if at else "–")


def _alarms(count: int) -> str:
    return f"{count} alarm{'' if count == 1 else 's'}"

"""Alarms in the admin: what needs a person now, and what did."""

import datetime as dt
from typing import Any

from django.contrib import admin
from django.db.models import F, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.timezone import now
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import DropdownFilter
from unfold.decorators import action, display

from usage.admin.readonly import in_one_line
from usage.alarms import AlarmKind
from usage.models import Alarm


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
        return [(kind.value, _words(kind.value)) for kind in AlarmKind]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Alarm]) -> QuerySet[Alarm]:
        """Narrow the list."""
        return queryset.filter(kind=self.value()) if self.value() else queryset


@admin.register(Alarm)
class AlarmAdmin(ModelAdmin):
    """Open alarms first. They close by themselves; a person closes what can't come right, such as a lost event."""

    list_display = ("shown_state", "shown_kind", "subject", "shown_message", "opened", "closed")
    list_display_links = ("shown_kind",)
    list_filter = (StateFilter, KindFilter)
    list_filter_submit = True
    list_per_page = 50
    ordering = (F("closed_at").desc(nulls_first=True), "-id")
    fields = ("shown_kind", "subject", "message", "opened", "seen", "mailed", "closed")
    readonly_fields = fields
    actions = ("close",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody; closing has a permission of its own."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody: what happened stays on record."""
        return False

    def has_close_permission(self, request: HttpRequest) -> bool:
        """Whoever may change alarms."""
        return request.user.has_perm("usage.change_alarm")

    @action(description="Mark as dealt with", permissions=["close"])
    def close(self, request: HttpRequest, queryset: QuerySet[Alarm]) -> None:
        """Close alarms by hand: what is still wrong at the next look opens again, a gap in a sequence doesn't."""
        still_open = list(queryset.filter(closed_at=None))
        for alarm in still_open:
            self.log_change(request, alarm, "Closed by hand.")
        closed = Alarm.objects.filter(pk__in=[alarm.pk for alarm in still_open], closed_at=None).update(closed_at=now())
        self.message_user(request, f"{closed} alarm{'' if closed == 1 else 's'} closed.")

    @display(description="state", label={"open": "danger", "closed": "success"})
    def shown_state(self, alarm: Alarm) -> tuple[str, str]:
        """Whether it is still so."""
        return ("closed", "Closed") if alarm.closed_at else ("open", "Open")

    @display(description="kind")
    def shown_kind(self, alarm: Alarm) -> SafeString:
        """The kind, in words."""
        return in_one_line(_words(alarm.kind))

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


def _words(kind: str) -> str:
    return kind.replace("_", " ").capitalize()

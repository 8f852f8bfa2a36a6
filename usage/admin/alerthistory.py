"""Quota alerts in the admin: what was told, and how each delivery of it went."""

import datetime as dt
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import ChoicesDropdownFilter, RangeDateTimeFilter
from unfold.decorators import action, display

from tokens.admin.scoping import TenantFilter
from tokens.roles import rights_of
from usage.admin.readonly import ReadOnlyAdmin, in_one_line
from usage.alerting import delivering
from usage.alertrows import DeliveryStatus
from usage.models import Alert, AlertDelivery

ON_ITS_WAY = "On its way. In a few seconds this list says what came of it; load it again."


@admin.register(Alert)
class AlertAdmin(ReadOnlyAdmin):
    """What was told: each threshold once in a quota's period."""

    tenant_field = "tenant_id"
    list_display = ("found", "tenant", "shown_threshold", "shown_quota", "scope_name", "shown_use")
    list_display_links = ("found",)
    list_filter = (("tenant", TenantFilter), ("metric", ChoicesDropdownFilter), ("at", RangeDateTimeFilter))
    list_select_related = ("tenant",)
    ordering = ("-id",)
    fields = ("found", "tenant", "scope_name", "shown_quota", "shown_period", "threshold_in_words", "shown_use", "told")
    readonly_fields = fields
    csv_name = "quota-alerts"
    csv_columns = {
        "at": "at",
        "tenant": "tenant__slug",
        "scope": "scope",
        "scope_id": "scope_id",
        "scope_name": "scope_name",
        "metric": "metric",
        "period": "period_name",
        "threshold": "threshold",
        "used": "used",
        "amount": "amount",
    }

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list; an empty one says when there will be some."""
        listed = super().get_changelist_instance(request)
        listed.nothing = "" if request.GET else "No quota has reached a threshold that somebody wants to be told of."
        return listed

    @display(description="found (UTC)")
    def found(self, alert: Alert) -> SafeString:
        """When it was found, within a minute or two of when it happened."""
        return _moment(alert.at)

    @display(description="reached", label={"full": "danger", "high": "warning"})
    def shown_threshold(self, alert: Alert) -> tuple[str, str]:
        """The threshold."""
        return ("full" if alert.threshold >= 100 else "high"), f"{alert.threshold} %"

    @display(description="reached")
    def threshold_in_words(self, alert: Alert) -> str:
        """The same on its page, which knows no labels."""
        return f"{alert.threshold} %"

    @display(description="period")
    def shown_period(self, alert: Alert) -> str:
        """The day or month; a total has none."""
        kind, _, name = alert.period_name.partition(":")
        return "all time" if kind == "total" else name

    @display(description="quota")
    def shown_quota(self, alert: Alert) -> str:
        """The quota, in words."""
        return alert.quota

    @display(description="used")
    def shown_use(self, alert: Alert) -> SafeString:
        """As it was then."""
        return in_one_line(f"{alert.used:,} of {alert.amount:,}")

    @display(description="who was told")
    def told(self, alert: Alert) -> SafeString | str:
        """Each delivery, with what came of it."""
        line = '<p><a class="gw-link" href="{}">{}</a>: {}</p>'
        rows = (
            (reverse("admin:usage_alertdelivery_change", args=(one.pk,)), one.target, _outcome(one))
            for one in alert.deliveries.order_by("id")[:100]
        )
        return format_html_join("", line, rows) or "Nobody: there was no address and no webhook."


@admin.register(AlertDelivery)
class AlertDeliveryAdmin(ReadOnlyAdmin):
    """Deliveries: attempts, outcome, and what the other side said."""

    tenant_field = "tenant_id"
    list_display = ("made", "tenant", "target", "shown_about", "shown_status", "attempts", "shown_error")
    list_display_links = ("made",)
    list_filter = (("tenant", TenantFilter), ("status", ChoicesDropdownFilter), ("channel", ChoicesDropdownFilter))
    list_select_related = ("tenant", "alert")
    ordering = ("-id",)
    fields = (
        *("made", "tenant", "channel", "target", "about_link", "message_id", "status_in_words", "attempts"),
        *("shown_next", "last_status", "answer", "error", "finished"),
    )
    readonly_fields = fields
    actions_detail = ("again",)
    csv_name = "quota-alert-deliveries"
    csv_columns = {
        "created_at": "created_at",
        "tenant": "tenant__slug",
        "channel": "channel",
        "target": "target",
        "message_id": "message_id",
        "status": "status",
        "attempts": "attempts",
        "last_status": "last_status",
        "error": "error",
        "finished_at": "finished_at",
    }

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list; an empty one says what comes here."""
        listed = super().get_changelist_instance(request)
        listed.nothing = "" if request.GET else "Nothing was sent yet. Mails and webhooks are listed here."
        return listed

    def has_again_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        """Whoever may change this tenant's webhooks."""
        rights = rights_of(request.user)
        return rights.platform or rights.may("usage.change_webhook", self._tenant_of(object_id))

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """What was given up can be tried again."""
        delivery = self.get_object(request, str(object_id))
        found: list[Any] = super().get_actions_detail(request, object_id)
        return found if delivery is not None and delivery.status == DeliveryStatus.FAILED else []

    @action(description="Try again", icon="replay", url_path="again", permissions=["again"])
    def again(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then put it on its way once more."""
        delivery = self.get_object(request, object_id)
        if delivery is None:
            raise Http404
        back = reverse("admin:usage_alertdelivery_change", args=(delivery.pk,))
        if request.method == "POST":
            with transaction.atomic():
                started = delivering.try_again(delivery)
            messages.info(request, ON_ITS_WAY if started else "It is not given up.")
            return HttpResponseRedirect(back)
        context = {**self.admin_site.each_context(request), "opts": self.opts, "original": delivery, "back": back}
        context |= {"form": forms.Form(), "title": "Try again?", "submit_text": "Try again"}
        context |= {"text": f"The same message goes to {delivery.target} at once, and then as often as a new one."}
        return TemplateResponse(request, "admin/confirm.html", context)

    @display(description="made (UTC)")
    def made(self, delivery: AlertDelivery) -> SafeString:
        """When it was put on its way."""
        return _moment(delivery.created_at)

    @display(description="about")
    def shown_about(self, delivery: AlertDelivery) -> SafeString:
        """What it tells."""
        alert = delivery.alert
        return in_one_line(f"{alert.threshold} % of {alert.quota}" if alert else "A test")

    @display(description="about")
    def about_link(self, delivery: AlertDelivery) -> SafeString | str:
        """The same on its page, with the way to the alert."""
        if delivery.alert is None:
            return "A test"
        address = reverse("admin:usage_alert_change", args=(delivery.alert.pk,))
        return format_html('<a class="gw-link" href="{}">{}</a>', address, str(delivery.alert))

    @display(description="status", label={"waiting": "info", "sent": "success", "failed": "danger"})
    def shown_status(self, delivery: AlertDelivery) -> tuple[str, str]:
        """How far it has come."""
        return delivery.status, DeliveryStatus(delivery.status).label

    @display(description="status")
    def status_in_words(self, delivery: AlertDelivery) -> str:
        """The same on its page, which knows no labels."""
        return DeliveryStatus(delivery.status).label

    @display(description="last error")
    def shown_error(self, delivery: AlertDelivery) -> str:
        """Why it wasn't taken."""
        return delivery.error or "–"

    @display(description="next attempt (UTC)")
    def shown_next(self, delivery: AlertDelivery) -> SafeString | str:
        """When it is tried again."""
        return _moment(delivery.next_attempt_at) if delivery.status == DeliveryStatus.WAITING else "–"

    @display(description="finished (UTC)")
    def finished(self, delivery: AlertDelivery) -> SafeString:
        """When it was delivered or given up."""
        return _moment(delivery.finished_at)


def _outcome(delivery: AlertDelivery) -> str:
    words = DeliveryStatus(delivery.status).label.lower()
    times = f"{delivery.attempts} attempt{'' if delivery.attempts == 1 else 's'}"
    return f"{words} after {times}. {delivery.error}".strip() if delivery.attempts else "on its way"


def _moment(at: dt.datetime | None) -> SafeString:
    return in_one_line(f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}" if at else "–")

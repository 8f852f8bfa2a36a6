"""Quota alerts in the admin: who is told at which shares, and webhooks."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.decorators import action, display
from unfold.paginator import InfinitePaginator

from tokens import audit
from tokens.admin.scoping import OwnRows, TenantFilter, row_id
from tokens.admin.shownonce import show_once
from usage.admin.alertforms import AlertSettingForm, WebhookForm
from usage.admin.alerthistory import ON_ITS_WAY
from usage.alerting import addresses, quotas
from usage.alertrows import Channel, DeliveryStatus
from usage.models import AlertDelivery, AlertSetting, Webhook

NO_MAIL = "The gateway has no mail server yet, so nobody is mailed until its operator sets EMAIL_URL."
SIGNED_WITH = (
    "This is the only time that it is shown. Enter it where messages are checked: it verifies the webhook-signature "
    "header, by the Standard Webhooks specification, whose libraries exist for most languages. It is stored encrypted."
)
REPLACES = (
    "From its next message on the new one signs. Whoever checks signatures refuses messages until the new one is "
    "entered there; those that were refused are sent again for about a day."
)


class AlertPage(OwnRows):
    """What the two pages below share: rows of a tenant, and a test."""

    tenant_field = "tenant_id"
    list_filter = (("tenant", TenantFilter),)
    list_filter_submit = True
    list_select_related = ("tenant",)
    list_per_page = 50
    paginator = InfinitePaginator
    show_full_result_count = False
    search_fields: tuple[str, ...] = ("tenant__slug", "tenant__name")
    autocomplete_fields = ("tenant",)
    nothing = ""

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """It stays with its tenant."""
        return ("tenant",) if obj is not None else ()

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list; an empty one says what it is for."""
        listed = super().get_changelist_instance(request)
        listed.nothing = "" if request.GET else self.nothing
        return listed

    def find(self, request: HttpRequest, object_id: Any) -> Any:
        """The row of a page of our own, or 404."""
        number = row_id(object_id)
        row = self.get_queryset(request).filter(pk=number).first() if number is not None else None
        if row is None:
            raise Http404
        return row

    def page(self, pk: int) -> str:
        """The address of a row's page."""
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=(pk,))

    def ask(self, request: HttpRequest, row: Any, **texts: Any) -> HttpResponse:
        """The page that asks first. `texts`: title, text, submit_text."""
        context = {**self.admin_site.each_context(request), "opts": self.opts, "original": row}
        context |= {"form": forms.Form(), "back": self.page(row.pk), **texts}
        return TemplateResponse(request, "admin/confirm.html", context)

    def send(self, request: HttpRequest, row: Any, tests: list[AlertDelivery]) -> HttpResponse:
        """Put tests on their way, and lead to where their outcome is seen. One at a time: each is tried for a day."""
        waiting = AlertDelivery.objects.filter(tenant=row.tenant_id, alert=None, status=DeliveryStatus.WAITING)
        if waiting.filter(target__in=[test.target for test in tests]).exists():
            messages.warning(request, "The test before is still on its way: see what comes of it first.")
        else:
            with transaction.atomic():
                AlertDelivery.objects.bulk_create(tests)
                audit.note("sent a test to", row)
            messages.success(request, ON_ITS_WAY)
        listed = reverse("admin:usage_alertdelivery_changelist")
        return HttpResponseRedirect(f"{listed}?tenant__id__exact={row.tenant_id}")


@admin.register(AlertSetting)
class AlertSettingAdmin(AlertPage):
    """Who is told by mail, and at which shares of a quota."""

    form = AlertSettingForm
    fields = ("tenant", "thresholds", "emails")
    list_display = ("tenant", "tells_at", "mails_to")
    actions_detail = ("test",)
    nothing = "Nobody is told about quotas yet. Add a tenant's alert setting, or a webhook."

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """The form; without a mail server it says so."""
        if request.method == "GET" and not settings.EMAIL_URL:
            messages.warning(request, NO_MAIL)
        return super().changeform_view(request, *args, **kwargs)

    @action(description="Send a test", icon="outgoing_mail", url_path="test", permissions=["change"])
    def test(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then mail everybody."""
        setting = self.find(request, object_id)
        mails = [one for one in quotas.deliveries(setting.tenant, None, setting.emails) if one.channel == Channel.EMAIL]
        if not mails:
            messages.info(request, "There is no address to send a test to: add one first.")
            return HttpResponseRedirect(self.page(setting.pk))
        if request.method == "POST":
            return self.send(request, setting, mails)
        text = f"A short mail that says it is a test goes to {', '.join(setting.emails)}."
        return self.ask(request, setting, title="Send a test?", text=text, submit_text="Send it")

    @display(description="tells at")
    def tells_at(self, setting: AlertSetting) -> str:
        """The shares."""
        return ", ".join(f"{threshold} %" for threshold in sorted(setting.thresholds))

    @display(description="mails to")
    def mails_to(self, setting: AlertSetting) -> str:
        """The addresses."""
        return ", ".join(setting.emails) or "nobody; webhooks are called"


@admin.register(Webhook)
class WebhookAdmin(AlertPage):
    """Webhooks. Their secrets are shown once."""

    form = WebhookForm
    fields = ("tenant", "url", "active")
    list_display = ("shown_url", "tenant", "state", "created_at")
    search_fields = ("tenant__slug", "tenant__name", "url")
    actions_detail = ("test", "new_secret")
    nothing = "No webhooks yet. Add one to have a tenant's own system told about its quotas."

    def add_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """The form for a new one: one at a time, since its secret is shown next."""
        buttons = {"show_save_and_continue": False, "show_save_and_add_another": False}
        kwargs["extra_context"] = {**(kwargs.get("extra_context") or {}), **buttons}
        return super().add_view(request, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: Webhook, form: Any, change: bool) -> None:
        """A new one gets its secret."""
        if not change:
            request.fresh_secret = obj.new_secret()  # type: ignore[attr-defined]  # in this request only
        super().save_model(request, obj, form, change)

    def response_add(self, request: HttpRequest, obj: Webhook, post_url_continue: str | None = None) -> HttpResponse:
        """Show the secret, this once."""
        return self._show(request, obj, request.fresh_secret, "Webhook added")  # type: ignore[attr-defined]

    @action(description="Send a test", icon="send", url_path="test", permissions=["change"])
    def test(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then call it."""
        hook = self.find(request, object_id)
        if request.method == "POST":
            return self.send(request, hook, [quotas.to_webhook(hook, None)])
        text = f"{hook.audit_name()} gets a signed message of the type quota.test, and again if that fails."
        return self.ask(request, hook, title="Send a test?", text=text, submit_text="Send it")

    @action(description="New secret", icon="key", url_path="new-secret", permissions=["change"])
    def new_secret(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then replace the secret and show the new one."""
        hook = self.find(request, object_id)
        if request.method != "POST":
            return self.ask(request, hook, title="Make a new secret?", text=REPLACES, submit_text="Make a new secret")
        secret = hook.new_secret()
        hook.save(update_fields=["encrypted"])
        return self._show(request, hook, secret, "New secret")

    def _show(self, request: HttpRequest, hook: Webhook, secret: str, title: str) -> HttpResponse:
        return show_once(self, request, hook, secret, title=title, text=SIGNED_WITH, back=self.page(hook.pk))

    @display(description="URL", ordering="url")
    def shown_url(self, hook: Webhook) -> str:
        """Its host only: the rest may hold a secret of the receiver's."""
        return addresses.shown(hook.url)

    @display(description="status", label={"on": "success", "off": "warning"}, ordering="active")
    def state(self, hook: Webhook) -> tuple[str, str]:
        """Whether it is called."""
        return ("on", "Active") if hook.active else ("off", "Switched off")

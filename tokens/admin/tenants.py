"""Tenants in the admin."""

import zoneinfo
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.timezone import now
from unfold.contrib.filters.admin import ChoicesDropdownFilter, RelatedDropdownFilter
from unfold.decorators import action, display
from unfold.enums import ActionVariant

from tokens import plans, stopping
from tokens.admin.limits import TenantLimitInline
from tokens.admin.members import STATUS_COLOURS, MemberInline, NewMemberInline
from tokens.admin.pages import ScopeAdmin, warn_if_waiting
from tokens.admin.scoping import row_id
from tokens.admin.standing import Figures, today_of
from tokens.admin.tenantforms import TenantForm
from tokens.admission.connection import StoreUnavailable
from tokens.models import ProxyToken, Status, Tenant
from tokens.roles import is_platform, rights_of


@admin.register(Tenant)
class TenantAdmin(ScopeAdmin):
    """A tenant with its limits and members."""

    tenant_field = "pk"
    form = TenantForm
    list_display = ("name", "slug", "shown_status", "plan", "tokens", "requests_today", "images_today", "zone_now")
    list_select_related = ("plan",)
    list_filter = (("status", ChoicesDropdownFilter), ("plan", RelatedDropdownFilter))
    list_filter_submit = True
    search_fields = ("slug", "name")
    inlines = (TenantLimitInline, MemberInline, NewMemberInline)
    actions_detail = ("issue", "suspend", "activate", "keep_zone")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """A new tenant is active from the start."""
        zone = "timezone" if is_platform(request.user) else "zone_now"
        policy = "unresolved_policy" if is_platform(request.user) else "policy_now"
        plan = "plan" if is_platform(request.user) else "plan_now"
        names: list[Any] = [("name", "slug"), (zone, "model"), "origins", (plan, policy)]
        if obj is not None:
            names.append(("status", "created_at"))
            if pending_zone(obj):
                names.append(("next_timezone", "next_timezone_from"))
        return ((None, {"fields": names}),)

    def get_readonly_fields(self, request: HttpRequest, obj: object = None) -> tuple[str, ...]:
        """Commands and reports name it by its short name."""
        fixed = (
            "slug",
            "status",
            "created_at",
            "zone_now",
            "policy_now",
            "plan_now",
            "next_timezone",
            "next_timezone_from",
        )
        return fixed if obj is not None else ()

    def get_inlines(self, request: HttpRequest, obj: object) -> tuple[Any, ...]:
        """A new tenant has no members to look at."""
        return self.inlines if obj is not None else (TenantLimitInline, NewMemberInline)

    def get_list_filter(self, request: HttpRequest) -> Any:
        """By plan for the platform, whose plans they are."""
        filters = super().get_list_filter(request)
        return filters if is_platform(request.user) else [one for one in filters if one[0] != "plan"]

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Save the limits; what the plan gives follows, beside those that override it."""
        super().save_related(request, form, formsets, change)
        plans.follow_if_behind(form.instance.pk)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Tenant]:
        """With the number of tokens."""
        counts = ProxyToken.objects.filter(tenant=OuterRef("pk")).order_by().values("tenant").annotate(n=Count("pk"))
        queryset: QuerySet[Tenant] = super().get_queryset(request)
        return queryset.annotate(token_count=Coalesce(Subquery(counts.values("n")), 0))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, with what each tenant on the page has used today."""
        response: HttpResponse = super().changelist_view(request, extra_context)
        rows = getattr((getattr(response, "context_data", None) or {}).get("cl"), "result_list", None)
        if rows is not None:
            try:
                today = today_of(rows)
            except StoreUnavailable:
                messages.warning(request, "The admission store did not answer: today's figures are missing.")
                today = {}
            for tenant in rows:
                tenant.today = today.get(tenant.pk)
        return response

    def save_model(self, request: HttpRequest, obj: Tenant, form: Any, change: bool) -> None:
        """Say so when a new time zone waits for the next month."""
        super().save_model(request, obj, form, change)
        if "timezone" in form.changed_data and obj.next_timezone_from:
            at = obj.next_timezone_from.astimezone(zoneinfo.ZoneInfo(obj.timezone))
            self.message_user(
                request,
                f"{obj.next_timezone} begins with the next month, on {at:%Y-%m-%d}. Until then it is {obj.timezone}.",
                messages.INFO,
            )

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what can be done with it now."""
        tenant = self.rows(request, object_id).first()
        if tenant is None:
            return []
        hidden = {"suspend" if tenant.status == Status.SUSPENDED else "activate"}
        if not pending_zone(tenant):
            hidden.add("keep-zone")
        return [one for one in super().get_actions_detail(request, object_id) if one.path not in hidden]

    def has_issue_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        """Whoever may issue tokens for it."""
        rights = rights_of(request.user)
        return rights.platform or rights.may("tokens.add_proxytoken", row_id(object_id))

    def has_govern_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        """Whether a tenant may call, and by which calendar, is the platform's to say."""
        return is_platform(request.user)

    @display(description="status", label=STATUS_COLOURS, ordering="status")
    def shown_status(self, tenant: Tenant) -> tuple[str, str]:
        """Active or suspended."""
        return tenant.status, tenant.get_status_display()

    @display(ordering="token_count")
    def tokens(self, tenant: Any) -> int:
        """How many tokens it has."""
        return int(tenant.token_count)

    @display(description="time zone", ordering="timezone")
    def zone_now(self, tenant: Tenant) -> str:
        """The one in force."""
        return tenant.zone(now()).key

    @display(description="unresolved calls")
    def policy_now(self, tenant: Tenant) -> str:
        """What they count as when a month is closed."""
        return tenant.get_unresolved_policy_display()

    @display(description="plan")
    def plan_now(self, tenant: Tenant) -> str:
        """What it is sold."""
        return str(tenant.plan or "none")

    @display(description="requests today")
    def requests_today(self, tenant: Any) -> str:
        """What the admission store counts, calls under way included."""
        return _taken(tenant.today, "requests")

    @display(description="images today")
    def images_today(self, tenant: Any) -> str:
        """What the admission store counts, calls under way included."""
        return _taken(tenant.today, "images")

    @action(
        description="Issue token", icon="add", url_path="issue", variant=ActionVariant.PRIMARY, permissions=["issue"]
    )
    def issue(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """On to the form for a new token of this tenant."""
        tenant = self.find(request, object_id)
        return HttpResponseRedirect(f"{reverse('admin:tokens_proxytoken_add')}?tenant={tenant.pk}")

    @action(description="Suspend", icon="block", url_path="suspend", permissions=["govern"])
    def suspend(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then suspend."""
        tenant = self.find(request, object_id)

        def carry_out(_form: forms.Form) -> None:
            durable = stopping.suspend_tenant(tenant.slug, str(request.user))
            text = f"{tenant} is suspended: none of its tokens works."
            if not durable:
                text += " The database did not answer, and will have it when it is back."
            self.message_user(request, text)

        return self.confirm(
            request,
            tenant,
            carry_out,
            title=f"Suspend {tenant}?",
            text="None of its tokens works from then on. Activating it lets them work again.",
            submit_text="Suspend",
            danger=True,
        )

    @action(description="Activate", icon="check", url_path="activate", permissions=["govern"])
    def activate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then activate."""
        tenant = self.find(request, object_id)

        def carry_out(_form: forms.Form) -> None:
            stopping.activate_tenant(tenant.slug)
            self.message_user(request, f"{tenant} is active again.")

        return self.confirm(
            request,
            tenant,
            carry_out,
            title=f"Activate {tenant}?",
            text="Its tokens work again, unless they are revoked or expired or their member is suspended.",
            submit_text="Activate",
        )

    @action(description="Keep time zone", icon="schedule", url_path="keep-zone", permissions=["govern"])
    def keep_zone(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then cancel a change of the time zone that has yet to begin."""
        tenant = self.find(request, object_id)
        zone, pending = tenant.zone(now()).key, pending_zone(tenant)

        def carry_out(_form: forms.Form) -> None:
            tenant.timezone = zone
            tenant.save(update_fields=["timezone"])
            self.message_user(request, f"{tenant} keeps {zone}.")
            warn_if_waiting(request, tenant)

        return self.confirm(
            request,
            tenant,
            carry_out,
            title=f"Keep {zone}?",
            text=f"The change to {pending} that was to begin next month is cancelled." if pending else "",
            submit_text=f"Keep {zone}",
        )


def pending_zone(tenant: Tenant) -> str:
    """The time zone that a tenant will have from next month on; empty when it keeps the one in force."""
    return tenant.next_timezone if tenant.next_timezone != tenant.zone(now()).key else ""


def _taken(figures: Figures | None, metric: str) -> str:
    return "–" if figures is None else f"{figures.used[metric] + figures.reserved[metric]:,}"

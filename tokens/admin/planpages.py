"""Plans in the admin: named sets of limits. A change of one changes its tenants' limits, which is said before."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Count, Exists, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.forms import ModelForm, all_valid
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import TabularInline
from unfold.decorators import display
from unfold.forms import PaginationInlineFormSet
from unfold.paginator import InfinitePaginator

from tokens import plans
from tokens.admin.limits import SHOWN_FIRST, forgive_period
from tokens.admin.scoping import OwnRows
from tokens.models import Limit, Plan, PlanLimit, Tenant
from tokens.planrow import PlanScope

AGREED = "_agreed"
CONSEQUENCES = (
    "Each tenant with this plan gets these limits, from the next call on; those that a tenant overrides stay its own. "
    "A tenant that has used more than a new limit allows is refused with 429 until the period ends. What new tokens "
    "start with counts for those that are issued from now on."
)


class PlanLimitForm(ModelForm):  # type: ignore[type-arg]
    """One limit of a plan. What a saved one limits stays, so that two can't swap their names."""

    class Meta:
        model = PlanLimit
        fields = ("scope", "metric", "amount", "period", "burst")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("scope", "metric", "period"):
            self.fields[name].disabled = self.instance.pk is not None
        if self.instance.pk is None:
            for name, first in SHOWN_FIRST.items():
                self.fields[name].initial = first
                self.initial.pop(name, None)

    def clean_period(self) -> str:
        """Concurrent calls have no period."""
        return forgive_period(self.cleaned_data)


class PlanLimitFormSet(PaginationInlineFormSet):
    """The limits of a plan: each metric and period once for the tenant, and once for a token."""

    def clean(self) -> None:
        """Refuse a limit that is there already."""
        super().clean()
        going = {form.instance.pk for form in self.deleted_forms}
        names = {(row.scope, row.text().name) for row in self.get_queryset().all() if row.pk not in going}
        for form in self.extra_forms:
            if form.errors or not form.has_changed() or self._should_delete_form(form):
                continue
            name = (form.instance.scope, form.instance.text().name)
            if name in names:
                form.add_error("metric", f"There is a limit {name[1]} already: change its amount instead.")
            names.add(name)


class PlanLimitInline(TabularInline):
    """What the plan gives."""

    model = PlanLimit
    form = PlanLimitForm
    formset = PlanLimitFormSet
    extra = 0
    hide_title = True
    verbose_name = "limit"
    verbose_name_plural = "limits"


@admin.register(Plan)
class PlanAdmin(OwnRows):
    """Plans. They are the platform's; a tenant's people see what theirs gives them on the tenant's page."""

    list_display = ("name", "tenants", "shown_limits", "description")
    list_per_page = 50
    paginator = InfinitePaginator
    show_full_result_count = False
    search_fields = ("name", "description")
    fieldsets = ((None, {"fields": ("name", "description")}),)
    inlines = (PlanLimitInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Plan]:
        """With the number of tenants, and the limits."""
        counts = Tenant.objects.filter(plan=OuterRef("pk")).order_by().values("plan").annotate(n=Count("pk"))
        queryset: QuerySet[Plan] = super().get_queryset(request)
        return queryset.annotate(tenant_count=Coalesce(Subquery(counts.values("n")), 0)).prefetch_related("limits")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Not while tenants have it."""
        allowed: bool = super().has_delete_permission(request, obj)
        return allowed and not (isinstance(obj, Plan) and obj.tenants.exists())

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """The form; before limits of tenants change, the page that says whose."""
        if request.method == "POST" and object_id is not None and AGREED not in request.POST:
            question = self._question(request, object_id)
            if question is not None:
                return question
        response = super().changeform_view(request, object_id, form_url, extra_context)
        if request.method == "POST" and response.status_code == 302 and object_id is not None:
            self._bring(request, object_id)
        return response

    def _question(self, request: HttpRequest, object_id: str) -> HttpResponse | None:
        """What saving this form would do to tenants, to be agreed to; None when there is nothing to ask."""
        plan = self.get_object(request, object_id)
        if plan is None or not self.has_change_permission(request, plan):
            return None
        following = Tenant.objects.filter(plan=plan)
        if not following.exists():
            return None
        form = self.get_form(request, plan, change=True)(request.POST, request.FILES, instance=plan)
        formsets, _ = self._create_formsets(request, form.instance, change=True)
        if not (form.is_valid() and all_valid(formsets)):
            return None
        told = [text for formset in formsets for text in _changes(formset)]
        if not told:
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": f"Change the limits of {_tenants(following.count())}?",
            "text": CONSEQUENCES,
            "facts": [*told, ("Tenants that override some limit", f"{_overriding(plan).count():,}")],
            "kept": [*_posted(request), (AGREED, "1")],
            "form": forms.Form(),
            "opts": self.opts,
            "original": plan,
            "submit_text": "Save and change them",
            "back": reverse("admin:tokens_plan_change", args=(plan.pk,)),
        }
        return TemplateResponse(request, "admin/confirm.html", context)

    def _bring(self, request: HttpRequest, object_id: str) -> None:
        """Bring the first tenants to what was saved, while the person waits; a task brings the others."""
        waiting = plans.behind().filter(plan_id=int(object_id)).count()
        done = plans.follow_all(plans.AT_ONCE) if waiting else 0
        left = plans.behind().filter(plan_id=int(object_id)).count() if done else 0
        if waiting > left:
            have = "has" if waiting - left == 1 else "have"
            messages.success(request, f"{_tenants(waiting - left)} {have} these limits now.")
        if left:
            messages.info(request, f"{_tenants(left)} follow within minutes, a few hundred at a time.")

    @display(ordering="tenant_count")
    def tenants(self, plan: Any) -> SafeString | str:
        """How many tenants have it, which leads to them."""
        if not plan.tenant_count:
            return "none"
        address = f"{reverse('admin:tokens_tenant_changelist')}?plan__id__exact={plan.pk}"
        return format_html('<a class="gw-link" href="{}">{}</a>', address, f"{plan.tenant_count:,}")

    @display(description="limits")
    def shown_limits(self, plan: Plan) -> str:
        """Those of the tenant, then those of each new token."""
        texts: dict[str, list[str]] = {scope: [] for scope in PlanScope.values}
        for limit in plan.limits.all():
            texts[limit.scope].append(str(limit))
        tenant, token = (", ".join(texts[scope]) for scope in (PlanScope.TENANT, PlanScope.TOKEN))
        return "; each new token: ".join(filter(None, (tenant or ("–" if token else ""), token))) or "none"


def _changes(formset: Any) -> list[tuple[str, str]]:
    """What a valid form of limits changes, in words."""
    told = []
    deleted = {id(form) for form in formset.deleted_forms}
    for form in formset.forms:
        limit = form.instance
        if id(form) in deleted:
            if limit.pk is not None:
                told.append((f"Removed: {limit.audit_name()}", "tenants that don't override it are unlimited there"))
        elif form.has_changed():
            before = PlanLimit.objects.filter(pk=limit.pk).first() if limit.pk is not None else None
            told.append((limit.audit_name(), f"{before or 'none'} → {limit}"))
    return told


def _overriding(plan: Plan) -> QuerySet[Tenant]:
    """The tenants of a plan that override one of its limits."""
    given = PlanLimit.objects.filter(
        plan=plan, scope=PlanScope.TENANT, metric=OuterRef("metric"), period=OuterRef("period")
    )
    own = Limit.objects.filter(tenant=OuterRef("pk"), member=None, token=None, from_plan=False)
    return Tenant.objects.filter(Exists(own.filter(Exists(given))), plan=plan)


def _posted(request: HttpRequest) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in request.POST.items() if name != "csrfmiddlewaretoken"]


def _tenants(count: int) -> str:
    return f"{count:,} tenant{'' if count == 1 else 's'}"

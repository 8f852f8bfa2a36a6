"""Limits inside the pages of tenants, members and tokens, by the rules of tokens.limits."""

from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest
from unfold.admin import TabularInline
from unfold.decorators import display
from unfold.forms import PaginationInlineFormSet

from tokens.models import Limit, Metric, Period, Tenant
from tokens.planrow import PlanScope, limits_given
from tokens.roles import is_platform

SHOWN_FIRST = {"metric": Metric.IMAGES.value, "period": Period.DAY.value}
FROM_PLAN = "It comes with the tenant's plan: set another amount to override it, or choose another plan."


def forgive_period(cleaned: dict[str, Any]) -> str:
    """Concurrent calls have no period; the form forgives whatever the list was left at."""
    period: str = cleaned["period"]
    return Period.NONE.value if cleaned.get("metric") == Metric.CONCURRENT else period


class LimitForm(ModelForm):  # type: ignore[type-arg]
    """One limit. What a saved one limits stays: a total quota goes on counting, and two can't swap their names."""

    class Meta:
        model = Limit
        fields = ("metric", "amount", "period", "burst")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, first in SHOWN_FIRST.items():
            if self.instance.pk is not None:
                self.fields[name].disabled = True
            else:
                self.fields[name].initial = first
                self.initial.pop(name, None)

    def clean_period(self) -> str:
        """Concurrent calls have no period."""
        return forgive_period(self.cleaned_data)

    def save(self, commit: bool = True) -> Limit:
        """Save; what was the plan's and is changed here overrides it from now on."""
        self.instance.from_plan = False
        saved: Limit = super().save(commit)
        return saved


class LimitFormSet(PaginationInlineFormSet):
    """The limits of one scope: each metric and period once."""

    def full_clean(self) -> None:
        """A new scope has its tenant only now; otherwise its limits would seem to belong to none."""
        if not isinstance(self.instance, Tenant):
            for form in self.forms:
                form.instance.tenant_id = self.instance.tenant_id
        super().full_clean()

    def clean(self) -> None:
        """Refuse a limit that is there already. The scope's row is locked, so nobody adds it meanwhile."""
        super().clean()
        if self.instance.pk is not None:
            type(self.instance)._default_manager.select_for_update(no_key=True).get(pk=self.instance.pk)
        for form in self.deleted_forms:
            if form.instance.from_plan:
                raise ValidationError(f"{form.instance.text().name}: {FROM_PLAN}")
        going = {form.instance.pk for form in self.deleted_forms}
        names = {limit.text().name for limit in self.get_queryset().all() if limit.pk not in going}
        for form in self.extra_forms:
            if form.errors or not form.has_changed() or self._should_delete_form(form):
                continue
            name = form.instance.text().name
            if name in names:
                form.add_error("metric", f"There is a limit {name} already: change its amount instead.")
            names.add(name)


class LimitInline(TabularInline):
    """A scope's own limits."""

    model = Limit
    form = LimitForm
    formset = LimitFormSet
    extra = 0
    hide_title = True
    verbose_name_plural = "limits"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Limit]:
        """Exactly this scope's: a tenant's limits don't include its members'."""
        queryset: QuerySet[Limit] = super().get_queryset(request)
        return queryset.filter(member=None, token=None) if self.parent_model is Tenant else queryset

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A tenant's administrators set the limits of its members and tokens."""
        return super().has_add_permission(request, obj) and self._may_set(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The same."""
        return super().has_change_permission(request, obj) and self._may_set(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The same."""
        return super().has_delete_permission(request, obj) and self._may_set(request)

    def _may_set(self, request: HttpRequest) -> bool:
        """The tenant's own limits are what it is sold: only a platform administrator sets them."""
        return self.parent_model is not Tenant or is_platform(request.user)


class TenantLimitInline(LimitInline):
    """A tenant's own limits: which of them come with its plan, and which override it."""

    fields = ("metric", "amount", "period", "burst", "origin")
    readonly_fields = ("origin",)

    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        """What the plan gives is read once for all rows."""
        self._plan = obj.plan if obj is not None else None
        self._given = limits_given(self._plan, PlanScope.TENANT)
        return super().get_formset(request, obj, **kwargs)

    @display(description="origin")
    def origin(self, limit: Limit) -> str:
        """Where it comes from."""
        if limit._state.adding:
            return "–"
        if limit.from_plan:
            return f"plan {self._plan}"
        overridden = self._given.get(limit.text().name)
        return "its own" if overridden is None else f"overrides {overridden} of plan {self._plan}"

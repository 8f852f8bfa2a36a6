"""Limits inside the pages of tenants, members and tokens, by the rules of tokens.limits."""

from typing import Any

from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest
from unfold.admin import TabularInline
from unfold.forms import PaginationInlineFormSet

from tokens.models import Limit, Metric, Period, Tenant


class LimitForm(ModelForm):  # type: ignore[type-arg]
    """One limit. What a saved one limits stays: a total quota goes on counting, and two can't swap their names."""

    class Meta:
        model = Limit
        fields = ("metric", "amount", "period", "burst")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, first in (("metric", Metric.IMAGES), ("period", Period.DAY)):
            if self.instance.pk is not None:
                self.fields[name].disabled = True
            else:
                self.fields[name].initial = first.value
                self.initial.pop(name, None)

    def clean_period(self) -> str:
        """Concurrent calls have no period; the form forgives whatever the list was left at."""
        period: str = self.cleaned_data["period"]
        return Period.NONE.value if self.cleaned_data.get("metric") == Metric.CONCURRENT else period


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
    verbose_name_plural = "limits"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Limit]:
        """Exactly this scope's: a tenant's limits don't include its members'."""
        queryset: QuerySet[Limit] = super().get_queryset(request)
        return queryset.filter(member=None, token=None) if self.parent_model is Tenant else queryset

"""The list of models to choose from, which tokens knows nothing of: on the tenants' page, and for tokens."""

from typing import Any

from django import forms
from django.contrib import admin
from unfold.widgets import UnfoldAdminSelectWidget

from gateway.models import Model
from tokens.admin.tenantforms import TenantForm
from tokens.admin.tenants import TenantAdmin
from tokens.models import Tenant
from tokens.offering import models_from

admin.site.unregister(Tenant)


def offered() -> list[str]:
    """The names of the models that can be called."""
    listed = Model.objects.filter(active=True, provider__active=True).order_by("name")
    return list(listed.values_list("name", flat=True))


models_from(offered)  # for tokens, too


class ServedTenantForm(TenantForm):
    """A tenant whose model is one of those that are offered: any other name would give each of its calls 503."""

    model = forms.ChoiceField(
        required=False,
        widget=UnfoldAdminSelectWidget,
        help_text="The model that answers its calls. Empty: the gateway's default model.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = offered()
        choices = [("", "the default model"), *((name, name) for name in names)]
        present = self.instance.model
        if present and present not in names:
            choices.append((present, f"{present} (not offered now)"))
        if "model" in self.fields:  # not where the page is only looked at
            self.fields["model"].choices = choices  # type: ignore[attr-defined]


@admin.register(Tenant)
class ServedTenantAdmin(TenantAdmin):
    """Tenants, each with the model that answers its calls."""

    form = ServedTenantForm

"""The form about a tenant."""

import zoneinfo
from typing import Any

from django.forms import ModelForm
from django.utils.timezone import now
from unfold.widgets import UnfoldAdminSelect2Widget

from tokens.models import Tenant


class TenantForm(ModelForm):  # type: ignore[type-arg]
    """A tenant. Its time zone is chosen from the list of them; of a saved tenant, the one in force is preselected."""

    class Meta:
        model = Tenant
        fields = ("name", "slug", "timezone", "model", "origins", "plan", "unresolved_policy")
        widgets = {
            "timezone": UnfoldAdminSelect2Widget(
                choices=[(name, name) for name in sorted(zoneinfo.available_timezones())]
            )
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk is not None:
            self.initial["timezone"] = self.instance.zone(now()).key

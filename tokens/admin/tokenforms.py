"""The forms about a token: issue, change, rotate, revoke."""

import datetime as dt
from typing import Any

from django import forms
from unfold.widgets import (
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from tokens.admin.members import email_field
from tokens.errors import Refused
from tokens.management.base import read_expiry
from tokens.models import ProxyToken
from tokens.offering import offered

GRACES = {0: "None: it stops working now", 1: "1 hour", 24: "24 hours", 24 * 7: "7 days", 24 * 30: "30 days"}
LIFETIMES = {"30d": "30 days", "90d": "90 days", "365d": "1 year", "": "No end: until it is revoked"}
USUAL_LIFETIME = "90d"


class ModelChoices(forms.ModelForm):  # type: ignore[type-arg]
    """A token whose model is one of those that are offered: any other name would give each of its calls 503."""

    model = forms.ChoiceField(
        required=False,
        widget=UnfoldAdminSelectWidget,
        help_text="The model that answers its calls, instead of the tenant's.",
    )

    class Meta:
        model = ProxyToken
        fields = ("model",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = offered()
        choices = [("", "the tenant's model"), *((name, name) for name in names)]
        present = self.instance.model
        if present and present not in names:
            choices.append((present, f"{present} (not offered now)"))
        if "model" in self.fields:  # not where the page is only looked at
            self.fields["model"].choices = choices  # type: ignore[attr-defined]


class IssueForm(ModelChoices):
    """A token to be: whose it is, and what it may."""

    email = email_field()
    lifetime = forms.ChoiceField(
        label="It lasts",
        required=False,
        choices=list(LIFETIMES.items()),
        widget=UnfoldAdminSelectWidget,
        help_text="A token that ends by itself limits what a leak can cost.",
    )
    expires = forms.CharField(
        label="or until",
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "2027-01-31"}),
        help_text="A date (the tenant's midnight), or a time from now such as 45d or 12h. It counts instead.",
    )
    usual_limits = forms.BooleanField(
        label="The plan's usual limits",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text="Start with what the tenant's plan gives to each new token. Limits that you add below count instead.",
    )

    class Meta:
        model = ProxyToken
        fields = ("tenant", "name", "model", "networks")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial.setdefault("lifetime", USUAL_LIFETIME)
        self.initial.setdefault("usual_limits", True)

    def clean_email(self) -> str:
        """The address as it is stored."""
        return str(self.cleaned_data["email"]).lower()

    def clean_name(self) -> str:
        """Without the blanks around it."""
        return str(self.cleaned_data["name"]).strip()

    def clean(self) -> dict[str, Any] | None:
        """Read the expiry in the tenant's time zone, into `expires_at`."""
        cleaned = super().clean()
        tenant = self.cleaned_data.get("tenant")
        text = self.cleaned_data.get("expires") or self.cleaned_data.get("lifetime")
        self.cleaned_data["expires_at"] = None
        if tenant is not None and text:
            try:
                self.cleaned_data["expires_at"] = read_expiry(text, tenant)
            except Refused as exc:
                self.add_error("expires", str(exc))
        return cleaned


class RotateForm(forms.Form):
    """How long the secret before is still accepted."""

    grace = forms.TypedChoiceField(
        label="The old secret is accepted for",
        choices=list(GRACES.items()),
        coerce=lambda hours: dt.timedelta(hours=int(hours)),
        initial=24,
        widget=UnfoldAdminRadioSelectWidget(choices=list(GRACES.items())),
    )


class RevokeForm(forms.Form):
    """Why."""

    reason = forms.CharField(
        max_length=200,
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True, "placeholder": "leaked in a repository"}),
        help_text="Kept with the token and in the audit trail, for whoever asks later.",
    )

"""The forms about a token: issue, rotate, revoke."""

import datetime as dt
from typing import Any

from django import forms
from django.utils.timezone import now
from unfold.widgets import (
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminTextInputWidget,
)

from tokens.admin.members import email_field
from tokens.errors import Refused
from tokens.management.base import parse_expiry
from tokens.models import ProxyToken

GRACES = {0: "None: it stops working now", 1: "1 hour", 24: "24 hours", 24 * 7: "7 days", 24 * 30: "30 days"}


class IssueForm(forms.ModelForm):  # type: ignore[type-arg]
    """A token to be: whose it is, and what it may."""

    email = email_field()
    expires = forms.CharField(
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "never"}),
        help_text="In 90d or 12h, or on a date such as 2027-01-31 (the tenant's midnight). Empty: it doesn't expire.",
    )

    class Meta:
        model = ProxyToken
        fields = ("tenant", "name", "networks")

    def clean_email(self) -> str:
        """The address as it is stored."""
        return str(self.cleaned_data["email"]).lower()

    def clean_name(self) -> str:
        """Without the blanks around it."""
        return str(self.cleaned_data["name"]).strip()

    def clean(self) -> dict[str, Any] | None:
        """Read the expiry in the tenant's time zone, into `expires_at`."""
        cleaned = super().clean()
        tenant, text = self.cleaned_data.get("tenant"), self.cleaned_data.get("expires")
        self.cleaned_data["expires_at"] = None
        if tenant is not None and text:
            try:
                expires_at = parse_expiry(text, tenant, now())
            except Refused as exc:
                self.add_error("expires", str(exc))
            else:
                self.cleaned_data["expires_at"] = expires_at
                if expires_at <= now():
                    self.add_error("expires", "The token would have expired already: choose a time to come.")
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
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"autofocus": True}),
        help_text="Kept with the token, for whoever asks later.",
    )

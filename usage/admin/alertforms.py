"""The forms about quota alerts: who is told at which shares, and webhooks."""

from typing import Any

from django import forms
from django.contrib.postgres.forms import SimpleArrayField
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextInputWidget

from usage.alertrows import THRESHOLDS, usual_thresholds
from usage.models import AlertSetting, Webhook

MOST_ADDRESSES = 20
MOST_WEBHOOKS = 10
CHOICES = [(threshold, f"{threshold} % used") for threshold in THRESHOLDS]


class AlertSettingForm(forms.ModelForm):  # type: ignore[type-arg]
    """Shares to tick, and addresses in one line."""

    thresholds = forms.TypedMultipleChoiceField(
        label="Tell at",
        choices=CHOICES,
        coerce=int,
        initial=usual_thresholds,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text=AlertSetting._meta.get_field("thresholds").help_text,
    )
    emails = SimpleArrayField(
        forms.EmailField(max_length=254),
        label="E-mail addresses",
        required=False,
        max_length=MOST_ADDRESSES,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "quotas@example.com, ops@example.com"}),
        help_text=AlertSetting._meta.get_field("emails").help_text,
    )

    class Meta:
        model = AlertSetting
        fields = ("tenant", "thresholds", "emails")

    def clean_emails(self) -> list[str]:
        """Each once, without blanks around it."""
        return list(dict.fromkeys(str(email).strip().lower() for email in self.cleaned_data["emails"]))


class WebhookForm(forms.ModelForm):  # type: ignore[type-arg]
    """A webhook."""

    class Meta:
        model = Webhook
        fields = ("tenant", "url", "active")

    def clean(self) -> dict[str, Any] | None:
        """A tenant has so many and no more."""
        cleaned = super().clean()
        tenant = self.cleaned_data.get("tenant")
        if self.instance.pk is None and tenant and Webhook.objects.filter(tenant=tenant).count() >= MOST_WEBHOOKS:
            self.add_error(None, f"{tenant.name} has {MOST_WEBHOOKS} webhooks, which is the most: remove one first.")
        return cleaned

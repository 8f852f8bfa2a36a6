"""The forms of the price book: a price, a file of prices, and a call of which somebody asks what it would cost."""

import datetime as dt
import io
from decimal import Decimal
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.timezone import now
from unfold.widgets import (
    UnfoldAdminDateWidget,
    UnfoldAdminFileFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from tokens.errors import Refused
from tokens.models import Tenant
from tokens.validators import validate_model_name, validate_quality
from usage import pricebook
from usage.exports import plain
from usage.models import Price
from usage.pricebook import Line
from usage.pricerow import PROVIDER_ASKS, SELLS, validate_size
from usage.prices import Tokens, Wanted

MOST_BYTES = 5_000_000
COUNT: dict[str, Any] = {
    "required": False,
    "min_value": 0,
    "max_value": 10**12,
    "widget": UnfoldAdminIntegerFieldWidget,
}


class PriceForm(forms.ModelForm):  # type: ignore[type-arg]
    """A price; a sentence above the form says for which calls it will be, as it is filled in."""

    class Meta:
        model = Price
        fields = pricebook.COLUMNS
        labels = dict(
            zip(PROVIDER_ASKS, ("An image", "A million input tokens", "A million output tokens"), strict=True)
        )

    class Media:
        js = ("gateway/prices.js",)

    def clean_currency(self) -> str:
        """In capitals."""
        return str(self.cleaned_data["currency"]).upper()


class ImportForm(forms.Form):
    """A file of prices, or its text."""

    file = forms.FileField(label="A CSV file", required=False, widget=UnfoldAdminFileFieldWidget)
    text = forms.CharField(
        label="Or its text",
        required=False,
        strip=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 8, "spellcheck": "false"}),
        help_text=f"The first line names the columns: {', '.join(pricebook.COLUMNS)}. Columns that it doesn't name, and"
        " empty cells, say any tenant, any size, any quality, not charged, unknown.",
    )
    lines: list[Line]

    def clean(self) -> dict[str, Any]:
        """Read it; what it would do is in `lines`."""
        data: dict[str, Any] = super().clean() or self.cleaned_data
        if self.errors:
            return data
        file = data.get("file")
        if bool(file) == bool((data.get("text") or "").strip()):
            raise ValidationError("Choose a file or give its text, one of the two.")
        if file is not None:
            if file.size > MOST_BYTES:
                raise ValidationError("The file is too large: 5 MB at most.")
            try:
                data["text"] = file.read().decode("utf-8-sig")
            except UnicodeDecodeError:
                raise ValidationError("The file is not UTF-8 text.") from None
        try:
            self.lines = pricebook.read(io.StringIO(data["text"], newline=""))
        except Refused as exc:
            raise ValidationError(str(exc)) from exc
        return data


class CallForm(forms.Form):
    """A call that somebody wants to know the cost of."""

    model = forms.CharField(max_length=100, validators=[validate_model_name], widget=UnfoldAdminTextInputWidget)
    tenant = forms.CharField(
        required=False, widget=UnfoldAdminTextInputWidget, help_text="Its short name. Empty: one without own prices."
    )
    size = forms.CharField(required=False, validators=[validate_size], widget=UnfoldAdminTextInputWidget)
    quality = forms.CharField(required=False, validators=[validate_quality], widget=UnfoldAdminTextInputWidget)
    day = forms.DateField(required=False, widget=UnfoldAdminDateWidget, help_text="The tenant's. Empty: today.")
    images = forms.IntegerField(required=False, min_value=0, max_value=10_000, widget=UnfoldAdminIntegerFieldWidget)
    input_tokens = forms.IntegerField(**COUNT)
    output_tokens = forms.IntegerField(**COUNT)
    tokens = forms.IntegerField(
        **COUNT,
        label="Tokens in all",
        help_text="Where the provider says no more. Empty: the sum of the two.",
    )

    def clean_tenant(self) -> Tenant | None:
        """The tenant of that short name."""
        slug = self.cleaned_data["tenant"].strip()
        tenant = Tenant.objects.filter(slug=slug).first() if slug else None
        if slug and tenant is None:
            raise ValidationError(f"There is no tenant {slug}.")
        return tenant

    def wanted(self) -> Wanted:
        """What its price depends on."""
        data = self.cleaned_data
        tenant = data["tenant"].pk if data["tenant"] else None
        return Wanted(tenant, data["model"], data["size"], data["quality"], data["day"] or now().date())

    def figures(self) -> tuple[int, Tokens]:
        """Its images and tokens."""
        data = self.cleaned_data
        read, drawn, charged = data["input_tokens"], data["output_tokens"], data["tokens"]
        if charged is None:
            read, drawn = read or 0, drawn or 0
            charged = read + drawn
        return (1 if data["images"] is None else data["images"]), Tokens(charged, read, drawn)


def successor(price: Price) -> dict[str, Any]:
    """The form of a newer price, filled in with this one."""
    values = {name: getattr(price, name) for name in ("model", "size", "quality", "currency", *SELLS, *PROVIDER_ASKS)}
    amounts = {name: plain(value) if isinstance(value, Decimal) else value for name, value in values.items()}
    tomorrow = now().date() + dt.timedelta(days=1)
    told = {"tenant": price.tenant_id, **amounts, "valid_from": max(tomorrow, price.valid_from + dt.timedelta(days=1))}
    return {name: value for name, value in told.items() if value not in (None, "")}


def asking(price: Price) -> dict[str, Any]:
    """The form of the calculator, filled in for a call at this price."""
    day = max(price.valid_from, now().date())
    tenant = price.tenant.slug if price.tenant else ""
    return {
        "model": price.model,
        "tenant": tenant,
        "size": price.size,
        "quality": price.quality,
        "day": day,
        "images": 1,
    }

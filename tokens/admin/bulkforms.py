"""What is asked before many tokens are revoked, extended, or given other limits."""

import datetime as dt
import re
from typing import Any

from django import forms
from django.utils.timezone import now
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from tokens import limits
from tokens.admin.tokenforms import LIFETIMES, USUAL_LIFETIME
from tokens.errors import Refused
from tokens.management.base import parse_duration

TYPE_FROM = 25  # so many tokens are confirmed by typing their number
MOST_LIMITS = 20


class ExtendManyForm(forms.Form):
    """Until when, in UTC: the tokens may be of tenants in several time zones."""

    lifetime = forms.ChoiceField(
        label="They last, from now on",
        choices=list(LIFETIMES.items()),
        initial=USUAL_LIFETIME,
        required=False,
        widget=UnfoldAdminSelectWidget,
    )
    until = forms.DateField(
        label="or until the end of (UTC)",
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"type": "date"}),  # the browser's own calendar needs no script
        help_text="A date counts instead. Tokens that would last longer anyway stay as they are.",
    )

    def clean(self) -> dict[str, Any] | None:
        """Put the moment into `expires_at`; None: they don't expire."""
        day, lifetime = self.cleaned_data.get("until"), self.cleaned_data.get("lifetime")
        expires_at = None
        if day is not None:
            if day >= dt.date.max:
                raise forms.ValidationError("That is no date to wait for.")
            expires_at = dt.datetime.combine(day + dt.timedelta(days=1), dt.time(), dt.UTC)
        elif lifetime:
            expires_at = now() + parse_duration(lifetime)
        if expires_at is not None and expires_at <= now():
            self.add_error("until", "That is over already: choose a day to come.")
        self.cleaned_data["expires_at"] = expires_at
        return None


class LimitsManyForm(forms.Form):
    """Which limits each of them gets, and which go."""

    limits = forms.CharField(
        label="Set",
        required=False,
        max_length=2_000,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 3, "placeholder": "images:500/day\nrequests:60/minute"}),
        help_text="One a line: METRIC:AMOUNT/PERIOD, such as images:500/day, tokens:2000000/month, "
        "requests:60/minute:burst=10, or concurrent:8. One of the same metric and period is replaced.",
    )
    removed = forms.CharField(
        label="Remove",
        required=False,
        max_length=1_000,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "images/month concurrent"}),
        help_text="By metric and period, such as images/day; a token that has no such limit stays as it is.",
    )

    def clean_limits(self) -> list[str]:
        """As they are written, each of them readable."""
        texts = _words(self.cleaned_data["limits"])
        names = [_read(limits.parse, text).name for text in texts]
        if len(set(names)) < len(names):
            raise forms.ValidationError("Each metric and period can be given once.")
        return texts

    def clean_removed(self) -> list[str]:
        """Their names."""
        names = _words(self.cleaned_data["removed"])
        for name in names:
            _read(limits.parse_name, name)
        return names

    def clean(self) -> dict[str, Any] | None:
        """Something is to be done, and not both of one."""
        set_, removed = self.cleaned_data.get("limits"), self.cleaned_data.get("removed")
        if not self.errors and not set_ and not removed:
            raise forms.ValidationError("Say which limits to set or to remove.")
        both = {limits.parse(text).name for text in set_ or ()} & set(removed or ())
        if both:
            self.add_error("removed", f"{', '.join(sorted(both))} can't be set and removed at once.")
        return None


class CountForm(forms.Form):
    """The number of tokens, typed by whoever means it."""

    typed = forms.IntegerField(
        label="To confirm, type the number of tokens",
        widget=UnfoldAdminIntegerFieldWidget(attrs={"autocomplete": "off", "autofocus": True}),
    )

    def __init__(self, count: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = count

    def clean_typed(self) -> int:
        """The right one."""
        if self.cleaned_data["typed"] != self.count:
            raise forms.ValidationError(f"It is about {self.count:,} tokens: type {self.count}, or cancel.")
        return self.count


def _words(text: str) -> list[str]:
    words = [word for word in re.split(r"[\s,]+", text) if word]
    if len(words) > MOST_LIMITS:
        raise forms.ValidationError(f"At most {MOST_LIMITS} at once.")
    return words


def _read(parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except Refused as exc:
        raise forms.ValidationError(str(exc)) from exc

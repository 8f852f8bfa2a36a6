"""The forms by which people resolve calls, and the one by which they set an event aside."""

import uuid
from collections.abc import Mapping
from typing import Any

from django import forms
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from tokens.errors import Refused
from usage.models import UnresolvedCall
from usage.resolving import ABSURD, ESTIMATE, NOTHING, REASON_CHARACTERS, Ruling, read_rulings


class ReasonForm(forms.Form):
    """Why."""

    reason = forms.CharField(
        max_length=REASON_CHARACTERS - 100,  # "resolved by ..." goes before it
        widget=UnfoldAdminTextInputWidget,
        help_text="Kept for good, with your name.",
    )


class ManyForm(ReasonForm):
    """What a number of calls count as. `until`: the newest ledger row that the person was told of."""

    outcome = forms.ChoiceField(
        label="They count as",
        choices=[("nothing", "Nothing: nothing is charged, and the tokens and images they hold are free at once")],
        widget=UnfoldAdminRadioSelectWidget,
    )
    until = forms.IntegerField(min_value=0, max_value=10**18, widget=forms.HiddenInput)
    field_order = ("outcome", "reason", "until")

    def __init__(self, tokens: int, images: int, data: Any = None, initial: Any = None) -> None:
        super().__init__(data, initial=initial)
        bound = f"Their bound: {tokens:,} tokens, {_images(images)} are charged and stay taken"
        self.fields["outcome"].choices += [("estimate", bound)]  # type: ignore[attr-defined]

    def ruling(self) -> Ruling:
        """What was chosen."""
        return NOTHING if self.cleaned_data["outcome"] == "nothing" else ESTIMATE


class OneForm(ReasonForm):
    """What one call counts as."""

    outcome = forms.ChoiceField(label="It counts as", widget=UnfoldAdminRadioSelectWidget)
    tokens = forms.IntegerField(
        required=False,
        min_value=0,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="As the provider's account says.",
    )
    images = forms.IntegerField(required=False, min_value=0, widget=UnfoldAdminIntegerFieldWidget)
    field_order = ("outcome", "tokens", "images", "reason")

    def __init__(self, call: UnresolvedCall, data: Any = None) -> None:
        super().__init__(data)
        self.call = call
        bound = f"{call.charged_tokens:,} tokens, {_images(call.images)}"
        self.fields["outcome"].choices = [  # type: ignore[attr-defined]
            ("nothing", "Nothing: nothing is charged, and the tokens and images it holds are free at once"),
            ("estimate", f"Its bound: {bound} are charged and stay taken"),
            ("actual", "What it really cost: that is charged, and the rest of its bound is free at once"),
        ]
        self.fields["images"].help_text = f"Drawn, of {call.n}. Empty: all."

    def clean(self) -> dict[str, Any] | None:
        """Tokens go with what it really cost, and with nothing else; no more of anything than can be."""
        cleaned = super().clean()
        outcome, tokens = self.cleaned_data.get("outcome"), self.cleaned_data.get("tokens")
        if outcome == "actual" and tokens is None and "tokens" not in self.errors:
            self.add_error("tokens", "Say how many tokens it cost.")
        images, most = self.cleaned_data.get("images"), ABSURD * self.call.charged_tokens
        if images is not None and images > self.call.n:
            self.add_error("images", f"Only {self.call.n} {'was' if self.call.n == 1 else 'were'} asked for.")
        if tokens is not None and tokens > most:
            self.add_error("tokens", f"At most {most:,}, ten times its bound. Is it a slip?")
        if outcome in {"nothing", "estimate"} and (tokens is not None or self.cleaned_data.get("images") is not None):
            self.add_error("outcome", "Tokens and images are given: choose what it really cost, or clear them.")
        return cleaned

    def rulings(self) -> dict[uuid.UUID, Ruling]:
        """What was chosen for the call."""
        data = self.cleaned_data
        ruling = {
            "nothing": NOTHING,
            "estimate": ESTIMATE,
            "actual": Ruling("actual", data["tokens"] or 0, data["images"]),
        }[data["outcome"]]
        return {self.call.request_id: ruling}


class ListForm(ReasonForm):
    """What a number of calls really cost, typed or pasted."""

    calls = forms.CharField(
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 10, "spellcheck": "false"}),
        help_text="A line a call: request id, tokens and, if not all were drawn, images, with commas between.",
    )
    field_order = ("calls", "reason")

    def clean_calls(self) -> dict[uuid.UUID, Ruling]:
        """The list, read."""
        try:
            return read_rulings(self.cleaned_data["calls"].splitlines())
        except Refused as exc:
            raise forms.ValidationError(str(exc)) from exc


def written(rulings: Mapping[uuid.UUID, Ruling]) -> str:
    """Rulings of what calls really cost as lines that `ListForm` takes."""
    lines = []
    for request_id, ruling in rulings.items():
        images = "" if ruling.images is None else f",{ruling.images}"
        lines.append(f"{request_id},{ruling.tokens}{images}")
    return "\n".join(lines)


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"

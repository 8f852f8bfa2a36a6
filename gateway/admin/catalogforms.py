"""The forms of a provider's keys and models.

A key is taken in and never shown again: it is encrypted before the row is saved, and no form has it as a value.
"""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.forms import ModelForm
from django.utils.formats import date_format
from unfold.forms import PaginationInlineFormSet
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldAdminTextInputWidget

from config.encryption import encrypt
from gateway.models import Model, ModelSize, Provider, ProviderKey, authority, validate_base_url
from gateway.providers import MOVED, drop_former_keys, make_default, set_sizes, usual_sizes

validate_key = RegexValidator(r"\A[!-~]+\Z", "A provider's key is made of visible ASCII characters, without blanks.")


class KeyForm(ModelForm):  # type: ignore[type-arg]
    """A provider's key. A saved one can be named and switched off; to replace it, add another: the newest counts."""

    key = forms.CharField(
        max_length=1000,
        strip=True,
        validators=[validate_key],
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password", "spellcheck": "false"}),
    )

    class Meta:
        model = ProviderKey
        fields = ("label", "active")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["key"]
        if self.instance.pk is not None:
            field.disabled, field.required = True, False
            field.widget.attrs["placeholder"] = f"set on {date_format(self.instance.created_at, 'j M Y')}"
        else:
            field.widget.attrs["placeholder"] = "shown to nobody once saved"

    def save(self, commit: bool = True) -> ProviderKey:
        """Encrypt a new key."""
        if self.instance.pk is None:
            self.instance.encrypted = encrypt(self.cleaned_data["key"])
        saved: ProviderKey = super().save(commit)
        return saved


class KeyFormSet(PaginationInlineFormSet):
    """The keys of one provider, each for the server that it was entered for."""

    moved = False

    def clean(self) -> None:
        """Refuse another server without a key of its own. The provider's row is locked until the form is saved."""
        super().clean()
        try:
            validate_base_url(self.instance.base_url)
        except ValidationError:
            return  # the field says so
        stored = Provider.objects.select_for_update().filter(pk=self.instance.pk).first()
        self.moved = stored is not None and authority(stored.base_url) != authority(self.instance.base_url)
        new = [form.cleaned_data for form in self.extra_forms if form.has_changed() and not form.errors]
        if self.moved and not any(data.get("active") for data in new):
            raise ValidationError(MOVED)

    def save(self, commit: bool = True) -> Any:
        """Save; of a provider that has moved only the new keys stay."""
        saved = super().save(commit)
        if self.moved:
            drop_former_keys(self.instance, self.new_objects)
        return saved


class SizesField(forms.CharField):
    """Sizes as ``1024x1024=4800 512x512=2400``: each size with the most tokens that one image of it can cost."""

    def to_python(self, value: Any) -> Any:
        """Sizes and their bounds; nothing for an empty text. Raises ValidationError."""
        sizes: dict[str, int] = {}
        for word in str(super().to_python(value) or "").replace(",", " ").split():
            size, _, tokens = word.partition("=")
            if not (tokens.isascii() and tokens.isdigit()) or len(tokens) > 9:
                raise ValidationError(f"{word} doesn't read SIZE=TOKENS, as 1024x1024=4800 does.")
            row = ModelSize(size=size, most_tokens=int(tokens))
            row.clean_fields(exclude=["model"])
            sizes[size] = int(tokens)
        return sizes

    def prepare_value(self, value: Any) -> Any:
        """As it is written."""
        return write_sizes(value) if isinstance(value, dict) else value

    def has_changed(self, initial: Any, data: Any) -> bool:
        """Whether it says something else, not whether it is written in another way."""
        return " ".join(str(data or "").split()) != write_sizes(initial or {})


def write_sizes(sizes: dict[str, int]) -> str:
    """Sizes as SizesField reads them."""
    return " ".join(f"{size}={most}" for size, most in sizes.items())


class CatalogModelForm(ModelForm):  # type: ignore[type-arg]
    """A model of any provider. The default is one model: choosing another moves it."""

    class Meta:
        model = Model
        fields = ("name", "provider", "upstream_name", "answer_form", "quality", "prompt_limit", "default", "active")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "upstream_name" in self.fields:
            self.fields["upstream_name"].required = False
            self.fields["upstream_name"].help_text = "What the provider calls it. Empty: the same."

    def clean_upstream_name(self) -> str:
        """The same name unless told otherwise."""
        return str(self.cleaned_data["upstream_name"] or self.cleaned_data.get("name", ""))

    def _get_validation_exclusions(self) -> set[str]:
        """The rule of one default is kept by moving it, so it isn't held against the form."""
        return {*super()._get_validation_exclusions(), "default"}  # type: ignore[misc]


class OfferedModelForm(CatalogModelForm):
    """A model within its provider's page, sizes in one line."""

    sizes = SizesField(
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "1024x1024=4800 512x512=2400"}),
        help_text="Each size with the most tokens that one image of it can cost. Empty: the usual ones for its name.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk is not None:
            self.initial["sizes"] = {row.size: row.most_tokens for row in self.instance.sizes.all()}
        else:
            self.initial["default"] = not Model.objects.filter(default=True).exists()


class OfferedModelFormSet(PaginationInlineFormSet):
    """The models of one provider."""

    def clean(self) -> None:
        """One of them at most can be the default."""
        super().clean()
        if sum(bool(form.cleaned_data.get("default")) for form in self.forms if not form.errors) > 1:
            raise ValidationError("Only one model can be the default.")

    def save_new(self, form: Any, commit: bool = True) -> Model:
        """Save a new model with its sizes."""
        return self._save(form)

    def save_existing(self, form: Any, obj: Model, commit: bool = True) -> Model:
        """Save a model with its sizes."""
        return self._save(form)

    def _save(self, form: Any) -> Model:
        model: Model = form.instance
        model.provider = self.instance
        save_model(model)
        sizes = form.cleaned_data["sizes"]
        if sizes or not model.sizes.exists():
            set_sizes(model, sizes or usual_sizes(model.upstream_name))
        return model


def save_model(model: Model) -> None:
    """Save a model; as the default it takes the place of the one before."""
    wanted = model.default
    if wanted and not Model.objects.filter(pk=model.pk, default=True).exists():
        model.default = False
    model.save()
    if wanted and not model.default:
        make_default(model)

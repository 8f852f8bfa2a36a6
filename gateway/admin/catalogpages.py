"""Providers and models in the admin. One form is enough to point the gateway at another service."""

from typing import Any

from django.contrib import admin
from django.db.models import Max, Q, QuerySet
from django.http import HttpRequest
from django.utils.formats import date_format
from unfold.admin import StackedInline, TabularInline
from unfold.contrib.filters.admin import RelatedDropdownFilter
from unfold.decorators import display

from gateway.admin.catalogforms import (
    CatalogModelForm,
    KeyForm,
    KeyFormSet,
    OfferedModelForm,
    OfferedModelFormSet,
    save_model,
)
from gateway.models import Model, ModelSize, Provider, ProviderKey
from tokens.admin.scoping import OwnRows


class KeyInline(TabularInline):
    """A provider's keys."""

    model = ProviderKey
    form = KeyForm
    formset = KeyFormSet
    fields = ("label", "key", "active")
    extra = 0
    hide_title = True
    verbose_name = "key"
    verbose_name_plural = "keys (the newest active one is used)"

    def get_min_num(self, request: HttpRequest, obj: object = None, **kwargs: Any) -> int:
        """A provider without a key is of no use."""
        return 1 if obj is None else 0


class OfferedModelInline(StackedInline):
    """The models that a provider offers."""

    model = Model
    form = OfferedModelForm
    formset = OfferedModelFormSet
    fields = (("name", "upstream_name"), "sizes", ("default", "active"))
    show_change_link = True
    verbose_name_plural = "models"

    def get_extra(self, request: HttpRequest, obj: object = None, **kwargs: Any) -> int:
        """One to fill in for a new provider."""
        return 1 if obj is None else 0


@admin.register(Provider)
class ProviderAdmin(OwnRows):
    """Providers, with keys and models in the same form."""

    list_display = ("name", "base_url", "active", "key_state", "offers")
    search_fields = ("name", "base_url")
    fields = ("name", "base_url", "active")
    inlines = (KeyInline, OfferedModelInline)

    def get_readonly_fields(self, request: HttpRequest, obj: object = None) -> tuple[str, ...]:
        """The books name it."""
        return ("name",) if obj is not None else ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Provider]:
        """With the date of the key that is used."""
        newest = Max("keys__created_at", filter=Q(keys__active=True))
        queryset: QuerySet[Provider] = super().get_queryset(request)
        return queryset.annotate(key_set_at=newest).prefetch_related("models")

    @display(description="key", label={"set": "success", "missing": "danger"})
    def key_state(self, provider: Any) -> tuple[str, str]:
        """Whether there is one; nobody can see which."""
        if provider.key_set_at is None:
            return "missing", "no active key"
        return "set", f"set on {date_format(provider.key_set_at, 'j M Y')}"

    @display(description="models")
    def offers(self, provider: Provider) -> str:
        """Their names."""
        return ", ".join(model.name for model in provider.models.all()) or "–"


class SizeInline(TabularInline):
    """The sizes that a model draws."""

    model = ModelSize
    extra = 0
    hide_title = True
    verbose_name = "size"
    verbose_name_plural = "sizes, each with the most tokens that one image of it can cost"


@admin.register(Model)
class ModelPage(OwnRows):
    """Models, with their sizes and upper bounds."""

    form = CatalogModelForm
    list_display = ("name", "provider", "upstream_name", "drawn_sizes", "default", "active")
    list_filter = (("provider", RelatedDropdownFilter), "active")
    list_filter_submit = True
    list_select_related = ("provider",)
    search_fields = ("name", "upstream_name")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("name", "provider"),
                    ("upstream_name", "answer_form"),
                    ("quality", "prompt_limit"),
                    ("default", "active"),
                )
            },
        ),
    )
    inlines = (SizeInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Model]:
        """With its sizes."""
        queryset: QuerySet[Model] = super().get_queryset(request)
        return queryset.prefetch_related("sizes")

    def get_readonly_fields(self, request: HttpRequest, obj: object = None) -> tuple[str, ...]:
        """Tenants, prices and the books name it."""
        return ("name",) if obj is not None else ()

    def save_model(self, request: HttpRequest, obj: Model, form: Any, change: bool) -> None:
        """As the default it takes the place of the one before."""
        save_model(obj)

    @display(description="sizes")
    def drawn_sizes(self, model: Model) -> str:
        """Without their bounds."""
        return ", ".join(size.size for size in model.sizes.all()) or "none: it isn't offered"

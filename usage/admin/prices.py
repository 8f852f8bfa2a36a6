"""The price list in the admin."""

from django.contrib import admin
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import RangeDateFilter

from usage.models import Price


@admin.register(Price)
class PriceAdmin(ModelAdmin):
    """Dated prices. Calls that are in the books keep the price they were charged at."""

    empty_value_display = "any"
    list_display = ("model", "size", "per_image", "per_million_tokens", "currency", "valid_from")
    list_filter = (("valid_from", RangeDateFilter),)
    list_filter_submit = True
    search_fields = ("model",)
    fieldsets = (
        (None, {"fields": (("model", "size"), ("per_image", "per_million_tokens"), ("currency", "valid_from"))}),
    )

"""The price book in the admin: what holds today, what will, what did; as a file; and what a call would cost."""

import datetime as dt
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import now
from unfold.contrib.filters.admin import DropdownFilter, FieldTextFilter, RangeDateFilter
from unfold.decorators import action, display

from tokens import audit
from tokens.admin.history import note_download
from tokens.admin.scoping import OwnRows, TenantFilter, row_id
from tokens.audit import Subject, Verb
from tokens.errors import Refused
from usage import pricebook
from usage.admin.figurefields import figure
from usage.admin.priceforms import CallForm, ImportForm, PriceForm, asking, successor
from usage.admin.readonly import in_one_line
from usage.exports import separated
from usage.models import Price
from usage.pricebook import REFUSED, SAME, rivals
from usage.pricerow import PROVIDER_ASKS, SELLS, USED, Prices

UNITS = ("an image", "a million input tokens", "a million output tokens")
SHOWN = 6  # other prices that a page names


class StateFilter(DropdownFilter):
    """By whether a price holds today."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Three choices."""
        return [("force", "In force"), ("planned", "Planned"), ("ended", "Ended")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Price]) -> QuerySet[Price]:
        """Narrow the list."""
        today = now().date()
        match self.value():
            case "planned":
                return queryset.filter(valid_from__gt=today)
            case "ended":
                return queryset.filter(ended(today))
            case "force":
                return queryset.filter(~ended(today), valid_from__lte=today)
        return queryset


def ended(day: dt.date) -> Q:
    """The condition on a price that a newer one has taken its place by that day."""
    return Q(replaced_on__isnull=False) & Q(replaced_on__lte=day)


@admin.register(Price)
class PriceAdmin(OwnRows):
    """Dated prices. Calls that are in the books keep the price they were charged at."""

    form = PriceForm
    change_form_outer_before_template = "admin/usage/price.html"
    list_display = ("for_calls", "whose", "sold_at", "asked_by_provider", "since", "state")
    list_filter = (StateFilter, ("tenant", TenantFilter), ("model", FieldTextFilter), ("valid_from", RangeDateFilter))
    list_filter_submit = True
    list_select_related = ("tenant",)
    list_per_page = 50
    search_fields = ("model", "tenant__slug")
    search_help_text = "A model's or a tenant's name"
    autocomplete_fields = ("tenant",)
    ordering = ("model", "tenant__slug", "size", "quality", "-valid_from")
    sortable_by = ()
    actions_list = ("calculate", "export", "import_file")
    fieldsets = (
        ("For these calls", {"fields": (("model", "tenant"), ("size", "quality"), ("valid_from", "currency"))}),
        ("They are charged", {"fields": (SELLS[0], SELLS[1:])}),
        ("The provider asks", {"fields": (PROVIDER_ASKS[0], PROVIDER_ASKS[1:])}),
    )

    shown_per_image = figure(SELLS[0], "an image")
    shown_per_million_input = figure(SELLS[1], "a million input tokens")
    shown_per_million_output = figure(SELLS[2], "a million output tokens")
    shown_provider_per_image = figure(PROVIDER_ASKS[0], "an image")
    shown_provider_per_million_input = figure(PROVIDER_ASKS[1], "a million input tokens")
    shown_provider_per_million_output = figure(PROVIDER_ASKS[2], "a million output tokens")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """On a page that only shows, amounts as people read them."""
        calls, *amounts = super().get_fieldsets(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return (calls, *amounts)
        return (calls, *((title, {"fields": tuple(map(_shown, options["fields"]))}) for title, options in amounts))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Price]:
        """With the day from which a newer one holds."""
        prices: Prices = super().get_queryset(request)  # type: ignore[assignment]
        return prices.with_end()

    # A price

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody changes one at which calls were charged."""
        return super().has_change_permission(request, obj) and not (isinstance(obj, Price) and obj.used_at)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> tuple[Any, Any, Any, Any]:
        """Those at which calls were charged stand in the way."""
        deleted, counts, needed, protected = super().get_deleted_objects(objs, request)
        used = [f"{price}: calls were charged at it" for price in objs if price.used_at is not None]
        if used and self.has_delete_permission(request):  # then it isn't the person who mustn't
            needed = set(needed) - {self.opts.verbose_name}
        return deleted, counts, needed, [*protected, *used]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody deletes one at which calls were charged; several at once are asked about by themselves."""
        return super().has_delete_permission(request, obj) and not (isinstance(obj, Price) and obj.used_at)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """What the address says; Django would fail on a tenant that is no number."""
        initial = super().get_changeform_initial_data(request)
        return {name: value for name, value in initial.items() if name != "tenant" or row_id(value) is not None}

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> TemplateResponse:
        """With what it is for, and which prices go before it."""
        price: Price | None = context.get("original")
        context |= {"price": price, "listed": reverse("admin:usage_price_changelist")}
        if price is not None:
            others = list(rivals(price))
            context |= {
                "sentence": sentence(price),
                "state": price.state_on(now().date()),
                "before": _named(other for other, goes_first in others if goes_first),
                "after": _named(other for other, goes_first in others if not goes_first),
                "used": USED if price.used_at else "",
                "newer": f"{reverse('admin:usage_price_add')}?{urlencode(successor(price))}",
                "calculator": f"{reverse('admin:usage_price_calculate')}?{urlencode(asking(price))}",
                "may_add": self.has_add_permission(request),
            }
        response: TemplateResponse = super().render_change_form(request, context, *args, **kwargs)
        return response

    def response_add(self, request: HttpRequest, obj: Price, *args: Any, **kwargs: Any) -> HttpResponse:
        """Say for which calls it is now."""
        messages.info(request, sentence(obj))
        response: HttpResponse = super().response_add(request, obj, *args, **kwargs)
        return response

    # The whole book

    @action(description="What would a call cost?", icon="calculate", url_path="calculate", permissions=["view"])
    def calculate(self, request: HttpRequest) -> HttpResponse:
        """Ask about a call; the answer stands beside the questions."""
        form = CallForm(request.GET if request.GET.get("model") else None, initial={"images": 1})
        found = pricebook.estimate(form.wanted(), *form.figures()) if form.is_bound and form.is_valid() else None
        amounts = {}
        if found is not None:
            for name in ("cost", "provider_cost", "margin"):
                amount: Decimal | None = getattr(found, name)
                amounts[name] = "unknown" if amount is None else separated(amount)
        return self._page(request, "calculator", "What would a call cost?", form=form, found=found, **amounts)

    @action(description="Download CSV", icon="download", url_path="csv", permissions=["view"])
    def export(self, request: HttpRequest) -> HttpResponse:
        """The whole book, as it can be imported."""
        note_download(request, Price, "all rows")
        headers = {"Content-Disposition": 'attachment; filename="prices.csv"', "Cache-Control": "no-store"}
        response = HttpResponse(content_type="text/csv; charset=utf-8", headers=headers)
        pricebook.write(self.get_queryset(request).select_related("tenant").order_by(*self.ordering), response)
        return response

    @action(description="Import CSV", icon="upload", url_path="import", permissions=["add"])
    def import_file(self, request: HttpRequest) -> HttpResponse:
        """Show what a file would do, then do it: all of it or nothing."""
        form = ImportForm(request.POST or None, request.FILES or None)
        lines: list[pricebook.Line] = []
        if form.is_valid():
            lines = form.lines
            if "confirmed" in request.POST:
                try:
                    count = pricebook.carry_out(lines)
                except Refused as exc:
                    messages.error(request, str(exc))
                else:
                    audit.note(Verb.IMPORTED, Subject(Price._meta.label_lower, "", f"{_prices(count)} from a file"))
                    messages.success(request, f"{_prices(count)} imported.")
                    return HttpResponseRedirect(reverse("admin:usage_price_changelist"))
        verdicts = [line.verdict for line in lines]
        refused, same = verdicts.count(REFUSED), verdicts.count(SAME)
        count = len(verdicts) - refused - same
        texts = {"lines": lines, "refused": refused, "same": same, "count": count, "to_do": _prices(count)}
        return self._page(request, "importing", "Import prices", form=form, **texts)

    def _page(self, request: HttpRequest, name: str, title: str, **context: Any) -> TemplateResponse:
        listed = reverse("admin:usage_price_changelist")
        texts = {**self.admin_site.each_context(request), "title": title, "opts": self.opts, "listed": listed}
        return TemplateResponse(request, f"admin/usage/{name}.html", {**texts, **context})

    # Columns

    @display(description="model", header=True)
    def for_calls(self, price: Price) -> list[str]:
        """The model, its size and quality."""
        if not (price.size or price.quality):
            return [price.model, "any size and quality"]
        return [price.model, f"{price.size or 'any size'}, {price.quality or 'any quality'}"]

    @display(description="tenant")
    def whose(self, price: Price) -> str:
        """A tenant, or everybody."""
        return price.tenant.slug if price.tenant else "everybody"

    @display(description="charged")
    def sold_at(self, price: Price) -> SafeString:
        """What it is sold at, a line for each unit."""
        return _amounts([getattr(price, name) for name in SELLS], price.currency)

    @display(description="provider asks")
    def asked_by_provider(self, price: Price) -> SafeString:
        """What the provider asks, where that is known."""
        asked = [getattr(price, name) for name in PROVIDER_ASKS]
        if asked[0] is None:
            return format_html('<span class="gw-quiet">{}</span>', "unknown")
        return _amounts([amount or None for amount in asked] if any(asked) else [asked[0]], price.currency)

    @display(description="from")
    def since(self, price: Price) -> SafeString:
        """The first day, and the one from which a newer price holds."""
        ended: dt.date | None = price.replaced_on  # type: ignore[attr-defined]
        until = f"until {ended - dt.timedelta(days=1)}" if ended else ""
        since = in_one_line(str(price.valid_from))
        return format_html('<span>{}<br><span class="gw-quiet gw-when">{}</span></span>', since, until)

    @display(description="today", label={"in force": "success", "planned": "info", "ended": "default"})
    def state(self, price: Price) -> tuple[str, str]:
        """Whether it holds on this day of UTC."""
        state = price.state_on(now().date())
        return state, state.capitalize()


def _shown(names: Any) -> Any:
    return f"shown_{names}" if isinstance(names, str) else tuple(map(_shown, names))


def sentence(price: Price) -> str:
    """For which calls a price is, from when on, and what they cost."""
    whose = f"of {price.tenant.slug}" if price.tenant else "of everybody who has no price of their own"
    told = [
        f"{separated(Decimal(amount))} {price.currency} {unit}"
        for name, unit in zip(SELLS, UNITS, strict=True)
        if (amount := getattr(price, name)) is not None
    ]
    calls = f"{price.model}, {price.size or 'any size'}, {price.quality or 'any quality'}"
    return f"From {price.valid_from:%-d %B %Y} on, calls {whose} to {calls}, cost {_and(told)}."


def _and(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _amounts(amounts: list[Decimal | None], currency: str) -> SafeString:
    told = [(separated(one), currency, unit) for one, unit in zip(amounts, UNITS, strict=False) if one is not None]
    lines = format_html_join("", '<span class="gw-line">{} {} <span class="gw-quiet">{}</span></span>', told)
    return format_html("<span>{}</span>", lines)


def _named(prices: Any) -> list[tuple[str, str]]:
    """Some prices by what they are for, with their addresses."""
    found = [(str(price), reverse("admin:usage_price_change", args=(price.pk,))) for price in prices]
    more = len(found) - SHOWN
    return [*found[:SHOWN], *([(f"{more} more", reverse("admin:usage_price_changelist"))] if more > 0 else [])]


def _prices(count: int) -> str:
    return f"{count:,} price{'' if count == 1 else 's'}"

"""The price of a call, from the dated price list."""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable

from usage.models import Price


class PriceList:
    """The prices of some models, read once; they hold for one batch of events."""

    def __init__(self, models: Iterable[str]) -> None:
        self._prices: dict[tuple[str, str], list[Price]] = defaultdict(list)
        for price in Price.objects.filter(model__in=set(models)).order_by("-valid_from"):
            self._prices[price.model, price.size].append(price)
        self._found: dict[tuple[str, str, dt.date], Price | None] = {}

    def find(self, model: str, size: str, day: dt.date) -> Price | None:
        """The price of a call of that tenant-local day; None when there is none: its cost is unknown."""
        key = (model, size, day)
        if key not in self._found:
            candidates = self._prices.get((model, size), []) + (self._prices.get((model, ""), []) if size else [])
            self._found[key] = next((price for price in candidates if price.valid_from <= day), None)
        return self._found[key]

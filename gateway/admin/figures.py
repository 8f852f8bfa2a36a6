"""What the dashboard sums from the rollups. The ledger itself is never read for it."""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from django.db.models import QuerySet, Sum

from usage.admin import reporttable
from usage.exports import plain
from usage.models import DailyUsage

UNKNOWN = "unknown"
SUMS = {
    "requests": Sum("requests"),
    "images": Sum("images"),
    "tokens": Sum("charged_tokens"),
    "unpriced": Sum("unpriced_requests"),
    "unresolved": Sum("unresolved_requests"),
}


@dataclass
class Figures:
    """Calls that ended exactly, what they made and what they cost, by currency; and those that are unresolved."""

    requests: int = 0
    images: int = 0
    tokens: int = 0
    unpriced: int = 0
    unresolved: int = 0
    costs: dict[str, Decimal] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """Take the sums of one currency."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + row[name])
        if row["currency"]:
            self.costs[row["currency"]] = self.costs.get(row["currency"], Decimal(0)) + row["money"]

    @property
    def cost(self) -> str:
        """The amounts for people; "unknown" where none of the calls had a price."""
        return UNKNOWN if self._is_unknown else money(self.costs)

    @property
    def exact(self) -> str:
        """The amounts with all their digits; "" where there are none."""
        if self._is_unknown:
            return ""
        return ", ".join(f"{plain(cost)} {currency}" for currency, cost in sorted(self.costs.items()))

    @property
    def _is_unknown(self) -> bool:
        """Whatever currency there is, is then that of voided and unresolved calls."""
        return 0 < self.unpriced == self.requests


@dataclass(frozen=True)
class Leader:
    """One of the tenants or tokens with the most calls: its id, and its figures."""

    id: int
    figures: Figures


def by_day(usage: QuerySet[DailyUsage]) -> dict[dt.date, Figures]:
    """The figures of each booked day that has any."""
    days: defaultdict[dt.date, Figures] = defaultdict(Figures)
    sums = usage.values("booked_day", "currency").annotate(**_renamed(), money=Sum("cost"))
    for row in sums.order_by():
        days[row["booked_day"]].add(_plain(row))
    return dict(days)


def together(figures: Collection[Figures]) -> Figures:
    """All of them added up."""
    total = Figures()
    for one in figures:
        for name in SUMS:
            setattr(total, name, getattr(total, name) + getattr(one, name))
        for currency, cost in one.costs.items():
            total.costs[currency] = total.costs.get(currency, Decimal(0)) + cost
    return total


def leaders(usage: QuerySet[DailyUsage], column: str, most: int) -> list[Leader]:
    """Those with the most calls by ``tenant_id`` or ``token_id``, in two queries."""
    ranked = usage.values(column).annotate(calls=Sum("requests")).filter(calls__gt=0).order_by("-calls", column)
    ids = [row[column] for row in ranked[:most]]
    found = {number: Figures() for number in ids}
    if ids:
        sums = usage.filter(**{f"{column}__in": ids}).values(column, "currency")
        for row in sums.annotate(**_renamed(), money=Sum("cost")).order_by():
            found[row[column]].add(_plain(row))
    return [Leader(number, figures) for number, figures in found.items()]


def active(usage: QuerySet[DailyUsage], most: int) -> list[tuple[int, int, int]]:
    """Tenant, member and token of those tokens that have called most."""
    ids = ("tenant_id", "member_id", "token_id")
    ranked = usage.values_list(*ids).annotate(calls=Sum("requests")).order_by("-calls", "token_id")
    return [(tenant, member, token) for tenant, member, token, _ in ranked[:most]]


def _renamed() -> dict[str, Sum]:
    """Under names that no column has, which Django demands."""
    return {f"sum_{name}": expression for name, expression in SUMS.items()}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("sum_"): value for name, value in row.items()}


def money(costs: dict[str, Decimal]) -> str:
    """Amounts for people, to the cent, or to the first digits where it is less: ``12.40 EUR``; "–" for none."""
    return ", ".join(reporttable.money(cost, currency).text for currency, cost in sorted(costs.items())) or "–"

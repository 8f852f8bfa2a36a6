"""What was used, by tenant, user, token, model, day or month; read from the rollups only.

Days are booked days on each tenant's own calendar. Only calls that ended exactly count in requests, images, tokens
and cost; unresolved calls stand apart (see DailyUsage for why theirs may be negative), as do voided ones.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from typing import Any

from django.db.models import Sum
from django.db.models.functions import TruncMonth

from tokens.models import Tenant
from usage.models import DailyUsage

GROUPS = ("tenant", "user", "token", "model", "day", "month")
# Our column -> the path from a rollup. Two tokens may share a name, so a token is its id and its name.
COLUMNS = {
    "tenant": {"tenant": "tenant__slug"},
    "user": {"user": "member__user__email"},
    "token": {"token": "token_id", "token_name": "token__name"},
    "model": {"model": "model"},
    "day": {"day": "booked_day"},
    "month": {"month": "month_start"},
}
FIGURES = {
    "requests": "requests",
    "images": "images",
    "tokens": "charged_tokens",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cost": "cost",
    "unresolved_requests": "unresolved_requests",
    "unresolved_tokens": "unresolved_tokens",
    "voided_requests": "voided_requests",
    "unpriced_requests": "unpriced_requests",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """Which usage to report: from `start` up to but not including `end`, of one tenant or (None) of all."""

    tenant: Tenant | None
    start: dt.date
    end: dt.date
    groups: Sequence[str]  # of GROUPS, in the order of the columns

    @property
    def columns(self) -> list[str]:
        """The columns of a row, in order."""
        return [*(column for group in self.groups for column in COLUMNS[group]), *TOTAL_COLUMNS]


TOTAL_COLUMNS = [
    "requests",
    "images",
    "tokens",
    "input_tokens",
    "output_tokens",
    "cost",
    "currency",
    "unresolved_requests",
    "unresolved_tokens",
    "voided_requests",
    "unpriced_requests",
]


@dataclass
class Totals:
    """The sums over the rows that were given to `add`."""

    figures: dict[str, int] = field(default_factory=lambda: {name: 0 for name in FIGURES if name != "cost"})
    costs: dict[str, Decimal] = field(default_factory=dict)  # by currency

    def add(self, row: Row) -> None:
        """Take a row of a report."""
        for name in self.figures:
            self.figures[name] += row[name]
        if row["cost"] is not None:
            self.costs[row["currency"]] = self.costs.get(row["currency"], Decimal(0)) + row["cost"]

    def row(self) -> Row:
        """The total as a row. Currencies are never summed: with several, cost and currency are None."""
        currency, cost = next(iter(self.costs.items())) if len(self.costs) == 1 else (None, None)
        values = {**self.figures, "cost": cost, "currency": currency}
        return {name: values[name] for name in TOTAL_COLUMNS}


def report(query: Query) -> Iterator[Row]:
    """The rows of a report, ordered by their groups, with `query.columns` as their keys.

    Values: day is a date, month a text such as 2026-11, token an id, cost a Decimal or None where no price was known;
    `unpriced_requests` says how many requests the cost leaves out. A group that was charged in several currencies has
    a row for each.
    """
    paths = {column: path for group in query.groups for column, path in COLUMNS[group].items()}
    usage = DailyUsage.objects.filter(booked_day__gte=query.start, booked_day__lt=query.end)
    if query.tenant is not None:
        usage = usage.filter(tenant=query.tenant)
    if "month" in query.groups:
        usage = usage.annotate(month_start=TruncMonth("booked_day"))
    order = [*paths.values(), "currency"]
    sums = {f"sum_{name}": Sum(path) for name, path in FIGURES.items()}
    found = usage.values(*order).annotate(**sums).order_by(*order).values_list(*order, *sums)
    for group, rows in groupby(found.iterator(), key=lambda values: values[: len(paths)]):
        groups = dict(zip(paths, group, strict=True))
        if "month" in groups:
            groups["month"] = f"{groups['month']:%Y-%m}"
        for figures in _by_currency([dict(zip(["currency", *FIGURES], r[len(paths) :], strict=True)) for r in rows]):
            yield {**groups, **{name: figures[name] for name in TOTAL_COLUMNS}}


def _by_currency(rows: list[Row]) -> list[Row]:
    """A group's sums by currency. What had no price (currency "") joins the only currency there is, if there is one."""
    unpriced, priced = ([row for row in rows if bool(row["currency"]) is known] for known in (False, True))
    if len(priced) == 1:
        return [{name: sum(map(itemgetter(name), rows)) for name in FIGURES} | {"currency": priced[0]["currency"]}]
    return [*priced, *({**row, "cost": None, "currency": None} for row in unpriced)]

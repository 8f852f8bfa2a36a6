"""What was used, by tenant, user, token, model, day or month; read from the rollups only.

Days are booked days on each tenant's own calendar. Only calls that ended exactly count in requests, images, tokens
and cost; unresolved calls stand apart (see DailyUsage for why theirs may be negative), as do voided ones.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import Any

from django.db import connection, models, transaction
from django.db.models import OuterRef, Subquery, Sum
from django.db.models.functions import TruncMonth

from tokens.models import ProxyToken, Tenant, User
from usage.models import DailyUsage

GROUPS = ("tenant", "user", "token", "model", "day", "month")
# The path from a rollup to what makes a group. Numbers, not names: those are looked up once for a group.
KEYS = {
    "tenant": "tenant_id",
    "user": "member__user_id",
    "token": "token_id",
    "model": "model",
    "day": "booked_day",
    "month": "month_start",
}
# Our column -> the path from a rollup, or one of NAMES. Two tokens may share a name, so a token is its id and its name.
COLUMNS = {
    "tenant": {"tenant": "tenant_slug"},
    "user": {"user": "user_email"},
    "token": {"token": "token_id", "token_name": "token_name"},
    "model": {"model": "model"},
    "day": {"day": "booked_day"},
    "month": {"month": "month_start"},
}


def _name(of: type[models.Model], column: str, key: str) -> Subquery:
    return Subquery(of._default_manager.filter(pk=OuterRef(key)).order_by().values(column)[:1])


NAMES = {
    "tenant_slug": _name(Tenant, "slug", KEYS["tenant"]),
    "user_email": _name(User, "email", KEYS["user"]),
    "token_name": _name(ProxyToken, "name", KEYS["token"]),
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

# For a report's query, which then sums 100,000 rollups in one pass; with PostgreSQL's 4 MB it sorts them first.
MEMORY = "32MB"

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
    keys = [*(KEYS[group] for group in query.groups), "currency"]
    names = {path: NAMES[path] for path in paths.values() if path in NAMES}
    order = [*paths.values(), "currency"]
    sums = {f"sum_{name}": Sum(path) for name, path in FIGURES.items()}
    totals = [name if name == "currency" else f"sum_{name}" for name in TOTAL_COLUMNS]
    # The names come last, otherwise they are looked up and compared for each rollup.
    summed = usage.order_by().values(*keys).annotate(**sums).annotate(**names)
    found = summed.order_by(*order).values_list(*paths.values(), *totals)
    columns = query.columns
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL work_mem = '{MEMORY}'")
        for _, group in groupby(found.iterator(), key=lambda values: values[: len(paths)]):
            rows = [dict(zip(columns, values, strict=True)) for values in group]
            for row in rows if "month" in query.groups else ():
                row["month"] = f"{row['month']:%Y-%m}"
            yield from _by_currency(rows)


def _by_currency(rows: list[Row]) -> list[Row]:
    """A group's sums by currency. What had no price (currency "") joins the only currency there is, if there is one."""
    unpriced, priced = ([row for row in rows if bool(row["currency"]) is known] for known in (False, True))
    if len(priced) != 1:
        return [*priced, *({**row, "cost": None, "currency": None} for row in unpriced)]
    for row in unpriced:
        priced[0].update({name: priced[0][name] + row[name] for name in FIGURES})
    return priced

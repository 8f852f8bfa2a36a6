"""What was used, by tenant, user, token, model, day, week or month; read from the rollups only.

Days are booked days on each tenant's own calendar. Only calls that ended exactly count in requests, images, tokens
and cost; unresolved calls stand apart (see DailyUsage for why theirs may be negative), as do voided ones.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import groupby
from typing import Any, Self

from django.db import connection, models, transaction
from django.db.models import OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import TruncMonth, TruncWeek

from tokens.models import ProxyToken, Tenant, User
from usage.models import DailyUsage

GROUPS = ("tenant", "user", "token", "model", "day", "week", "month")
# The path from a rollup to what makes a group. Numbers, not names: those are looked up once for a group.
KEYS = {
    "tenant": "tenant_id",
    "user": "member__user_id",
    "token": "token_id",
    "model": "model",
    "day": "booked_day",
    "week": "week_start",
    "month": "month_start",
}
# Our column -> the path from a rollup, or one of NAMES. Two tokens may share a name, so a token is its id and its name.
COLUMNS = {
    "tenant": {"tenant": "tenant_slug"},
    "user": {"user": "user_email"},
    "token": {"token": "token_id", "token_name": "token_name"},
    "model": {"model": "model"},
    "day": {"day": "booked_day"},
    "week": {"week": "week_start"},
    "month": {"month": "month_start"},
}


def _name(of: type[models.Model], column: str, key: str) -> Subquery:
    return Subquery(of._default_manager.filter(pk=OuterRef(key)).order_by().values(column)[:1])


NAMES = {
    "tenant_slug": _name(Tenant, "slug", KEYS["tenant"]),
    "user_email": _name(User, "email", KEYS["user"]),
    "token_name": _name(ProxyToken, "name", KEYS["token"]),
}
# The same from a rollup, where rows that follow another one are looked for.
PLACES = {**KEYS, "tenant": "tenant__slug", "user": "member__user__email"}
FIGURES = {
    "requests": "requests",
    "images": "images",
    "tokens": "charged_tokens",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cost": "cost",
    "provider_cost": "provider_cost",
    "unresolved_requests": "unresolved_requests",
    "unresolved_tokens": "unresolved_tokens",
    "voided_requests": "voided_requests",
    "unpriced_requests": "unpriced_requests",
    "uncosted_requests": "uncosted_requests",
}
AMOUNTS = ("cost", "provider_cost")

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
    # Only that of a member's address, a token's id, a model's name
    user: str = ""
    token: int | None = None
    model: str = ""
    margins: bool = False  # with MARGIN_COLUMNS, which the people of a tenant never see (tokens.roles.sees_margins)

    @property
    def columns(self) -> list[str]:
        """The columns of a row, in order."""
        return [*(column for group in self.groups for column in COLUMNS[group]), *self.total_columns]

    @property
    def total_columns(self) -> list[str]:
        """The columns of a total."""
        return [*TOTAL_COLUMNS, *MARGIN_COLUMNS] if self.margins else TOTAL_COLUMNS

    def ungrouped(self) -> Self:
        """The same usage in one sum for each currency."""
        return replace(self, groups=())

    def usage(self) -> QuerySet[DailyUsage]:
        """The rollups that it is about."""
        usage = DailyUsage.objects.filter(booked_day__gte=self.start, booked_day__lt=self.end)
        if self.tenant is not None:
            usage = usage.filter(tenant=self.tenant)
        if self.user:
            usage = usage.filter(member__user__email=self.user.strip().lower())
        if self.token is not None:
            usage = usage.filter(token=self.token)
        return usage.filter(model=self.model) if self.model else usage

    def place(self, row: "Row") -> list[str | int]:
        """Where a row stands in the order of the report: what names its group."""
        values = (row[next(iter(COLUMNS[group]))] for group in self.groups)
        return [value if isinstance(value, int) else str(value) for value in values]


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
# Requests whose provider's cost isn't known are not in it; those that have a cost make the margin unknown, too.
MARGIN_COLUMNS = ["provider_cost", "margin", "uncosted_requests"]


@dataclass
class Totals:
    """The sums over the rows that were given to `add`."""

    figures: dict[str, int] = field(default_factory=lambda: {name: 0 for name in FIGURES if name not in AMOUNTS})
    costs: dict[str, Decimal] = field(default_factory=dict)  # by currency
    provider_costs: dict[str, Decimal] = field(default_factory=dict)  # the same, of rows that say it
    margins: bool = False  # whether the rows said it

    def add(self, row: Row) -> None:
        """Take a row of a report."""
        self.margins = "margin" in row
        for name in self.figures:
            self.figures[name] += row.get(name, 0)
        for name, sums in (("cost", self.costs), ("provider_cost", self.provider_costs)):
            if row.get(name) is not None:
                sums[row["currency"]] = sums.get(row["currency"], Decimal(0)) + row[name]

    def row(self) -> Row:
        """The total as a row. Currencies are never summed: with several, amounts and currency are None."""
        currency, cost = next(iter(self.costs.items())) if len(self.costs) == 1 else (None, None)
        asked = self.provider_costs.get(currency) if currency else None
        values = {**self.figures, "cost": cost, "currency": currency, "provider_cost": asked}
        values["margin"] = margin(values)
        columns = [*TOTAL_COLUMNS, *MARGIN_COLUMNS] if self.margins else TOTAL_COLUMNS
        return unless_unknown({name: values[name] for name in columns})


def unless_unknown(row: Row) -> Row:
    """The row, its amounts None where none of its requests had a price.

    It may have a currency all the same: that of voided and unresolved calls, of which nothing is in the amounts.
    """
    if not row["unpriced_requests"] or row["unpriced_requests"] != row["requests"]:
        return row
    return {**row, **{name: None for name in ("cost", "currency", "provider_cost", "margin") if name in row}}


def margin(row: Row) -> Decimal | None:
    """What is left of a row's cost after the provider's; None where that of a request with a cost isn't known."""
    if row["cost"] is None or row["provider_cost"] is None or row["uncosted_requests"] != row["unpriced_requests"]:
        return None
    left: Decimal = row["cost"] - row["provider_cost"]
    return left


def report(query: Query, after: Sequence[str | int] = (), among: Sequence[Row] = ()) -> Iterator[Row]:
    """The rows of a report, ordered by their groups, with `query.columns` as their keys.

    Values: day is a date, week the date of its Monday, month a text such as 2026-11, token an id,
    cost a Decimal or None where no price was known;
    `unpriced_requests` says how many requests the cost leaves out. A group that was charged in several currencies has
    a row for each. `after`: only the groups that follow this place (`Query.place`) in the order. `among`: leave out
    groups of which a part, such as the token, is in none of these rows; every group that one of them is of comes.
    """
    paths = {column: path for group in query.groups for column, path in COLUMNS[group].items()}
    usage = _usage(query)
    if after:
        usage = usage.filter(_follows(query.groups, after))
    if among:
        usage = usage.filter(**_parts(query, among))
    keys = [*(KEYS[group] for group in query.groups), "currency"]
    names = {path: NAMES[path] for path in paths.values() if path in NAMES}
    order = [*paths.values(), "currency"]
    sums = {f"sum_{name}": Sum(path) for name, path in FIGURES.items()}
    measured = [*FIGURES, "currency"]
    totals = [name if name == "currency" else f"sum_{name}" for name in measured]
    # The names come last, otherwise they are looked up and compared for each rollup.
    summed = usage.order_by().values(*keys).annotate(**sums).annotate(**names)
    found = summed.order_by(*order).values_list(*paths.values(), *totals)
    columns = [*paths, *measured]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL work_mem = '{MEMORY}'")
        # Who stops early has the cursor closed before the savepoint goes, otherwise it breaks the caller's transaction.
        with closing(found.iterator()) as summed_up:
            for _, group in groupby(summed_up, key=lambda values: values[: len(paths)]):
                rows = [dict(zip(columns, values, strict=True)) for values in group]
                for row in rows if "month" in query.groups else ():
                    row["month"] = f"{row['month']:%Y-%m}"
                yield from (_told(row, query) for row in _by_currency(rows))


def _usage(query: Query) -> QuerySet[DailyUsage]:
    """The rollups, with the beginnings of months and weeks where these are asked for."""
    usage = query.usage()
    if "week" in query.groups:
        usage = usage.annotate(week_start=TruncWeek("booked_day"))
    return usage.annotate(month_start=TruncMonth("booked_day")) if "month" in query.groups else usage


def _parts(query: Query, among: Sequence[Row]) -> dict[str, set[Any]]:
    """The condition on a rollup that each part of its group is that of one of these rows."""
    places = [query.place(row) for row in among]
    return {
        f"{PLACES[group]}__in": {_known(group, place[number]) for place in places}
        for number, group in enumerate(query.groups)
    }


def _known(group: str, value: str | int) -> str | int:
    """A part of a place, as the database has it."""
    return f"{value}-01" if group == "month" else value


def _told(row: Row, query: Query) -> Row:
    """A row with the columns of the query, in their order. A provider's cost of which nothing is known is None."""
    if query.margins:
        if row["cost"] is None or (row["uncosted_requests"] == row["requests"] and not row["provider_cost"]):
            row["provider_cost"] = None
        row["margin"] = margin(row)
    return {name: row[name] for name in query.columns}


def _by_currency(rows: list[Row]) -> list[Row]:
    """A group's sums by currency. What had no price (currency "") joins the only currency there is, if there is one."""
    unpriced, priced = ([row for row in rows if bool(row["currency"]) is known] for known in (False, True))
    if len(priced) != 1:
        return [*priced, *({**row, "cost": None, "provider_cost": None, "currency": None} for row in unpriced)]
    for row in unpriced:
        priced[0].update({name: priced[0][name] + row[name] for name in FIGURES})
    return [unless_unknown(row) for row in priced]


def _follows(groups: Sequence[str], place: Sequence[str | int]) -> Q:
    """The condition on a rollup that its group comes after that place, in the order of the groups."""
    equal, later = Q(), Q(pk__in=[])
    for group, value in zip(groups, place, strict=True):
        known = _known(group, value)
        later |= equal & Q(**{f"{PLACES[group]}__gt": known})
        equal &= Q(**{PLACES[group]: known})
    return later

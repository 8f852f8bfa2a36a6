"""A report as a table and a chart for people: shares, changes, and the way from each row to the records behind it."""

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple

from django.urls import reverse
from django.utils.http import urlencode

from tokens.models import Membership, Tenant
from usage.admin.charts import Chart, Number, Series, chart
from usage.comparing import Change, Compared
from usage.exports import plain, signed
from usage.reports import Query, Row, report

CENT, SMALL = Decimal("0.01"), Decimal("0.000001")
MOST_BARS = 400  # a longer chart by days goes by weeks or months
STYLES = ("gw-part1", "gw-part2", "gw-part3", "gw-part4", "gw-part5")
UNITS = ("day", "week", "month")
MOST_CURRENCIES = 3  # that have a chart each
LARGEST = 12
NAMES = {"cost": "Cost", "requests": "Calls", "images": "Images", "tokens": "Tokens"}


class Cell(NamedTuple):
    """A figure as it stands in the table; `exact` where that is rounded, `note` in small below it.

    `label` is its column, which a narrow screen shows beside it.
    """

    text: str
    exact: str = ""
    note: str = ""
    style: str = ""
    label: str = ""


class Line(NamedTuple):
    """A row of the table: what names its group, the figures, and the records behind it."""

    names: list[tuple[str, str]]  # as shown, and in small
    cells: list[Cell]
    link: str
    again: bool = False  # of the group of the row above, in another currency


class Share(NamedTuple):
    """One of the largest: its figure, and in percent how long its bar is beside the longest."""

    name: str
    text: str
    percent: str
    link: str


class Ranking(NamedTuple):
    """The largest, as bars below each other."""

    title: str
    total: str
    shares: list[Share]


def money(amount: Decimal | None, currency: str | None) -> Cell:
    """To the cent, or to its first digits where it is less; exactly in the title. "unknown" where no price is known."""
    if amount is None:
        return Cell("unknown", style="gw-quiet")
    places = SMALL if amount and abs(amount) < CENT else CENT
    shown = f"{amount.quantize(places, ROUND_HALF_UP):,}".replace("-", "−")
    return Cell(f"{shown} {currency or ''}".strip(), f"{plain(amount)} {currency or ''}".strip())


def change_cell(found: Change | None, measure: str) -> Cell:
    """Absolute, and in percent below it."""
    if found is None:
        return Cell("–", style="gw-quiet")
    percent = "new" if found.percent is None and found.by else f"{_signed(found.percent or Decimal(0))} %"
    if measure != "cost":
        return Cell(_signed(found.by), note=percent)
    by = Decimal(found.by)
    places = SMALL if by and abs(by) < CENT else CENT
    return Cell(_signed(by.quantize(places, ROUND_HALF_UP)), plain(by), percent)


def _signed(number: Number) -> str:
    return f"{number:+,}".replace("-", "−") if number else "0"


def headers(query: Query, measure: str) -> list[str]:
    """The columns after those of the groups."""
    more = ["Provider cost", "Margin"] if query.margins else []
    return ["Calls", "Images", "Tokens", "Cost", *more, f"Share of {NAMES[measure].lower()}", "Change"]


def figures(row: Row, query: Query) -> list[Cell]:
    """Calls, images, tokens and amounts of a row."""
    unresolved, unpriced = row["unresolved_requests"], row["unpriced_requests"]
    calls = Cell(f"{row['requests']:,}", note=f"{unresolved:,} unresolved" if unresolved else "")
    cost = money(row["cost"], row["currency"]) if row["requests"] or row["currency"] else Cell("–", style="gw-quiet")
    cost = cost._replace(note=f"{unpriced:,} without a price" if unpriced else "")
    found = [calls, Cell(f"{row['images']:,}"), Cell(f"{row['tokens']:,}"), cost]
    if query.margins:
        asked = money(row["provider_cost"], row["currency"])
        without = row["uncosted_requests"]
        found += [asked._replace(note=f"{without:,} unknown" if without else ""), money(row["margin"], row["currency"])]
    return found


def lines(query: Query, compared: Sequence[Compared], measure: str) -> list[Line]:
    """The rows of the table. Two queries for the links of all of them."""
    links = _Links(query, [one.row for one in compared])
    found: list[Line] = []
    for one in compared:
        names = _names(query, one.row)
        again = bool(found) and found[-1].names == names
        shown = cells(query, one.row, one.share, one.change, measure)
        found.append(Line(names, shown, links.to(one.row), again))
    return found


def cells(query: Query, row: Row, part: Decimal | None, moved: Change | None, measure: str) -> list[Cell]:
    """The cells of a row or a total, each with its column."""
    its_share = Cell("–", style="gw-quiet") if part is None else Cell(f"{part} %")
    found = [*figures(row, query), its_share, change_cell(moved, measure)]
    return [cell._replace(label=label) for cell, label in zip(found, headers(query, measure), strict=True)]


def _names(query: Query, row: Row) -> list[tuple[str, str]]:
    names = []
    for group in query.groups:
        if group == "token":
            names.append((row["token_name"] or f"token {row['token']}", f"token {row['token']}"))
        elif group == "week":
            names.append((f"{row['week']:%Y-%m-%d}", "week of Monday"))
        else:
            names.append((str(row[group]), ""))
    return names


class _Links:
    """The addresses of the usage records behind rows; they count on their booked days, as the report does."""

    def __init__(self, query: Query, rows: Sequence[Row]) -> None:
        self._query = query
        self._list = reverse("admin:usage_usagerecord_changelist")
        slugs = {row["tenant"] for row in rows if "tenant" in row}
        self._tenants = dict(Tenant.objects.filter(slug__in=slugs).values_list("slug", "pk")) if slugs else {}
        emails = {row["user"] for row in rows if "user" in row} | ({query.user} - {""})
        members = (
            Membership.objects.filter(user__email__in=emails).order_by("pk") if emails else Membership.objects.none()
        )
        if query.tenant is not None:
            members = members.filter(tenant=query.tenant)
        self._members: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for email, tenant, pk in members.values_list("user__email", "tenant_id", "pk"):
            self._members[email].append((tenant, pk))

    def to(self, row: Row) -> str:
        """The records of a row."""
        query = self._query
        tenant = self._tenants.get(row.get("tenant", ""), query.tenant.pk if query.tenant else None)
        email = row.get("user", query.user)
        held = [pk for of, pk in self._members[email] if tenant in (None, of)] if email else []
        first, end = _days(row, query)
        asked = {
            "tenant__id__exact": tenant,
            "member__id__in": ",".join(map(str, held)),
            "token__id__exact": row.get("token", query.token),
            "model__exact": row.get("model", query.model),
            "booked_day__gte": first,
            "booked_day__lt": end,
        }
        return f"{self._list}?{urlencode({name: value for name, value in asked.items() if value not in (None, '')})}"


def _days(row: Row, query: Query) -> tuple[dt.date, dt.date]:
    """The days of a row: from, and the day after the last."""
    first, end = query.start, query.end
    if "month" in row:
        start = dt.date.fromisoformat(f"{row['month']}-01")
        first, end = max(first, start), min(end, (start + dt.timedelta(days=32)).replace(day=1))
    if "week" in row:
        first, end = max(first, row["week"]), min(end, row["week"] + dt.timedelta(days=7))
    return (row["day"], row["day"] + dt.timedelta(days=1)) if "day" in row else (first, end)


# Charts


def by_calls(rows: Sequence[Row]) -> list[str]:
    """The currencies of these rows, that of the most calls first: amounts of several can't be compared."""
    calls: dict[str, int] = defaultdict(int)
    for row in rows:
        if row["currency"]:
            calls[row["currency"]] += row["requests"]
    return sorted(calls, key=lambda currency: (-calls[currency], currency))


def charts(query: Query, rows: Sequence[Row], measure: str, *, whole: bool) -> list[Chart | Ranking]:
    """Over time where it goes by time, or has more rows than the page (not `whole`); else its largest groups."""
    currencies: list[str | None] = [*by_calls(rows)[:MOST_CURRENCIES]] if measure == "cost" else [None]
    unit = next((unit for unit in UNITS if unit in query.groups), "")
    if not unit and whole:
        rankings = [_largest(query, rows, measure, currency) for currency in currencies]
        return [*rankings] if any(len(one.shares) > 1 for one in rankings) else []
    unit = _unit(query, unit or "day")
    over_time = list(report(replace(query, groups=(unit,))))
    return [_over_time(query, unit, over_time, measure, currency) for currency in currencies]


def _unit(query: Query, unit: str) -> str:
    days = (query.end - query.start).days
    if unit == "day" and days > MOST_BARS:
        unit = "week"
    return "month" if unit == "week" and days > 7 * MOST_BARS else unit


def _over_time(query: Query, unit: str, rows: Sequence[Row], measure: str, currency: str | None) -> Chart:
    values: dict[str, Number] = defaultdict(int)
    for row in rows:
        if row[measure] is not None and currency in (None, row["currency"]):
            values[str(row[unit])] += row[measure]
    labels, keys, links = [], [], []
    to = _Links(replace(query, groups=(unit,)), ())
    for start in _starts(query, unit):
        key = f"{start:%Y-%m}" if unit == "month" else start.isoformat()
        short = f"{start:%b %Y}" if unit == "month" else f"{start.day} {start:%b}"
        full = f"{start:%B %Y}" if unit == "month" else f"{start.day} {start:%B %Y}"
        labels.append((short, f"Week of {full}" if unit == "week" else full))
        keys.append(key)
        links.append(to.to({unit: key if unit == "month" else start}))
    zero: Number = Decimal(0) if measure == "cost" else 0
    bars = [max(values.get(key, zero), zero) for key in keys]
    return chart(
        f"{_title(measure, currency)} by {unit}",
        labels,
        [Series(NAMES[measure], STYLES[0], bars)],
        links,
        _writing(measure),
    )


def _largest(query: Query, rows: Sequence[Row], measure: str, currency: str | None) -> Ranking:
    known = [row for row in rows if row[measure] is not None and currency in (None, row["currency"])]
    known.sort(key=lambda row: row[measure], reverse=True)
    shown, others = known[:LARGEST], known[LARGEST:]
    names = [" · ".join(name for name, _ in _names(query, row)) for row in shown]
    to = _Links(query, shown)
    links = [to.to(row) for row in shown]
    values: list[Number] = [row[measure] for row in shown]
    if others:
        names.append(f"{len(others):,} others together")
        values.append(sum(row[measure] for row in others))
        links.append("")
    write, most = _writing(measure), max(values, default=0)
    shares = [
        Share(name, write(value), f"{float(value / most) * 100:.2f}" if value > 0 else "0", link)
        for name, value, link in zip(names, values, links, strict=True)
    ]
    return Ranking(f"{_title(measure, currency)}: the largest", write(sum(values)), shares)


def _title(measure: str, currency: str | None) -> str:
    return f"{NAMES[measure]} in {currency}" if currency else NAMES[measure]


def _writing(measure: str) -> Any:
    if measure != "cost":
        return signed
    return lambda value: f"{Decimal(value).quantize(CENT, ROUND_HALF_UP):,}".replace("-", "−")


def _starts(query: Query, unit: str) -> list[dt.date]:
    day = query.start
    if unit == "week":
        day -= dt.timedelta(days=day.weekday())
    if unit == "month":
        day = day.replace(day=1)
    found = []
    while day < query.end:
        found.append(day)
        steps = {"day": 1, "week": 7, "month": 32}[unit]
        day += dt.timedelta(days=steps)
        day = day.replace(day=1) if unit == "month" else day
    return found

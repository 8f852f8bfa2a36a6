"""The parts of the dashboard as its template shows them; each figure leads to the list behind it."""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import NamedTuple

from django.urls import reverse
from django.utils.http import urlencode

from gateway.admin.explaining import TITLES
from gateway.admin.figures import Figures, money
from gateway.admin.spans import Span
from gateway.tallies import Told
from gateway.telemetry import FAILED, LATENCIES, REFUSED, SERVED
from usage.admin.charts import Chart, Number, Series, chart

HIGH_ERROR_SHARE = 0.05
MOST_CURRENCIES = 2  # that have a chart each
OF_THE_PROVIDER = {
    "refused_by_provider": "The provider refused the request itself",
    "upstream_failed": "The provider failed or couldn't be reached",
    "upstream_timeout": "The provider did not answer in time",
    "outcome_unknown": "Broke off: the outcome isn't known",
    "storage_failed": "The image could not be stored",
}
IN_THE_BOOKS = {  # these were admitted, so the ledger has them: error type -> the kind of their row
    "refused_by_provider": "void",
    "upstream_failed": "void",
    "upstream_timeout": "unresolved",
    "outcome_unknown": "unresolved",
    "storage_failed": "unresolved",
}


@dataclass(frozen=True)
class Links:
    """Addresses of lists, with the filters of the page's question set."""

    span: Span
    tenant: int | None

    def usage(self, day: dt.date | None = None, **filters: object) -> str:
        """Daily usage, of the span or of one of its days."""
        days = {"booked_day_from": day or self.span.first, "booked_day_to": day or self.span.last}
        return self._to("admin:usage_dailyusage_changelist", {**filters, **days} | self._tenant("tenant__id__exact"))

    def calls(self, **filters: object) -> str:
        """Usage records of the span."""
        days = {"day_from": self.span.first, "day_to": self.span.last}
        return self._to("admin:usage_usagerecord_changelist", {**filters, **days} | self._tenant("tenant__id__exact"))

    def refusals(self, **filters: object) -> str:
        """Calls that were refused, newest first; they aren't listed by day."""
        return self._to("refusals", {**filters} | self._tenant("tenant"))

    def kind(self, error: str) -> str:
        """The calls that ended with this error."""
        booked = IN_THE_BOOKS.get(error)
        return self.calls(kind__exact=booked) if booked else self.refusals(type=error)

    def _tenant(self, name: str) -> dict[str, object]:
        return {name: self.tenant} if self.tenant is not None else {}

    def _to(self, name: str, query: Mapping[str, object]) -> str:
        written = urlencode({key: str(value) for key, value in query.items()})
        return f"{reverse(name)}?{written}" if query else reverse(name)


class Card(NamedTuple):
    """A figure, what it is, where it leads, and a remark. `level` is a class of the style sheet.

    `exact` is the figure with all its digits, where it is rounded.
    """

    value: str
    name: str
    link: str
    note: str = ""
    level: str = ""
    exact: str = ""


@dataclass(frozen=True)
class Reason:
    """Why calls were refused or failed, in words, how many, and their share of the greatest in percent."""

    words: str
    type: str
    count: int
    share: str
    link: str


def cards(total: Figures, told: Told | None, links: Links) -> list[Card]:
    """The figures in the first row; without the store those that the books know."""
    found = [
        Card(f"{total.requests:,}", "calls", links.usage()),
        Card(f"{total.images:,}", "images", links.usage()),
        Card(f"{total.tokens:,}", "tokens", links.usage()),
        Card(
            total.cost,
            "cost",
            links.usage(),
            f"{total.unpriced:,} without a price" if total.unpriced else "",
            exact=total.exact,
        ),
    ]
    if told is None:
        return found
    refused, share = told.total.refused.total(), told.total.error_share
    return [
        *found,
        Card(f"{refused:,}", "refused", links.refusals()),
        Card(
            "–" if share is None else f"{share:.1%}",
            "errors",
            "#failed",
            f"{told.total.failed.total():,} failed" if share is not None else "",
            "gw-alarm" if share is not None and share >= HIGH_ERROR_SHARE else "",
        ),
        Card(seconds(told.total.quantile(0.5)), "until half were answered", links.calls(kind__exact="exact")),
        Card(seconds(told.total.quantile(0.95)), "until 95 of 100 were", links.calls(kind__exact="exact")),
    ]


def seconds(value: float | None) -> str:
    """A time for people: ``0.42 s``, ``12 s``; "–" for none."""
    if value is None:
        return "–"
    if value >= LATENCIES[-1]:
        return f"over {LATENCIES[-1]:g} s"
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def reasons(counts: Counter[str], links: Links) -> list[Reason]:
    """The error types of these calls, the most frequent first."""
    most = max(counts.values(), default=0)
    return [
        Reason(in_words(kind), kind, count, f"{100 * count / most:.1f}", links.kind(kind))
        for kind, count in counts.most_common()
    ]


def in_words(kind: str) -> str:
    """What an error type means."""
    words = OF_THE_PROVIDER.get(kind) or TITLES.get(kind, kind).partition(": ")[2] or kind
    return words[:1].upper() + words[1:]


# Charts


def charts(span: Span, days: Mapping[dt.date, Figures], told: Told | None, links: Links) -> list[Chart]:
    """Of one day by the hour as far as it was counted, of several by the day; and what they cost."""
    if span.period == "today":
        return [_by_hour(told)] if told is not None and told.by_hour else []
    labels = [(f"{day.day} {day:%b}", f"{day.day} {day:%b %Y}") for day in span.days]
    to = [links.usage(day) for day in span.days]
    calls = [Series("Calls", "gw-served", [days[day].requests if day in days else 0 for day in span.days])]
    if told is not None:
        tallied = [told.by_day.get(day.isoformat()) for day in span.days]
        calls.append(Series("Refused", "gw-refused", [one.refused.total() if one else 0 for one in tallied]))
        calls.append(Series("Failed", "gw-failed", [one.failed.total() if one else 0 for one in tallied]))
    return [chart("Calls by day", labels, calls, to), *_costs(span, days, labels, to)]


def _by_hour(told: Told) -> Chart:
    hours = range(max(24, *(hour + 1 for hour in told.by_hour)))
    labels = [(f"{hour}:00", f"{hour}:00 to {hour + 1}:00") for hour in hours]
    named = (("Calls", "gw-served", SERVED), ("Refused", "gw-refused", REFUSED), ("Failed", "gw-failed", FAILED))
    series = [
        Series(name, style, [told.by_hour.get(hour, Counter[str]())[outcome] for hour in hours])
        for name, style, outcome in named
    ]
    return chart("Today by the hour", labels, series, [""] * len(hours))


def _costs(
    span: Span, days: Mapping[dt.date, Figures], labels: Sequence[tuple[str, str]], to: Sequence[str]
) -> list[Chart]:
    """A chart for each of the greatest currencies; the tokens where there is none."""
    spent: Counter[str] = Counter()
    for figures in days.values():
        for currency, cost in figures.costs.items():
            spent[currency] += cost  # type: ignore[assignment]
    if not spent:
        tokens = [days[day].tokens if day in days else 0 for day in span.days]
        return [chart("Tokens by day", labels, [Series("Tokens", "gw-served", tokens)], to)]
    made = []
    for currency, _ in spent.most_common(MOST_CURRENCIES):
        values = [days[day].costs.get(currency, Decimal(0)) if day in days else Decimal(0) for day in span.days]
        series = [Series("Cost", "gw-served", values)]
        made.append(chart(f"Cost by day, {currency}", labels, series, to, partial(_amount, currency)))
    return made


def _amount(currency: str, value: Number) -> str:
    return money({currency: Decimal(value)})

"""A provider's own usage by day and model, as its console exports it, against the ledger.

The file is CSV with the columns day and model, and one or more of requests, images and tokens; further columns are
left out, several lines of a day and model are added up. Days are UTC, as a provider's are; so a call counts on the UTC
day on which it came in, and here what a *call* turned out to be counts, not on which day it was booked.
"""

import csv
import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TextIO

from django.db import connection

from usage.partitions import least_request_id
from usage.reports import Query

FIGURES = ("requests", "images", "tokens")
MOST_DIGITS = 18
MOST_LINES = 100_000
YEARS = range(2000, 2100)
SEPARATORS = ",;\t"


class BadUsageError(ValueError):
    """A file that is no provider's usage; the message says which line."""


class ProviderUsage(NamedTuple):
    """What a provider says of a UTC day and a model; None where it says nothing."""

    day: dt.date
    model: str
    requests: int | None
    images: int | None
    tokens: int | None


class Difference(NamedTuple):
    """By how much the provider's figures of a day and model exceed the ledger's; None where it says nothing.

    `charged` and `unresolved` are the ledger's: calls that ended exactly, and those whose outcome isn't known.
    """

    day: dt.date
    model: str
    requests: int | None
    images: int | None
    tokens: int | None
    charged: int
    unresolved: int

    def in_words(self) -> str:
        """A sentence for people."""
        parts = [(name, getattr(self, name)) for name in FIGURES]
        told = ", ".join(
            f"{abs(n):,} {'more' if n > 0 else 'fewer'} {name.removesuffix('s') if abs(n) == 1 else name}"
            for name, n in parts
            if n
        )
        open_ones = f", {self.unresolved:,} unresolved" if self.unresolved else ""
        calls = "1 call" if self.charged == 1 else f"{self.charged:,} calls"
        return f"The provider counts {told} than the ledger ({calls} charged{open_ones})."


LEDGER = """
SELECT day, model, count(*) FILTER (WHERE outcome = 'exact'), count(*) FILTER (WHERE outcome = 'unresolved'),
       coalesce(sum(images) FILTER (WHERE outcome = 'exact'), 0)::bigint,
       coalesce(sum(tokens) FILTER (WHERE outcome = 'exact'), 0)::bigint
FROM (
    SELECT (min(at) AT TIME ZONE 'UTC')::date AS day, min(model) AS model, sum(images) AS images,
           (array_agg(outcome ORDER BY number DESC))[1] AS outcome, sum(charged_tokens) AS tokens
    FROM usage_record WHERE request_id >= %s AND request_id < %s AND (%s::bigint IS NULL OR tenant_id = %s)
    GROUP BY request_id
) calls GROUP BY 1, 2
"""


def read(file: TextIO, names: Mapping[str, str] | None = None) -> Iterator[ProviderUsage]:
    """The lines of a provider's file; `names` says what we call a model that the provider calls otherwise.

    Cells are separated by commas, semicolons or tabs, whatever the first line has most of; open the file without
    translating line ends. Raises BadUsageError.
    """
    first = file.readline().removeprefix("\ufeff")
    separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(file, delimiter=separator)
    try:
        columns = [name.strip().lower() for name in next(csv.reader([first], delimiter=separator), [])]
        _check(columns)
        for number, cells in enumerate(filter(None, reader), 1):
            if number > MOST_LINES:
                raise BadUsageError(f"The file has more than {MOST_LINES:,} lines: upload fewer days at once.")
            yield _entry(dict(zip(columns, cells, strict=False)), names or {}, reader.line_num + 1)
    except csv.Error as exc:
        raise BadUsageError(f"Line {reader.line_num + 1} can't be read: is a quotation mark left open?") from exc


def _check(columns: Sequence[str]) -> None:
    if not {"day", "model"} <= set(columns) or not set(columns) & set(FIGURES):
        raise BadUsageError(
            "The first line must name the columns: day, model, and one or more of requests, images, tokens."
        )
    twice = [name for name in ("day", "model", *FIGURES) if columns.count(name) > 1]
    if twice:
        raise BadUsageError(f"The first line names the column {twice[0]} twice: which one counts?")


def _entry(row: Mapping[str, str], names: Mapping[str, str], line: int) -> ProviderUsage:
    model = row.get("model", "").strip()
    try:
        day = dt.date.fromisoformat(row.get("day", "").strip())
        if not model or day.year not in YEARS:
            raise ValueError("no model, or no day of a call")
        return ProviderUsage(day, names.get(model, model), *(_count(row.get(name)) for name in FIGURES))
    except ValueError as exc:
        raise BadUsageError(
            f"Line {line} isn't a day such as 2026-11-01, a model and whole numbers from 0 on, such as 1200."
        ) from exc


def differences(query: Query, usage: Iterable[ProviderUsage]) -> Iterator[Difference]:
    """The days and models of a query on which the provider's usage and the ledger differ, in order.

    A figure that the provider never names is not compared; a day or model that it doesn't name is as if it had said 0.
    Nothing is yielded when it names nothing at all in these days.
    """
    theirs = _added_up(entry for entry in usage if query.start <= entry.day < query.end)
    if not theirs:
        return
    named = {name for name in FIGURES if any(getattr(entry, name) is not None for entry in theirs.values())}
    ours = _ledger(query)
    for day, model in sorted(theirs.keys() | ours.keys()):
        requests, unresolved, images, tokens = ours.get((day, model), (0, 0, 0, 0))
        entry = theirs.get((day, model), ProviderUsage(day, model, None, None, None))
        more = {
            name: ((getattr(entry, name) or 0) - mine) if name in named else None
            for name, mine in zip(FIGURES, (requests, images, tokens), strict=True)
        }
        if any(more.values()):
            yield Difference(day, model, **more, charged=requests, unresolved=unresolved)


def _added_up(usage: Iterable[ProviderUsage]) -> dict[tuple[dt.date, str], ProviderUsage]:
    found: dict[tuple[dt.date, str], list[ProviderUsage]] = defaultdict(list)
    for entry in usage:
        found[entry.day, entry.model].append(entry)
    return {key: ProviderUsage(*key, *(_sum(entries, name) for name in FIGURES)) for key, entries in found.items()}


def _sum(entries: list[ProviderUsage], name: str) -> int | None:
    values = [value for entry in entries if (value := getattr(entry, name)) is not None]
    return sum(values) if values else None


def _ledger(query: Query) -> dict[tuple[dt.date, str], tuple[int, int, int, int]]:
    tenant = query.tenant.pk if query.tenant else None
    span = [least_request_id(query.start), least_request_id(query.end)]
    with connection.cursor() as cursor:
        cursor.execute(LEDGER, [*span, tenant, tenant])
        return {(day, model): (exact, unresolved, *sums) for day, model, exact, unresolved, *sums in cursor.fetchall()}


def _count(value: str | None) -> int | None:
    text = (value or "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
        raise ValueError("no count")
    return int(text)

"""A report as an Excel workbook: what was used, what to look at first, and what the file is."""

from decimal import Decimal
from itertools import islice
from typing import BinaryIO

from usage.exceptions import Exceptional
from usage.exporting.snapshot import Snapshot
from usage.exporting.spreadsheet import Book, Value
from usage.exports import plain
from usage.reports import Row, Totals, unless_unknown

IDENTIFIERS = {"token"}  # numbers that name something
WIDTH = 16
WIDTHS = {"user": 28, "model": 24, "token_name": 24}
EXCEPTION_WIDTHS = [18, 20, 16, 24, 60, 38, 12, 16, 10, 50]
MOST_EXCEPTIONS = 100_000  # that are listed one by one
NOTE = "Amounts in the cells have all their digits, of which a spreadsheet program shows and adds up the first 15."


def write(snapshot: Snapshot, out: BinaryIO) -> None:
    """The sheets Usage (the rows under a frozen header, and a total for each currency), Exceptions and About.

    Raises spreadsheet.TooManyRows.
    """
    with Book(out) as book:
        totals = _usage(book, snapshot)
        _exceptions(book, snapshot)
        _about(book, snapshot, totals)


def _usage(book: Book, snapshot: Snapshot) -> list[Row]:
    columns = snapshot.query.columns
    identifiers = [place for place, column in enumerate(columns) if column in IDENTIFIERS]
    sums: dict[str | None, Totals] = {}
    with book.sheet("Usage", [WIDTHS.get(column, max(WIDTH, len(column) + 2)) for column in columns]) as sheet:
        sheet.add(columns, bold=True)
        for row in snapshot.rows():
            sums.setdefault(row["currency"], Totals()).add(row)
            sheet.add([row[column] for column in columns], identifiers=identifiers)
        totals = by_currency(sums)
        for total in totals:
            values = {columns[0]: "total", **total}
            sheet.add([values.get(column) for column in columns], bold=True)
    return totals


def by_currency(sums: dict[str | None, Totals]) -> list[Row]:
    """A total for each currency, and for what had no price; that joins the only currency there is, if there is one."""
    found = [sums[currency].row() for currency in sorted(filter(None, sums))]
    unpriced = sums[None].row() if None in sums else None
    if unpriced is None:
        return found or [Totals().row()]
    if len(found) != 1:
        return [*found, unpriced]
    counted = {name: found[0][name] + unpriced[name] for name in Totals().figures if name in found[0]}
    return [unless_unknown({**found[0], **counted})]


def _exceptions(book: Book, snapshot: Snapshot) -> None:
    with book.sheet("Exceptions", EXCEPTION_WIDTHS) as sheet:
        sheet.add(Exceptional._fields, bold=True)
        found = snapshot.exceptions()
        for one in islice(found, MOST_EXCEPTIONS):
            sheet.add(one._replace(kind=one.kind.value))  # type: ignore[arg-type]
        if more := sum(1 for _ in found):
            what = f"And {more:,} more: choose fewer days, or one tenant."
            sheet.add([what if name == "what" else None for name in Exceptional._fields], bold=True)


def _about(book: Book, snapshot: Snapshot, totals: list[Row]) -> None:
    costs = [(f"cost in {row['currency']}", _text(row["cost"])) for row in totals if row["currency"]]
    lines: list[tuple[Value, Value]] = [*snapshot.about(), *costs, ("content", snapshot.content_hash()), ("note", NOTE)]
    with book.sheet("About", [24, 80]) as sheet:
        sheet.add(["name", "value"], bold=True)
        for line in lines:
            sheet.add(line)


def _text(cost: Decimal | None) -> str:
    return "" if cost is None else plain(cost)

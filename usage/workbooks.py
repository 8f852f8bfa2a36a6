"""A report as an Excel workbook, written row by row: days, numbers and amounts are such, not text."""

import datetime as dt
from contextlib import closing
from decimal import Decimal
from typing import Any

from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.styles import Font
from openpyxl.utils import get_column_letter

from usage.reports import Query, Row, Totals, report

MOST_ROWS = 1_048_576  # of a worksheet (ECMA-376), the header among them
FORMATS = {dt.date: "yyyy-mm-dd", int: "#,##0", Decimal: "#,##0.00##########"}
IDENTIFIERS = {"token"}  # numbers that name something
WIDTH = 16  # characters; nothing is known of the rows when a column's width is written
BOLD = Font(bold=True)


class TooManyRows(Exception):
    """The report has more rows than a worksheet takes; the message says so."""


def report_workbook(query: Query) -> Workbook:
    """The rows of a report under a header that stays in sight, and a total, one for each currency if there are several.

    Amounts are numbers, so exact to 15 digits as every number of a spreadsheet; text is text even where it looks like
    a formula. The rows are kept in a temporary file. Raises TooManyRows.
    """
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Usage")
    sheet.freeze_panes = "A2"
    for place in range(1, len(query.columns) + 1):
        sheet.column_dimensions[get_column_letter(place)].width = WIDTH
    with closing(sheet):  # also when the report fails; its file would be left half written, and complain of that
        sheet.append([_cell(sheet, "", column, bold=True) for column in query.columns])
        totals: dict[str | None, Totals] = {}
        for number, row in enumerate(report(query)):
            totals.setdefault(row["currency"], Totals()).add(row)
            if number + 2 + len(totals) > MOST_ROWS:
                raise TooManyRows(
                    f"A worksheet takes {MOST_ROWS:,} rows, and this report has more: choose fewer groups."
                )
            sheet.append([_cell(sheet, column, row[column]) for column in query.columns])
        for total in _totals(totals):
            values = {query.columns[0]: "total", **total}
            sheet.append([_cell(sheet, column, values.get(column), bold=True) for column in query.columns])
    return book


def _totals(by_currency: dict[str | None, Totals]) -> list[Row]:
    """A total for each currency, and for what had no price; that joins the only currency there is, if there is one."""
    found = [by_currency[currency].row() for currency in sorted(filter(None, by_currency))]
    unpriced = by_currency[None].row() if None in by_currency else None
    if unpriced is None:
        return found or [Totals().row()]
    if len(found) != 1:
        return [*found, unpriced]
    counted = {name: found[0][name] + unpriced[name] for name in Totals().figures}
    return [{**found[0], **counted}]


def _cell(sheet: Any, column: str, value: Any, *, bold: bool = False) -> Any:
    if isinstance(value, str):
        cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("\N{REPLACEMENT CHARACTER}", value))
        cell.data_type = "s"  # openpyxl takes what begins with "=" for a formula, and "#N/A" for an error
    else:
        cell = WriteOnlyCell(sheet, value)
        if column not in IDENTIFIERS and type(value) in FORMATS:
            cell.number_format = FORMATS[type(value)]
    if bold:
        cell.font = BOLD
    return cell

"""Tables for spreadsheets."""

import csv
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Protocol

# A cell that begins with one of these may be run as a formula when the file is opened (OWASP, "CSV Injection").
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class Writable(Protocol):
    """Anything that takes text: a file, standard output, a streaming response."""

    def write(self, text: str, /) -> object:
        """Take a piece of text."""


def write_csv(rows: Iterable[Sequence[object]], out: Writable) -> None:
    """Write rows, the header being the first of them, as RFC 4180 CSV, one by one as they come.

    None is an empty cell, a Decimal is written plainly and exactly. Text that a spreadsheet would run as a formula
    gets a leading apostrophe; numbers, negative ones too, stay numbers.
    """
    writer = csv.writer(out)
    for row in rows:
        writer.writerow([_cell(value) for value in row])


def plain(amount: Decimal) -> str:
    """An amount without exponent, with at least two places and no further zeros: 12.50, 0.000418."""
    whole, _, places = f"{amount:f}".partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"


def _cell(value: object) -> object:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return value

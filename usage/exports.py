"""Tables for spreadsheets."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Protocol

# Where a cell begins that a spreadsheet may run as a formula (OWASP, "CSV Injection"): at the text's start, and, in a
# program whose separator is not the comma, after the separator or line end within it. The full-width signs count too.
FORMULA = re.compile(r"""(?:^(?=[\t\r\n])|(?:^|[;\t\r\n])(?=["'\s]*[=+\-@＝＋－＠]))""")


class Writable(Protocol):
    """Anything that takes text: a file, standard output, a streaming response."""

    def write(self, text: str, /) -> object:
        """Take a piece of text."""


def write_csv(rows: Iterable[Sequence[object]], out: Writable) -> None:
    """Write rows, the header being the first of them, as RFC 4180 CSV, one by one as they come.

    Numbers stand bare, a Decimal plainly and exactly; None is an empty cell; everything else is text in quotes, with an
    apostrophe before what a spreadsheet would run as a formula.
    """
    for row in rows:
        out.write(",".join(map(_cell, row)) + "\r\n")


def plain(amount: Decimal) -> str:
    """An amount without exponent, with at least two places and no further zeros: 12.50, 0.000418."""
    whole, _, places = f"{amount:f}".partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = FORMULA.sub(r"\g<0>'", str(value)).replace('"', '""')
    return f'"{text}"'

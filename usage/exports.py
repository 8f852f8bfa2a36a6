"""Tables for spreadsheets: rows written by Python, or, many times as fast, a whole query by PostgreSQL itself."""

import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Protocol

from django.core.exceptions import EmptyResultSet
from django.db import connection, models, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import Case, F, Func, QuerySet, Value, When
from django.db.models.functions import Concat

# Where a cell begins that a spreadsheet may run as a formula (OWASP, "CSV Injection"): at the text's start, and, in a
# program whose separator is not the comma, after the separator or line end within it. The full-width signs count too.
# Python and PostgreSQL read these alike: what is white space is written out, which PostgreSQL leaves to the locale.
SPACE = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
SIGN = f"[\"'{SPACE}]*[=+@＝＋－＠-]"
STARTS = f"^(?:[\t\r\n]|{SIGN})"
GOES_ON = f"[;\t\r\n](?={SIGN})"
SUSPECT = f"^[\t\r\n]|(?:^|[;\t\r\n]){SIGN}"  # either of the two; PostgreSQL is quicker without looking ahead
_starts, _goes_on = re.compile(STARTS), re.compile(GOES_ON)

PIECE = 128 * 1024  # bytes

# As `plain`; as Python's str() of a moment in UTC, which says microseconds unless there are none.
PLAIN = "round(%(expressions)s, greatest(min_scale(%(expressions)s), 2))"
MOMENT = "replace(to_char(%(expressions)s AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), '.000000', '') || '+00:00'"


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
        out.write(_line(row))


def plain(amount: Decimal) -> str:
    """An amount without exponent, with at least two places and no further zeros: 12.50, 0.000418."""
    whole, _, places = f"{amount:f}".partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"


def separated(amount: Decimal) -> str:
    """An amount for people, with all its digits and thousands separators: 1,234.50, −0.000418."""
    whole, _, places = plain(amount.copy_abs()).partition(".")
    return f"{'−' if amount < 0 else ''}{int(whole):,}.{places}"


def signed(count: int) -> str:
    """A count for people: 1,234, −5."""
    return f"{count:,}".replace("-", "−")


def _line(row: Iterable[object]) -> str:
    return ",".join(map(_cell, row)) + "\r\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = _goes_on.sub(r"\g<0>'", str(value))
    if _starts.match(text):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"'


@contextmanager
def snapshot() -> Iterator[CursorWrapper]:
    """A cursor that can't write and sees the database as it is now, whatever is written meanwhile."""
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL datestyle TO ISO")
        yield cursor


def csv_pieces(rows: QuerySet[Any], columns: Mapping[str, str]) -> Generator[bytes]:
    """The CSV that `write_csv` makes of these rows, written by PostgreSQL; `columns`: heading -> lookup.

    Pieces of about 128 KB, UTF-8; nothing else is held. The rows are those of one moment. Whoever stops before the end
    closes the iterator, which cancels the statement. Raises django.db.DatabaseError, perhaps after some pieces.
    """
    piece = bytearray(_line(columns).encode())
    try:
        statement, parameters = _copying(rows, list(columns.values()))
    except EmptyResultSet:  # a filter that nothing can pass
        yield bytes(piece)
        return
    # psycopg's own cursor: Django's wrapper for debugging takes no parameters.
    with snapshot() as cursor, cursor.cursor.copy(statement, parameters) as lines:
        for line in lines:
            piece += line[:-1]  # PostgreSQL ends lines with a line feed only
            piece += b"\r\n"
            if len(piece) >= PIECE:
                yield bytes(piece)
                piece.clear()
    yield bytes(piece)


def _copying(rows: QuerySet[Any], paths: Sequence[str]) -> tuple[str, Sequence[Any]]:
    """The statement that sends these columns as CSV, and its parameters."""
    cells, quoted = {}, []
    for number, path in enumerate(paths):
        name = f"cell{number}"
        field = F(path).resolve_expression(rows.query.chain()).output_field
        cells[name] = _in_sql(path, field)
        if not isinstance(field, (models.DecimalField, models.IntegerField, models.ForeignKey)):
            quoted.append(name)
    query, parameters = rows.annotate(**cells).values_list(*cells).query.sql_with_params()
    return f"COPY ({query}) TO STDOUT (FORMAT csv, FORCE_QUOTE ({', '.join(quoted)}))", parameters


def _in_sql(path: str, field: "models.Field[Any, Any]") -> Any:
    """What `_cell` makes of a value, but for the quotes, which PostgreSQL puts."""
    if isinstance(field, models.DecimalField):
        return Func(F(path), template=PLAIN, output_field=field)
    if isinstance(field, models.DateTimeField):
        return Func(F(path), template=MOMENT, output_field=models.TextField())
    if isinstance(field, (models.CharField, models.TextField)):
        apostrophe = Case(When(**{f"{path}__regex": STARTS}, then=Value("'")), default=Value(""))
        parts = (F(path), Value(GOES_ON), Value(r"\&'"), Value("g"))
        within = Func(*parts, function="regexp_replace", output_field=models.TextField())
        guarded = Concat(apostrophe, within, output_field=models.TextField())
        return Case(When(**{f"{path}__regex": SUSPECT}, then=guarded), default=F(path), output_field=models.TextField())
    if isinstance(field, (models.IntegerField, models.ForeignKey, models.DateField, models.UUIDField)):
        return F(path)
    raise TypeError(f"There is no CSV for {path}, a {type(field).__name__}.")

"""One moment of the books: the report, the details behind it and the exceptions, all from the same snapshot."""

import datetime as dt
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any, Self, TypeVar

from django.db import connection

from usage.exceptions import Exceptional, exceptions, unresolved
from usage.exporting.bookings import bookings, details
from usage.exports import snapshot as one_moment
from usage.reports import Query, Row, Totals, report

ItemT = TypeVar("ItemT")

STEADY = "SET LOCAL TIME ZONE 'UTC'; SET LOCAL datestyle TO ISO"  # else COPY's text would follow the server's settings


class Snapshot:
    """A read-only transaction that sees the books as they were at its first look; use it as a context manager.

    Everything is streamed: no method holds more than some thousand rows in memory. `number` is that of the statement,
    "" for a draft, `issued` its day (of UTC), and `frozen_hash` that of its content; `seen` is called for each row that
    is read. Must not be entered within a transaction: that one has its snapshot already (RuntimeError).
    """

    def __init__(
        self,
        query: Query,
        number: str = "",
        seen: Callable[[], object] | None = None,
        frozen_hash: str = "",
        issued: dt.date | None = None,
    ) -> None:
        self.query = query
        self._frozen_hash = frozen_hash
        self._seen = seen
        self.number = number
        self.issued = issued
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(one_moment())
        with connection.cursor() as cursor:
            cursor.execute(STEADY)
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        return self._stack.__exit__(*exception)

    def rows(self) -> Iterator[Row]:
        """The rows of the report, grouped and ordered as the query says."""
        found = self._stack.enter_context(closing(report(self.query)))  # type: ignore[type-var]  # it is a generator
        return self._watched(found)

    def totals(self) -> Totals:
        """The sums over all rows."""
        totals = Totals()
        for row in report(self.query):
            totals.add(row)
        return totals

    def exceptions(self) -> Iterator[Exceptional]:
        """What a person should look at before this usage is invoiced."""
        return exceptions(self.query)

    def unresolved(self) -> Iterator[Exceptional]:
        """Of these the calls whose outcome isn't known: they are not in the report's amounts."""
        return unresolved(self.query)

    def select(self, statement: str, **words: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a statement whose {bookings} are those that the report counts (usage.exporting.bookings).

        `words` of our own (never a client's) take the places of their names in it.
        """
        inner, parameters = bookings(self.query)
        with connection.chunked_cursor() as cursor:
            cursor.execute(statement.format(bookings=inner, **words), parameters)
            yield from self._watched(cursor)

    def details(self) -> Iterator[bytes]:
        """The details as PostgreSQL's CSV, a header and then a row at a time: the canonical content of this usage.

        PostgreSQL sends one message a row (its manual, "COPY Operations"), so no piece ends within one.
        """
        statement, parameters = details(self.query)
        with connection.cursor() as wrapper:
            cursor = wrapper.cursor  # psycopg's own: with DEBUG, Django's takes no parameters here
            with cursor.copy(_copy(statement), parameters) as copy:
                yield from self._watched(map(bytes, copy))

    def content_hash(self) -> str:
        """SHA-256 of the details, in hexadecimal digits: the same as long as the same usage is booked.

        That of a closed month is the one that its statement was given (usage.canonical).
        """
        if self._frozen_hash:
            return self._frozen_hash
        digest = hashlib.sha256()
        for piece in self.details():
            digest.update(piece)
        return digest.hexdigest()

    def _watched(self, rows: Iterable[ItemT]) -> Iterator[ItemT]:
        if self._seen is None:
            yield from rows
            return
        for row in rows:
            self._seen()
            yield row

    def about(self) -> Sequence[tuple[str, str]]:
        """What was asked for, as names and values for people and for the metadata of a file."""
        query = self.query
        narrower = [("user", query.user), ("token", str(query.token or "")), ("model", query.model)]
        return [
            ("tenant", query.tenant.slug if query.tenant else "all"),
            *((name, value) for name, value in narrower if value),
            ("from", query.start.isoformat()),
            ("to (not included)", query.end.isoformat()),
            ("grouped by", ", ".join(query.groups)),
            ("statement", self.number or "draft"),
        ]


def _copy(statement: str) -> str:
    return f"COPY ({statement}) TO STDOUT (FORMAT csv, HEADER)"

"""`usage report`: what was used, for people, spreadsheets and programs."""

import codecs
import datetime as dt
import io
import shutil
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from django.core.management.base import CommandError, OutputWrapper

from tokens.management.base import find_tenant
from usage.exporting.formats import FORMATS, export
from usage.exporting.noting import note_export
from usage.exporting.spreadsheet import TooManyRows
from usage.exports import plain
from usage.management.arguments import day
from usage.questions import Question
from usage.reports import GROUPS, Query, Row, Totals, report


def groups(text: str) -> list[str]:
    """An argument such as day,model."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in GROUPS:
            raise ArgumentTypeError(f"{name or 'nothing'} is not one of {', '.join(GROUPS)}.")
    if len(set(names)) < len(names):
        raise ArgumentTypeError(f"{text} names a group twice.")
    return names


def add_arguments(verb: ArgumentParser) -> None:
    """Whose usage, of which days, grouped and written how."""
    verb.add_argument("--tenant", metavar="SLUG", help="Only this tenant (default: all).")
    verb.add_argument("--from", dest="start", type=day, required=True, metavar="DAY", help="The first day.")
    verb.add_argument("--to", dest="end", type=day, required=True, metavar="DAY", help="The day after the last.")
    verb.add_argument(
        "--group-by", type=groups, default=["day"], metavar="GROUPS", help=f"Some of {', '.join(GROUPS)}: day,model"
    )
    verb.add_argument(
        "--margins", action="store_true", help="With the provider's cost and what is left. Not for tenants."
    )
    verb.add_argument("--format", choices=FORMATS, help="Default: a table with totals.")
    verb.add_argument("--output", type=Path, metavar="FILE", help="With --format: where to (default: standard output).")


def run(options: dict[str, Any], out: OutputWrapper) -> None:
    """Write the report. Raises Refused and CommandError."""
    tenant = find_tenant(options["tenant"]) if options["tenant"] else None
    query = Query(tenant, options["start"], options["end"], options["group_by"], margins=options["margins"])
    if query.start >= query.end:
        raise CommandError("--to must be a later day than --from: it is the day after the last.")
    if options["format"]:
        _export(query, options["format"], options["output"], out)
    elif options["output"]:
        raise CommandError("--output goes with --format: the table is for people to read.")
    else:
        _write_table(query, out)


def _export(query: Query, name: str, output: Path | None, out: OutputWrapper) -> None:
    """Write a format to the file or to the standard output, once all of it is there and the audit trail was told."""
    chosen = FORMATS[name]
    if chosen.one_tenant and query.tenant is None:
        raise CommandError(f"A {chosen.name} is one tenant's: give --tenant SLUG.")
    binary: BinaryIO | None = getattr(out, "buffer", None)
    if output is None and not chosen.is_text and (binary is None or out.isatty()):
        raise CommandError(f"{chosen.name} is no text for a terminal: give --output FILE.")
    try:
        with TemporaryFile() as whole:
            export(query, name, whole)
            whole.seek(0)
            note_export(query, name, _asked(query))
            if output is not None:
                with output.open("wb") as file:
                    shutil.copyfileobj(whole, file)
            else:
                shutil.copyfileobj(whole, cast(BinaryIO, _Unsought(out, binary)))
    except TooManyRows as exc:
        raise CommandError(str(exc)) from exc
    except OSError as exc:
        raise CommandError(f"{output or 'The standard output'} can't be written: {exc.strerror}.") from exc


def _asked(query: Query) -> str:
    """The question, as the address of a report in the admin has it."""
    last = query.end - dt.timedelta(days=1)
    question = Question("days", query.start, last, by=tuple(query.groups), margins=query.margins)
    return question.of(query.tenant).address


class _Unsought(io.RawIOBase):
    """The standard output as a file that only takes bytes; where it takes only text, those of a text."""

    def __init__(self, out: OutputWrapper, binary: BinaryIO | None) -> None:
        super().__init__()
        self._out, self._binary = out, binary
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, content: Any, /) -> int:
        """Pass it on."""
        if self._binary is not None:
            self._binary.write(content)
        else:
            self._out.write(self._decoder.decode(bytes(content)), ending="")
        return len(content)


def _write_table(query: Query, out: OutputWrapper) -> None:
    totals = Totals()
    header = query.columns
    lines = [[_text(row[column]) for column in header] for row in _counted(query, totals)]
    total = dict.fromkeys(header, "") | {name: _text(value) for name, value in totals.row().items()}
    first = header[0]
    lines.append([("total" if column == first else total[column]) for column in header])
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    numeric = len(header) - len(totals.row())
    for line in [header, *lines]:
        cells = [
            cell.ljust(width) if place < numeric else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.write("  ".join(cells).rstrip())


def _counted(query: Query, totals: Totals) -> Iterator[Row]:
    for row in report(query):
        totals.add(row)
        yield row


def _text(value: object) -> str:
    if value is None:
        return "-"
    return plain(value) if isinstance(value, Decimal) else str(value)

"""`manage.py usage report`: what was used, for people, spreadsheets and programs."""

import datetime as dt
import json
from argparse import ArgumentTypeError
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tokens.models import Tenant
from usage.exports import plain, write_csv
from usage.reports import GROUPS, Query, Row, Totals, report
from usage.workbooks import TooManyRows, report_workbook


def day(text: str) -> dt.date:
    """An argument such as 2026-11-01."""
    try:
        return dt.date.fromisoformat(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"{text} is not a day such as 2026-11-01.") from exc


def groups(text: str) -> list[str]:
    """An argument such as day,model."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in GROUPS:
            raise ArgumentTypeError(f"{name or 'nothing'} is not one of {', '.join(GROUPS)}.")
    if len(set(names)) < len(names):
        raise ArgumentTypeError(f"{text} names a group twice.")
    return names


class Command(BaseCommand):
    help = "Report usage."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verb = verbs.add_parser("report", help="Usage by day, month, tenant, user, token or model.")
        verb.add_argument("--tenant", metavar="SLUG", help="Only this tenant (default: all).")
        verb.add_argument("--from", dest="start", type=day, required=True, metavar="DAY", help="The first day.")
        verb.add_argument("--to", dest="end", type=day, required=True, metavar="DAY", help="The day after the last.")
        verb.add_argument(
            "--group-by", type=groups, default=["day"], metavar="GROUPS", help=f"Some of {', '.join(GROUPS)}: day,model"
        )
        verb.add_argument("--format", choices=["csv", "json", "xlsx"], help="Default: a table with totals.")
        verb.add_argument("--output", type=Path, metavar="FILE", help="Where xlsx goes (default: standard output).")

    def handle(self, *args: Any, **options: Any) -> None:
        query = Query(_tenant(options["tenant"]), options["start"], options["end"], options["group_by"])
        if query.start >= query.end:
            raise CommandError("--to must be a later day than --from: it is the day after the last.")
        if options["output"] and options["format"] != "xlsx":
            raise CommandError("--output goes with --format xlsx; the other formats are text: use > FILE.")
        match options["format"]:
            case "csv":
                rows = ([row[column] for column in query.columns] for row in report(query))
                write_csv(chain([query.columns], rows), self.stdout)
            case "json":
                self._write_json(query)
            case "xlsx":
                self._write_workbook(query, options["output"])
            case _:
                self._write_table(query)

    def _write_json(self, query: Query) -> None:
        """`{"rows": [...], "total": {...}}`, a row a line as they come; amounts of money are text, so exact."""
        totals = Totals()
        self.stdout.write('{"rows": [', ending="")
        comma = "\n"
        for row in _counted(query, totals):
            self.stdout.write(comma + _json(row), ending="")
            comma = ",\n"
        self.stdout.write(f'\n], "total": {_json(totals.row())}}}')

    def _write_workbook(self, query: Query, output: Path | None) -> None:
        """The whole workbook at the end: until then a file that was there before stays as it is."""
        binary: BinaryIO | None = getattr(self.stdout, "buffer", None)
        target = output or binary
        if target is None or (output is None and self.stdout.isatty()):
            raise CommandError("A workbook is no text for a terminal: give --output FILE.")
        try:
            report_workbook(query).save(target)
        except TooManyRows as exc:
            raise CommandError(str(exc)) from exc
        except OSError as exc:
            raise CommandError(f"{output or 'The standard output'} can't be written: {exc.strerror}.") from exc

    def _write_table(self, query: Query) -> None:
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
            self.stdout.write("  ".join(cells).rstrip())


def _tenant(slug: str | None) -> Tenant | None:
    if slug is None:
        return None
    try:
        return Tenant.objects.get(slug=slug)
    except Tenant.DoesNotExist as exc:
        raise CommandError(f"There is no tenant {slug}.") from exc


def _counted(query: Query, totals: Totals) -> Iterator[Row]:
    for row in report(query):
        totals.add(row)
        yield row


def _json(row: Row) -> str:
    return json.dumps(row, default=lambda value: plain(value) if isinstance(value, Decimal) else str(value))


def _text(value: object) -> str:
    if value is None:
        return "-"
    return plain(value) if isinstance(value, Decimal) else str(value)

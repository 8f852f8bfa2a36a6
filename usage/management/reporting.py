"""`usage report`: what was used, for people, spreadsheets and programs."""

import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import CommandError, OutputWrapper

from tokens.management.base import find_tenant
from usage.exports import plain, write_csv
from usage.management.arguments import day
from usage.reports import GROUPS, Query, Row, Totals, report
from usage.workbooks import TooManyRows, report_workbook


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
    verb.add_argument("--format", choices=["csv", "json", "xlsx"], help="Default: a table with totals.")
    verb.add_argument("--output", type=Path, metavar="FILE", help="Where xlsx goes (default: standard output).")


def run(options: dict[str, Any], out: OutputWrapper) -> None:
    """Write the report. Raises Refused and CommandError."""
    tenant = find_tenant(options["tenant"]) if options["tenant"] else None
    query = Query(tenant, options["start"], options["end"], options["group_by"])
    if query.start >= query.end:
        raise CommandError("--to must be a later day than --from: it is the day after the last.")
    if options["output"] and options["format"] != "xlsx":
        raise CommandError("--output goes with --format xlsx; the other formats are text: use > FILE.")
    match options["format"]:
        case "csv":
            rows = ([row[column] for column in query.columns] for row in report(query))
            write_csv(chain([query.columns], rows), out)
        case "json":
            _write_json(query, out)
        case "xlsx":
            _write_workbook(query, options["output"], out)
        case _:
            _write_table(query, out)


def _write_json(query: Query, out: OutputWrapper) -> None:
    """`{"rows": [...], "total": {...}}`, a row a line as they come; amounts of money are text, so exact."""
    totals = Totals()
    out.write('{"rows": [', ending="")
    comma = "\n"
    for row in _counted(query, totals):
        out.write(comma + _json(row), ending="")
        comma = ",\n"
    out.write(f'\n], "total": {_json(totals.row())}}}')


def _write_workbook(query: Query, output: Path | None, out: OutputWrapper) -> None:
    """The whole workbook at the end: until then a file that was there before stays as it is."""
    binary: BinaryIO | None = getattr(out, "buffer", None)
    target = output or binary
    if target is None or (output is None and out.isatty()):
        raise CommandError("A workbook is no text for a terminal: give --output FILE.")
    try:
        report_workbook(query).save(target)
    except TooManyRows as exc:
        raise CommandError(str(exc)) from exc
    except OSError as exc:
        raise CommandError(f"{output or 'The standard output'} can't be written: {exc.strerror}.") from exc


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


def _json(row: Row) -> str:
    return json.dumps(row, default=lambda value: plain(value) if isinstance(value, Decimal) else str(value))


def _text(value: object) -> str:
    if value is None:
        return "-"
    return plain(value) if isinstance(value, Decimal) else str(value)

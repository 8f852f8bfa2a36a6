"""A report as JSON."""

import json
from decimal import Decimal
from typing import BinaryIO

from usage.exporting.snapshot import Snapshot
from usage.exports import plain
from usage.reports import Row, Totals


def write(snapshot: Snapshot, out: BinaryIO) -> None:
    """`{"rows": [...], "total": {...}}`, a row a line as they come; amounts of money are text, so exact."""
    totals = Totals()
    comma = '{"rows": [\n'
    for row in snapshot.rows():
        totals.add(row)
        out.write(f"{comma}{_json(row)}".encode())
        comma = ",\n"
    begun = "" if comma == ",\n" else comma
    out.write(f'{begun}\n], "total": {_json(totals.row())}}}\n'.encode())


def _json(row: Row) -> str:
    return json.dumps(row, default=lambda value: plain(value) if isinstance(value, Decimal) else str(value))

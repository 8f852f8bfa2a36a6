"""A report as CSV."""

import io
from itertools import chain
from typing import BinaryIO

from usage.exporting.snapshot import Snapshot
from usage.exports import write_csv


def write(snapshot: Snapshot, out: BinaryIO) -> None:
    """The rows of the report under a header: RFC 4180, UTF-8, amounts exact, no formulas."""
    columns = snapshot.query.columns
    text = io.TextIOWrapper(out, "utf-8", newline="", write_through=True)
    try:
        write_csv(chain([columns], ([row[column] for column in columns] for row in snapshot.rows())), text)
    finally:
        text.detach()  # `out` is the caller's to close

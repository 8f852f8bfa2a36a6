"""Every format in which usage is exported, and the one way to do it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import BinaryIO

from usage.exporting import csvtable, focus, jsontable, workbook
from usage.exporting.snapshot import Snapshot
from usage.reports import Query


@dataclass(frozen=True)
class Format:
    """A format: its name for people, how its files end, their content type, and what writes one from a snapshot."""

    name: str
    suffix: str
    content_type: str
    write: Callable[[Snapshot, BinaryIO], None]
    is_text: bool = False
    one_tenant: bool = False  # it can't be written for all tenants


def _loaded_on_writing(module: str) -> Callable[[Snapshot, BinaryIO], None]:
    """What a module writes with, loaded by the first file: pyarrow and typst would cost every process 50 MB."""

    def write(snapshot: Snapshot, out: BinaryIO) -> None:
        import_module(module).write(snapshot, out)

    return write


SPREADSHEET = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
FORMATS = {
    "csv": Format("CSV", ".csv", "text/csv; charset=utf-8", csvtable.write, is_text=True),
    "json": Format("JSON", ".json", "application/json", jsontable.write, is_text=True),
    "xlsx": Format("Excel", ".xlsx", SPREADSHEET, workbook.write),
    "parquet": Format(
        "Parquet", ".parquet", "application/vnd.apache.parquet", _loaded_on_writing("usage.exporting.parquet")
    ),
    "pdf": Format(
        "PDF statement", ".pdf", "application/pdf", _loaded_on_writing("usage.exporting.statement"), one_tenant=True
    ),
    "focus": Format("FOCUS 1.2", ".focus.csv", "text/csv; charset=utf-8", focus.write, is_text=True),
}


def refusal(chosen: Format, query: Query) -> str:
    """Why this usage can't be written in a format, for people; "" when it can."""
    if chosen.one_tenant and query.tenant is None:
        return f"A {chosen.name} is one tenant's."
    if chosen.one_tenant and (query.user or query.token is not None or query.model):
        return f"A {chosen.name} has all of a tenant's usage: leave user, token and model open."
    return ""


def export(
    query: Query, format_name: str, out: BinaryIO, number: str = "", seen: Callable[[], object] | None = None
) -> None:
    """Write the usage of a query, as it is booked at this moment, to `out`, which may be anything that takes bytes.

    The same books give the same bytes. `number` is that of a closed month's statement, "" for a draft. `seen` is called
    for each row that is read. Raises spreadsheet.TooManyRows, and ValueError with what `refusal` says.
    """
    chosen = FORMATS[format_name]
    if refused := refusal(chosen, query):
        raise ValueError(refused)
    with Snapshot(query, number, seen) as snapshot:
        chosen.write(snapshot, out)

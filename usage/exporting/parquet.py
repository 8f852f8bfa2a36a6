"""The details behind a report as a Parquet file: one row a booking, whose figures sum to the report's."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from usage.exporting.bookings import DETAILS
from usage.exporting.snapshot import Snapshot
from usage.models import COST_DIGITS, COST_PLACES
from usage.pricerow import PRICE_DIGITS, PRICE_PLACES

ROW_GROUP = 100_000
MONEY, PRICE, MOMENT = (
    pa.decimal128(COST_DIGITS, COST_PLACES),
    pa.decimal128(PRICE_DIGITS, PRICE_PLACES),
    pa.timestamp("us", "UTC"),
)
TYPES = {
    "at": MOMENT,
    "day": pa.date32(),
    "booked_day": pa.date32(),
    "cost": MONEY,
    "price_per_image": PRICE,
    "price_per_million_input": PRICE,
    "price_per_million_output": PRICE,
    **{
        name: pa.int64()
        for name in (
            *("token", "requests", "images", "tokens", "input_tokens", "output_tokens"),
            *("unresolved_requests", "unresolved_tokens", "voided_requests", "unpriced_requests"),
        )
    },
}
SCHEMA = pa.schema([(name, TYPES.get(name, pa.string())) for name in DETAILS])
PARSE = pacsv.ParseOptions(newlines_in_values=True)
CONVERT = pacsv.ConvertOptions(
    column_types=SCHEMA, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
)


def write(snapshot: Snapshot, out: BinaryIO) -> None:
    """Row groups of 100,000, zstd; what was asked for and the SHA-256 of the content stand in the file's metadata."""
    digest = hashlib.sha256()
    with pq.ParquetWriter(out, SCHEMA, compression="zstd") as writer:
        for group in _groups(snapshot.details(), digest):
            writer.write_table(group, row_group_size=ROW_GROUP)
        writer.add_key_value_metadata({**dict(snapshot.about()), "content": digest.hexdigest()})


def _groups(rows: Iterator[bytes], digest: "hashlib._Hash") -> Iterator[pa.Table]:
    """Tables of ROW_GROUP rows; the last has what is left.

    The rows are read here and not by pyarrow, which would do it in a thread of its own, where Django has another
    connection to the database, and so another snapshot.
    """
    header = next(rows)
    digest.update(header)
    for group in iter(lambda: list(islice(rows, ROW_GROUP)), []):
        content = b"".join(group)
        digest.update(content)
        yield pacsv.read_csv(pa.BufferReader(header + content), parse_options=PARSE, convert_options=CONVERT)

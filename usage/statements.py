"""The SQL of the ledger: one statement for a whole batch each, rows always in key order.

Every writer takes its locks in the same order (receipts, primary rows, corrections, rollups, secrets; each by key),
so two writers can wait for one another but never in a circle. Rows travel as one array a column (`unnest`): about
four times as fast as a statement for each row. What an insertion left out comes back, since that is usually nothing.
"""

import datetime as dt
import operator
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from django.db import connection

from tokens.models import Secret
from usage.merging import Account, Booking, Figures, Pricing, RollupKey, State, Written
from usage.models import DailyUsage, EventReceipt

Receipt = tuple[int, str, int]  # tenant, generation, sequence

RECORD_COLUMNS = {
    "request_id": "uuid",
    "kind": "text",
    "number": "smallint",
    "outcome": "text",
    "tenant_id": "bigint",
    "member_id": "bigint",
    "token_id": "bigint",
    "model": "text",
    "size": "text",
    "quality": "text",
    "n": "integer",
    "images": "integer",
    "input_tokens": "bigint",
    "output_tokens": "bigint",
    "reported_tokens": "bigint",
    "charged_tokens": "bigint",
    "provenance": "text",
    "cost": "numeric",
    "provider_cost": "numeric",
    "price_id": "bigint",
    "price_per_image": "numeric",
    "price_per_million_input": "numeric",
    "price_per_million_output": "numeric",
    "currency": "text",
    "unpriced": "text",
    "day": "date",
    "booked_day": "date",
    "provider": "text",
    "provider_request_id": "text",
    "latency_ms": "bigint",
    "reason": "text",
    "at": "timestamptz",
    "generation": "text",
    "sequence": "bigint",
}
ROLLUP_COLUMNS = {
    "tenant_id": "bigint",
    "booked_day": "date",
    "member_id": "bigint",
    "token_id": "bigint",
    "model": "text",
    "currency": "text",
    **{name: "numeric" if name.endswith("cost") else "bigint" for name in Booking._fields},
}


BY_REQUEST = operator.itemgetter(0, 2)  # request id and number


def _unnest(types: Iterable[str]) -> str:
    return "unnest(" + ", ".join(f"%s::{name}[]" for name in types) + ")"


def _insert_new(table: str, columns: Mapping[str, str], key: Sequence[str]) -> str:
    """Insert what isn't there yet and select the key of what is; the key's arrays and the number of rows come last."""
    keys = ", ".join(key)
    return (
        f"WITH fresh AS (INSERT INTO {table} ({', '.join(columns)}) SELECT * FROM {_unnest(columns.values())}"  # noqa: S608
        f" ON CONFLICT DO NOTHING RETURNING {keys})"
        f" SELECT * FROM {_unnest(columns[name] for name in key)} AS given ({keys})"
        f" WHERE (SELECT count(*) FROM fresh) < %s AND ({keys}) NOT IN (SELECT * FROM fresh)"
    )


RECEIPT_COLUMNS = {"tenant_id": "bigint", "generation": "text", "sequence": "bigint"}
INSERT_RECEIPTS = _insert_new(EventReceipt._meta.db_table, RECEIPT_COLUMNS, list(RECEIPT_COLUMNS))
INSERT_PRIMARIES = _insert_new("usage_record", RECORD_COLUMNS, ["request_id"])
INSERT_CORRECTIONS = (
    f"INSERT INTO usage_record ({', '.join(RECORD_COLUMNS)})"  # noqa: S608 - constants
    f" SELECT * FROM {_unnest(RECORD_COLUMNS.values())}"
)
LOCK_PRIMARIES = (
    "SELECT request_id FROM usage_record WHERE request_id = ANY(%s::uuid[]) AND kind <> 'correction'"
    " ORDER BY request_id FOR UPDATE"
)
READ_CALLS = """
SELECT request_id, number, outcome, tenant_id, member_id, token_id, model, size, quality, day, n,
       sum(images) OVER call, sum(input_tokens) OVER call, sum(output_tokens) OVER call,
       sum(reported_tokens) OVER call, sum(charged_tokens) OVER call, sum(cost) OVER call,
       sum(provider_cost) OVER call, price_id, price_per_image, price_per_million_input, price_per_million_output,
       currency, unpriced
FROM usage_record WHERE request_id = ANY(%s::uuid[])
WINDOW call AS (PARTITION BY request_id ORDER BY number)
ORDER BY request_id, number
"""
ADD_TO_ROLLUPS = (
    f"INSERT INTO {DailyUsage._meta.db_table} AS d ({', '.join(ROLLUP_COLUMNS)})"  # noqa: S608 - constants
    f" SELECT * FROM {_unnest(ROLLUP_COLUMNS.values())}"
    " ON CONFLICT (tenant_id, booked_day, member_id, token_id, model, currency) DO UPDATE SET "
    + ", ".join(f"{name} = d.{name} + excluded.{name}" for name in Booking._fields)
)
TOUCH_SECRETS = f"""
WITH newer AS (
    SELECT s.id, u.at, u.address, u.agent
    FROM {Secret._meta.db_table} s
    JOIN unnest(%s::bigint[], %s::timestamptz[], %s::inet[], %s::text[]) AS u (id, at, address, agent) ON u.id = s.id
    WHERE s.last_used_at IS NULL OR s.last_used_at < u.at
    ORDER BY s.id FOR NO KEY UPDATE OF s
)
UPDATE {Secret._meta.db_table} s
SET last_used_at = newer.at, last_used_from = newer.address, last_used_by = newer.agent
FROM newer WHERE s.id = newer.id
RETURNING s.id, s.accepted_until IS NOT NULL
"""  # noqa: S608 - constants


def insert_receipts(receipts: Iterable[Receipt]) -> set[Receipt]:
    """Note that these events came in; returns those that had come before."""
    ordered = sorted(set(receipts))
    return {(row[0], row[1], row[2]) for row in _insert(INSERT_RECEIPTS, RECEIPT_COLUMNS, 3, ordered)}


def insert_primaries(rows: Sequence[Sequence[Any]]) -> set[uuid.UUID]:
    """Write primary rows (values in RECORD_COLUMNS' order); returns the request ids that had one already.

    A row of a request id that another writer is just inserting waits for that writer's end.
    """
    return {row[0] for row in _insert(INSERT_PRIMARIES, RECORD_COLUMNS, 1, sorted(rows, key=BY_REQUEST))}


def insert_corrections(rows: Sequence[Sequence[Any]]) -> None:
    """Write corrections; their calls are locked, so none can be there yet."""
    with connection.cursor() as cursor:
        cursor.execute(INSERT_CORRECTIONS, _arrays(RECORD_COLUMNS, sorted(rows, key=BY_REQUEST)))


def lock_calls(request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Written]:
    """Lock calls that stand in the ledger until the transaction ends, and read what it says of them.

    Two statements: the second sees what a writer that was waited for has committed.
    """
    with connection.cursor() as cursor:
        cursor.execute(LOCK_PRIMARIES, [list(request_ids)])
        cursor.execute(READ_CALLS, [list(request_ids)])
        rows = cursor.fetchall()
    calls: dict[uuid.UUID, Written] = {}
    for request_id, number, outcome, tenant, member, token, model, size, quality, day, n, *rest in rows:
        images, read, drawn, reported, charged, cost, asked, *pricing = rest  # sums of bigint come as Decimal
        figures = Figures(int(images), _whole(read), _whole(drawn), _whole(reported), int(charged), cost, asked)
        state = State(outcome, figures, Pricing(*pricing))
        calls[request_id] = Written(Account(tenant, member, token, model), size, quality, day, n, number, state)
    return calls


def add_to_rollups(changes: Sequence[tuple[RollupKey, Booking]]) -> None:
    """Add to the rollups, creating those that are not there yet."""
    if changes:
        with connection.cursor() as cursor:
            cursor.execute(ADD_TO_ROLLUPS, _arrays(ROLLUP_COLUMNS, [(*key, *booking) for key, booking in changes]))


def touch_secrets(uses: Sequence[tuple[int, dt.datetime, str | None, str]]) -> set[int]:
    """Note when, from which address and by what each secret was last used, where that is news.

    Returns those of them that a rotation has replaced.
    """
    with connection.cursor() as cursor:
        cursor.execute(TOUCH_SECRETS, [list(column) for column in zip(*uses, strict=True)])
        return {secret for secret, old in cursor.fetchall() if old}


def _whole(number: Decimal | None) -> int | None:
    return None if number is None else int(number)


def _insert(
    statement: str, columns: Mapping[str, str], key: int, rows: Sequence[Sequence[Any]]
) -> list[tuple[Any, ...]]:
    """Run a statement of `_insert_new`; the key is the first `key` columns."""
    if not rows:
        return []
    arrays = _arrays(columns, rows)
    with connection.cursor() as cursor:
        cursor.execute(statement, [*arrays, *arrays[:key], len(rows)])
        found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def _arrays(columns: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The rows as PostgreSQL's text of an array for each column; psycopg, which looks into each value, takes long."""
    arrays = []
    for kind, values in zip(columns.values(), zip(*rows, strict=True), strict=True):
        write = WRITERS.get(kind, str)
        if kind in REPEATED:  # each is written once
            written = {value: "NULL" if value is None else write(value) for value in set(values)}
            arrays.append("{" + ",".join([written[value] for value in values]) + "}")
        else:
            arrays.append("{" + ",".join(["NULL" if value is None else write(value) for value in values]) + "}")
    return arrays


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


REPEATED = {"text", "date", "numeric"}  # a batch has few different texts, days and amounts
WRITERS: dict[str, Callable[[Any], str]] = {"text": _quoted, "uuid": operator.attrgetter("hex")}

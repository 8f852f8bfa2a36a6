"""The SQL of the ledger: one statement for a whole batch each, rows always in key order.

Every writer takes its locks in the same order (receipts, primary rows, corrections, rollups, secrets; each by key),
so two writers can wait for one another but never in a circle. Rows travel as one array a column (`unnest`): about
four times as fast as a statement for each row.
"""

import datetime as dt
import operator
import uuid
from collections.abc import Iterable, Sequence
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
    "n": "integer",
    "images": "integer",
    "input_tokens": "bigint",
    "output_tokens": "bigint",
    "reported_tokens": "bigint",
    "charged_tokens": "bigint",
    "provenance": "text",
    "price_per_image": "numeric",
    "price_per_million_tokens": "numeric",
    "cost": "numeric",
    "currency": "text",
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
    **{name: "numeric" if name == "cost" else "bigint" for name in Booking._fields},
}


BY_REQUEST = operator.itemgetter(0, 2)  # request id and number


def _unnest(types: Iterable[str]) -> str:
    return "unnest(" + ", ".join(f"%s::{name}[]" for name in types) + ")"


INSERT_RECEIPTS = (
    f"INSERT INTO {EventReceipt._meta.db_table} (tenant_id, generation, sequence)"  # noqa: S608 - constants
    f" SELECT * FROM {_unnest(['bigint', 'text', 'bigint'])}"
    " ON CONFLICT DO NOTHING RETURNING tenant_id, generation, sequence"
)
INSERT_RECORDS = (
    f"INSERT INTO usage_record ({', '.join(RECORD_COLUMNS)})"  # noqa: S608 - constants
    f" SELECT * FROM {_unnest(RECORD_COLUMNS.values())}"
)
LOCK_PRIMARIES = (
    "SELECT request_id FROM usage_record WHERE request_id = ANY(%s::uuid[]) AND kind <> 'correction'"
    " ORDER BY request_id FOR UPDATE"
)
READ_CALLS = """
SELECT request_id, number, outcome, tenant_id, member_id, token_id, model, size, day, n,
       sum(images) OVER call, sum(input_tokens) OVER call, sum(output_tokens) OVER call,
       sum(reported_tokens) OVER call, sum(charged_tokens) OVER call, sum(cost) OVER call,
       price_per_image, price_per_million_tokens, currency
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
"""  # noqa: S608 - constants


def insert_receipts(receipts: Iterable[Receipt]) -> set[Receipt]:
    """Note that these events came in; returns those that had not come before."""
    ordered = sorted(set(receipts))
    return {(row[0], row[1], row[2]) for row in _run(INSERT_RECEIPTS, ordered)} if ordered else set()


def insert_primaries(rows: Sequence[Sequence[Any]]) -> set[uuid.UUID]:
    """Write primary rows (values in RECORD_COLUMNS' order); returns the request ids that had none yet.

    A row of a request id that another writer is just inserting waits for that writer's end.
    """
    inserted = _run(f"{INSERT_RECORDS} ON CONFLICT DO NOTHING RETURNING request_id", sorted(rows, key=BY_REQUEST))
    return {row[0] for row in inserted}


def insert_corrections(rows: Sequence[Sequence[Any]]) -> None:
    """Write corrections; their calls are locked, so none can be there yet."""
    _run(INSERT_RECORDS, sorted(rows, key=BY_REQUEST))


def lock_calls(request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Written]:
    """Lock calls that stand in the ledger until the transaction ends, and read what it says of them.

    Two statements: the second sees what a writer that was waited for has committed.
    """
    with connection.cursor() as cursor:
        cursor.execute(LOCK_PRIMARIES, [list(request_ids)])
        cursor.execute(READ_CALLS, [list(request_ids)])
        rows = cursor.fetchall()
    calls: dict[uuid.UUID, Written] = {}
    for request_id, number, outcome, tenant, member, token, model, size, day, n, *rest in rows:
        images, read, drawn, reported, charged, cost, *pricing = rest  # sums of bigint come as Decimal
        figures = Figures(int(images), _whole(read), _whole(drawn), _whole(reported), int(charged), cost)
        state = State(outcome, figures, Pricing(*pricing))
        calls[request_id] = Written(Account(tenant, member, token, model), size, day, n, number, state)
    return calls


def add_to_rollups(changes: Sequence[tuple[RollupKey, Booking]]) -> None:
    """Add to the rollups, creating those that are not there yet."""
    if changes:
        _run(ADD_TO_ROLLUPS, [(*key, *booking) for key, booking in changes])


def touch_secrets(uses: Sequence[tuple[int, dt.datetime, str | None, str]]) -> None:
    """Note when, from which address and by what each secret was last used, where that is news."""
    with connection.cursor() as cursor:
        cursor.execute(TOUCH_SECRETS, [list(column) for column in zip(*uses, strict=True)])


def _whole(number: Decimal | None) -> int | None:
    return None if number is None else int(number)


def _run(statement: str, rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, [list(column) for column in zip(*rows, strict=True)])
        return cursor.fetchall() if cursor.description else []

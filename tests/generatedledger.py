"""A ledger of 200,000 records with every kind of exception in it, made in seconds.

Most of it is written by one INSERT, and its rollups by one GROUP BY, which know nothing of how the product sums. What
is corrected later (calls that were unresolved and then turned out to be exact or void, doubled events, quarantine) goes
through the ledger's own writer. So do the calls at the borders of days and months, and those of the first tenant's
September, which is closed: what is heard of it afterwards counts later.
"""

import contextlib
import datetime as dt
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db import connection, transaction

from tests.bookkeeping import Customer, request_id
from tests.ownbooks import own_books
from usage.alarms import AlarmKind
from usage.closing import close
from usage.events import UsageEvent
from usage.ledger import record
from usage.models import Alarm, Price, QuarantinedEvent, UsageRecord
from usage.months import look
from usage.pricerow import PROVIDER_ASKS, SELLS
from usage.resolving import Ruling, resolve

RECORDS = 200_000
LATER = 1_000  # calls of which the ledger hears twice
SEPTEMBER, MONTH = dt.date(2026, 9, 1), dt.date(2026, 10, 1)
# Names that a spreadsheet would run.
EVIL = ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "＋1", "－1", "＠SUM(A1)", 'a";=1', "naïve ☕"]
MODELS = ["alpha", "beta", "gamma", "delta", "unpriced"]
SIZES = ["1024x1024", "512x512", "1536x1024"]
# Model, size ("" is any), an image, a million input and output tokens, currency: places enough that only exact sums
# agree. The provider asks half of what it is sold at for the first two, and for the others nobody knows what.
PRICES = [
    ("alpha", "", "0.01234567", "5.12345678", "5.12345678", "EUR"),
    ("alpha", "512x512", "0.00765432", "4.98765432", "4.98765432", "EUR"),
    ("beta", "", "0", "1.00000001", "11.00000001", "EUR"),
    ("gamma", "", "0.04000003", None, None, "USD"),
    ("delta", "", "0.00000001", "0.00000001", "0.00000001", "USD"),
]
# The first tenant's own, which holds in September already.
OWN_PRICE = ("delta", "0.07000001", "2.22222222", "7.77777777", "CHF")
BORDERS = ["2026-09-30T23:59:59.999", "2026-10-01", "2026-10-16", "2026-10-15T23:59:59.999", "2026-10-31T23:59:59.999"]
BORDERS += ["2026-11-01"]

RECORDS_SQL = """
INSERT INTO usage_record (request_id, kind, number, outcome, tenant_id, member_id, token_id, model, size, n, images,
    input_tokens, output_tokens, reported_tokens, charged_tokens, provenance, quality, cost, provider_cost, price_id,
    price_per_image, price_per_million_input, price_per_million_output, currency, unpriced,
    day, booked_day, provider, provider_request_id, latency_ms, reason, at, generation, sequence)
SELECT (lpad(to_hex(c.ms), 12, '0') || '7' || lpad(to_hex(c.i %% 4096), 3, '0') || '8'
        || lpad(to_hex(c.i), 15, '0'))::uuid,
    c.kind, 0, c.kind, k.tenant, k.member, k.token, c.model, c.size, 2, c.images,
    CASE WHEN c.kind = 'exact' AND c.i %% 3 > 0 THEN c.charged / 10 END,
    CASE WHEN c.kind = 'exact' AND c.i %% 3 > 0 THEN c.charged - c.charged / 10 END,
    CASE WHEN c.kind <> 'exact' OR c.provenance = 'missing' OR c.i %% 61 = 0 THEN NULL
         WHEN c.provenance = 'estimated' THEN c.charged * 1000 ELSE c.charged END,
    c.charged, c.provenance, '',
    CASE WHEN c.kind = 'void' THEN 0 WHEN u.why = ''
         THEN c.images * coalesce(p.per_image, 0) + (u.read * coalesce(p.read, 0) + u.drawn * coalesce(p.drawn, 0))
              / 1000000 END,
    CASE WHEN c.kind = 'void' THEN 0 WHEN u.why = ''
         THEN c.images * p.asked_image + (u.read * p.asked_read + u.drawn * p.asked_drawn) / 1000000 END,
    p.id, CASE u.why WHEN '' THEN p.per_image END, CASE u.why WHEN '' THEN p.read END,
    CASE u.why WHEN '' THEN p.drawn END, CASE u.why WHEN '' THEN coalesce(p.currency, '') ELSE '' END,
    u.why, c.day, c.day, 'sandbox', '', c.i %% 900, '', c.at, '', NULL
FROM (
    SELECT *, CASE kind WHEN 'void' THEN 0 ELSE 1 + i %% 2 END AS images,
        CASE kind WHEN 'void' THEN 0 ELSE 1000 + i * 7919 %% 9001 END AS charged,
        CASE WHEN kind = 'unresolved' OR i %% 59 = 0 OR i %% 61 = 0 THEN 'estimated'
             WHEN kind = 'void' OR i %% 47 = 0 THEN 'missing' WHEN i %% 43 = 0 THEN 'derived'
             ELSE 'reported' END AS provenance,
        (at AT TIME ZONE 'UTC')::date AS day, (extract(epoch FROM at) * 1000)::bigint AS ms
    FROM (
        SELECT i, CASE WHEN i %% 40 = 3 THEN 'unpriced' ELSE (%(models)s::text[])[1 + i * 31 %% 4] END AS model,
            (%(sizes)s::text[])[1 + i * 17 %% 3] AS size,
            CASE WHEN i %% 50 = 0 THEN 'void' WHEN i %% 53 = 0 THEN 'unresolved' ELSE 'exact' END AS kind,
            %(start)s::timestamptz + i * 13 * interval '1 second' AS at
        FROM generate_series(1, %(count)s::bigint) i
    ) calls
) c
JOIN unnest(%(tenants)s::bigint[], %(members)s::bigint[], %(tokens)s::bigint[]) WITH ORDINALITY
    AS k (tenant, member, token, place)
    ON k.place = 1 + c.i * 5 %% %(places)s::bigint
LEFT JOIN LATERAL (
    SELECT id, per_image, per_million_input AS read, per_million_output AS drawn, currency,
        provider_per_image AS asked_image, provider_per_million_input AS asked_read,
        provider_per_million_output AS asked_drawn
    FROM usage_price p WHERE p.model = c.model AND p.size IN (c.size, '') AND coalesce(p.tenant_id, k.tenant) = k.tenant
    ORDER BY p.tenant_id NULLS LAST, p.size DESC LIMIT 1
) p ON true
CROSS JOIN LATERAL (
    SELECT c.kind = 'exact' AND c.i %% 3 > 0 AS split, coalesce(p.read, 0) = coalesce(p.drawn, 0) AS flat
) s CROSS JOIN LATERAL (
    SELECT CASE WHEN s.split THEN c.charged / 10 ELSE 0 END AS read,
        CASE WHEN s.split THEN c.charged - c.charged / 10 ELSE c.charged END AS drawn,
        CASE WHEN c.kind = 'void' THEN '' WHEN p.currency IS NULL THEN 'no_price' WHEN s.split OR s.flat THEN ''
             ELSE 'split_unknown' END AS why
) u
"""
INDEXES_SQL = """
SELECT c.relname, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = 'usage_record'::regclass AND NOT i.indisunique
"""
ROLLUPS_SQL = """
INSERT INTO usage_dailyusage (tenant_id, member_id, token_id, model, booked_day, currency, requests, images,
    charged_tokens, input_tokens, output_tokens, cost, provider_cost, unpriced_requests, uncosted_requests,
    unresolved_requests, unresolved_images, unresolved_tokens,
    voided_requests)
SELECT tenant_id, member_id, token_id, model, booked_day, currency,
    count(*) FILTER (WHERE kind = 'exact'), coalesce(sum(images) FILTER (WHERE kind = 'exact'), 0),
    coalesce(sum(charged_tokens) FILTER (WHERE kind = 'exact'), 0),
    coalesce(sum(input_tokens) FILTER (WHERE kind = 'exact'), 0),
    coalesce(sum(output_tokens) FILTER (WHERE kind = 'exact'), 0), coalesce(sum(cost) FILTER (WHERE kind = 'exact'), 0),
    coalesce(sum(provider_cost) FILTER (WHERE kind = 'exact'), 0),
    count(*) FILTER (WHERE kind = 'exact' AND cost IS NULL),
    count(*) FILTER (WHERE kind = 'exact' AND provider_cost IS NULL), count(*) FILTER (WHERE kind = 'unresolved'),
    coalesce(sum(images) FILTER (WHERE kind = 'unresolved'), 0),
    coalesce(sum(charged_tokens) FILTER (WHERE kind = 'unresolved'), 0), count(*) FILTER (WHERE kind = 'void')
FROM usage_record GROUP BY 1, 2, 3, 4, 5, 6
"""


@dataclass
class Generated:
    """The generated books: customers (the first with an evil name for every token) and the last booked day."""

    customers: list[Customer]
    last: dt.date


@contextlib.contextmanager
def generated_ledger(records: int = RECORDS) -> Iterator[Generated]:
    """Books and a store of their own, which this process uses meanwhile."""
    with own_books():
        yield fill(records)


def fill(records: int = RECORDS) -> Generated:
    """Fill empty books."""
    for model, size, *sells, currency in PRICES:
        asks = [Decimal(amount or 0) / 2 for amount in sells] if model == "alpha" else [None] * 3
        prices = dict(zip((*SELLS, *PROVIDER_ASKS), (*sells, *asks), strict=True))
        Price.objects.create(model=model, size=size, currency=currency, valid_from=MONTH, **prices)
    customers = [Customer(), Customer("Pacific/Auckland"), Customer("America/New_York")]
    model, *sells, currency = OWN_PRICE
    own = {**dict(zip(SELLS, sells, strict=True)), "tenant": customers[0].tenant}
    Price.objects.create(model=model, currency=currency, valid_from=SEPTEMBER, **own)
    owners = []
    for customer in customers:
        customer.tenant.name = f"={customer.tenant.slug}"
        customer.tenant.save()
        tokens = [customer.add_token(name)[0] for name in EVIL] if customer is customers[0] else [customer.token]
        owners += [(customer.tenant.pk, customer.member.pk, token.pk) for token in tokens]
    tenants, members, tokens = map(list, zip(*owners, strict=True))
    values: dict[str, Any] = {"tenants": tenants, "members": members, "tokens": tokens, "places": len(owners)}
    values |= {"models": MODELS, "sizes": SIZES, "count": records, "start": "2026-10-01T00:00:00Z"}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL synchronous_commit = off")
        cursor.execute(INDEXES_SQL)
        indexes = cursor.fetchall()
        for name, _ in indexes:  # made anew at the end, which takes half the time
            cursor.execute(f"DROP INDEX {name}")
        cursor.execute(RECORDS_SQL, values)
        cursor.execute("UPDATE usage_price SET used_at = now()")
        cursor.execute(ROLLUPS_SQL)
        for _, definition in indexes:
            cursor.execute(definition)
        cursor.execute("ANALYZE")
    _hear_twice(customers)
    _close_and_hear_more(customers[0])
    _put_aside(customers[0])
    last = UsageRecord.objects.order_by("-booked_day").values_list("booked_day", flat=True)[0]
    return Generated(customers, last)


def _hear_twice(customers: list[Customer]) -> None:
    """Calls that were unresolved; of half of them the end came to be known, on a later day."""
    first, later = [], []
    for place in range(LATER):
        customer = customers[place % len(customers)]
        at = dt.datetime(2026, 10, 1 + place % 31, 12, place % 60, tzinfo=dt.UTC)
        shape = {"model": MODELS[place % 5], "size": SIZES[place % 3], "day": f"{at:%Y-%m-%d}"}
        call = request_id(at)
        first.append(customer.event("unresolved", of=call, charged=5000 + place, **shape))
        if place % 2:
            kind = "void" if place % 7 == 0 else "exact"
            ending: dict[str, Any] = {} if kind == "void" else {"images": 1, "charged": 4000 + place}
            later.append(customer.event(kind, of=call, **ending, **shape))
    _record(first + first[:50])
    # A price that came too late for the estimates: what is known now is charged at it.
    Price.objects.create(
        model="unpriced",
        per_million_input="3.33333333",
        per_million_output="3.33333333",
        currency="EUR",
        valid_from=dt.date(2026, 10, 30),
    )
    _record(later + later[:50])


def _close_and_hear_more(customer: Customer) -> None:
    """Calls at borders; September is closed; then come calls of it, and the truth about those that closing decided."""
    split: dict[str, Any] = {"input": 400, "output": 3782}
    record([_at(customer, when, model=model, **split) for when in BORDERS for model in ("alpha", "delta")])
    unsure = [_at(customer, f"2026-09-{day}", "unresolved", model="delta") for day in range(10, 20)]
    record(unsure)
    closed = close(look([customer.tenant])[0], "tests")
    assert (closed.month, closed.decided) == (SEPTEMBER, len(unsure))
    record([_at(customer, f"2026-09-{day}", model="delta", **split) for day in range(10, 20)])
    record([customer.event(of=call.request_id, day=f"{call.day}", model="delta", **split) for call in unsure])
    open_ones = [_at(customer, "2026-10-20T07:00", "unresolved", model="beta") for _ in range(20)]
    record(open_ones)
    ruling = Ruling("actual", tokens=1234, images=1)
    resolve(dict.fromkeys([call.request_id for call in open_ones], ruling), "as the provider says", "tests")


def _at(customer: Customer, when: str, kind: str = "exact", **changes: Any) -> UsageEvent:
    at = dt.datetime.fromisoformat(when).replace(tzinfo=dt.UTC)
    return customer.event(kind, of=request_id(at), day=f"{at:%Y-%m-%d}", **changes)


def _record(events: list[UsageEvent]) -> None:
    for start in range(0, len(events), 500):
        record(events[start : start + 500])


def _put_aside(customer: Customer) -> None:
    """A lost event, and one that couldn't be booked."""
    at = dt.datetime(2026, 10, 12, 9, tzinfo=dt.UTC)
    slug = customer.tenant.slug
    Alarm.objects.create(
        kind=AlarmKind.SEQUENCE_GAP, subject=f"{slug} {uuid.uuid4()} 17-18", message=f"2 events of {slug}", opened_at=at
    )
    fields = {name.decode(): value.decode() for name, value in customer.fields(charged=4711).items()}
    QuarantinedEvent.objects.create(raw=fields, digest="0" * 64, error="DataError", message="=bad", at=at)

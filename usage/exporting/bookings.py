"""What each ledger row put into the books, in SQL: the details behind a report, summing to it to the last digit.

A row books its call's state (the sum of the call's rows up to it) on its booked day; a correction also takes back, on
that same day, the state which the rows before it had booked. The rollups are these bookings summed, so a sum over
BOOKINGS of any of the report's figures is the report's figure. Money stands in calls that ended exactly; the figures
of unresolved and voided calls stand apart, as they do in a report. An exact call without a price has a NULL cost.
"""

from typing import Any

from tokens.models import Membership, ProxyToken, Tenant, User
from usage.reports import Query

# What a booking says of its row; `r` is the row.
ROW = (
    "r.id, r.request_id, r.number, r.kind, r.at, r.day, r.booked_day, r.tenant_id, r.member_id, r.token_id, r.model,"
    " r.size, r.quality, r.provider, r.provenance"
)
# The state that is booked (sign 1) or taken back (sign -1).
STATE = (
    "sign, outcome, images, tokens, input_tokens, output_tokens, cost, provider_cost, currency, per_image,"
    " per_million_input, per_million_output"
)

FIRST_STATES = f"""
SELECT {ROW}, 1 AS sign, outcome, images::bigint, charged_tokens AS tokens, coalesce(input_tokens, 0) AS input_tokens,
       coalesce(output_tokens, 0) AS output_tokens, cost, provider_cost, currency, price_per_image AS per_image,
       price_per_million_input AS per_million_input, price_per_million_output AS per_million_output
FROM usage_record r WHERE r.number = 0 AND {{filter}}
"""  # noqa: S608 - constants
# Corrections are few, and each finds the rows before it by the primary key, whenever they were booked.
LATER_STATES = f"""
SELECT {ROW}, m.sign, m.outcome, m.images, m.tokens, m.input_tokens, m.output_tokens, m.cost, m.provider_cost,
       m.currency, m.per_image, m.per_million_input, m.per_million_output
FROM usage_record r CROSS JOIN LATERAL (
    SELECT (array_agg(e.outcome ORDER BY e.number DESC))[1] AS outcome, sum(e.images)::bigint AS images,
           sum(e.charged_tokens)::bigint AS tokens, sum(coalesce(e.input_tokens, 0))::bigint AS input_tokens,
           sum(coalesce(e.output_tokens, 0))::bigint AS output_tokens, sum(e.cost) AS cost,
           sum(e.provider_cost) AS provider_cost,
           (array_agg(e.currency ORDER BY e.number DESC))[1] AS currency,
           (array_agg(e.price_per_image ORDER BY e.number DESC))[1] AS per_image,
           (array_agg(e.price_per_million_input ORDER BY e.number DESC))[1] AS per_million_input,
           (array_agg(e.price_per_million_output ORDER BY e.number DESC))[1] AS per_million_output
    FROM usage_record e WHERE e.request_id = r.request_id AND e.number < r.number
) b CROSS JOIN LATERAL (VALUES
    (1, r.outcome, b.images + r.images, b.tokens + r.charged_tokens, b.input_tokens + coalesce(r.input_tokens, 0),
     b.output_tokens + coalesce(r.output_tokens, 0), coalesce(b.cost, 0) + r.cost,
     coalesce(b.provider_cost, 0) + r.provider_cost, r.currency, r.price_per_image, r.price_per_million_input,
     r.price_per_million_output),
    (-1, b.outcome, b.images, b.tokens, b.input_tokens, b.output_tokens, b.cost, b.provider_cost, b.currency,
     b.per_image, b.per_million_input, b.per_million_output)
) AS m ({STATE})
WHERE r.number > 0 AND {{filter}}
"""  # noqa: S608 - constants
BOOKINGS = f"""
SELECT s.*, sign * (outcome = 'exact')::int AS requests,
       CASE outcome WHEN 'exact' THEN sign * images ELSE 0 END AS booked_images,
       CASE outcome WHEN 'exact' THEN sign * tokens ELSE 0 END AS booked_tokens,
       CASE outcome WHEN 'exact' THEN sign * input_tokens ELSE 0 END AS booked_input_tokens,
       CASE outcome WHEN 'exact' THEN sign * output_tokens ELSE 0 END AS booked_output_tokens,
       CASE outcome WHEN 'exact' THEN sign * cost ELSE 0 END AS booked_cost,
       CASE outcome WHEN 'exact' THEN sign * provider_cost ELSE 0 END AS booked_provider_cost,
       sign * (outcome = 'unresolved')::int AS unresolved_requests,
       CASE outcome WHEN 'unresolved' THEN sign * tokens ELSE 0 END AS unresolved_tokens,
       sign * (outcome = 'void')::int AS voided_requests,
       sign * (outcome = 'exact' AND cost IS NULL)::int AS unpriced_requests,
       sign * (outcome = 'exact' AND provider_cost IS NULL)::int AS uncosted_requests
FROM ({FIRST_STATES} UNION ALL {LATER_STATES}) s
"""  # noqa: S608 - constants
NAMES = f"""
JOIN {Tenant._meta.db_table} t ON t.id = b.tenant_id
JOIN {Membership._meta.db_table} m ON m.id = b.member_id
JOIN {User._meta.db_table} u ON u.id = m.user_id
JOIN {ProxyToken._meta.db_table} k ON k.id = b.token_id
"""

OF_USER = f"""
r.member_id IN (
    SELECT m.id FROM {Membership._meta.db_table} m JOIN {User._meta.db_table} u ON u.id = m.user_id WHERE u.email = %s
)
"""  # noqa: S608 - constants

# The columns of the details, in order, and what each is of a booking `b`.
DETAILS = {
    "request_id": "b.request_id",
    "kind": "b.kind",
    "entry": "CASE WHEN b.sign = 1 THEN 'booked' ELSE 'taken back' END",
    "outcome": "b.outcome",
    "at": """to_char(b.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')""",
    "day": "b.day",
    "booked_day": "b.booked_day",
    "tenant": "t.slug",
    "user": "u.email",
    "token": "b.token_id",
    "token_name": "k.name",
    "model": "b.model",
    "size": "b.size",
    "quality": "b.quality",
    "provider": "b.provider",
    "provenance": "b.provenance",
    "requests": "b.requests",
    "images": "b.booked_images",
    "tokens": "b.booked_tokens",
    "input_tokens": "b.booked_input_tokens",
    "output_tokens": "b.booked_output_tokens",
    "cost": "b.booked_cost",
    "currency": "nullif(b.currency, '')",
    "price_per_image": "b.per_image",
    "price_per_million_input": "b.per_million_input",
    "price_per_million_output": "b.per_million_output",
    "unresolved_requests": "b.unresolved_requests",
    "unresolved_tokens": "b.unresolved_tokens",
    "voided_requests": "b.voided_requests",
    "unpriced_requests": "b.unpriced_requests",
}


def bookings(query: Query) -> tuple[str, list[Any]]:
    """The bookings that a report counts, as SQL for a FROM clause and its parameters."""
    condition = "r.booked_day >= %s AND r.booked_day < %s"
    values: list[Any] = [query.start, query.end]
    more = [
        ("r.tenant_id = %s", query.tenant.pk if query.tenant is not None else None),
        (OF_USER, query.user.strip().lower() or None),
        ("r.token_id = %s", query.token),
        ("r.model = %s", query.model or None),
    ]
    for narrower, value in more:
        if value is not None:
            condition, values = f"{narrower} AND {condition}", [value, *values]
    return BOOKINGS.format(filter=condition), [*values, *values]


def details(query: Query) -> tuple[str, list[Any]]:
    """A statement for the details, one row a booking, in the order of the calls; and its parameters."""
    inner, values = bookings(query)
    columns = ", ".join(f'{expression} AS "{name}"' for name, expression in DETAILS.items())
    order = "b.request_id, b.number, b.sign DESC"
    return f"SELECT {columns} FROM ({inner}) b {NAMES} ORDER BY {order}", values  # noqa: S608 - constants

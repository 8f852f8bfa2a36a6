"""The content of a closed month in the one form that is hashed: the same rows give the same bytes, always.

Form 1 is UTF-8 text as PostgreSQL writes it with ``COPY ... TO STDOUT (FORMAT csv, HEADER)``: a header, then every row
of the ledger whose tenant and `booked_day` are the statement's, ordered by `request_id` and `number`; the columns
`FORMS[1]` in this order; times in UTC and ISO, amounts with all fourteen places, prices with eight, an empty cell for
what isn't known. No names are in it that people can change. A form never changes: another one gets another number.
"""

import datetime as dt
import hashlib
from collections.abc import Iterator

from django.db import connection

FORM = 1
FORMS = {
    1: (
        *("request_id", "kind", "number", "outcome", "tenant_id", "member_id", "token_id", "model", "size", "quality"),
        *("n", "images", "input_tokens", "output_tokens", "reported_tokens", "charged_tokens", "provenance", "cost"),
        *("provider_cost", "price_id", "price_per_image", "price_per_million_input", "price_per_million_output"),
        *("currency", "unpriced", "day", "booked_day", "provider", "provider_request_id", "latency_ms", "reason", "at"),
        *("generation", "sequence"),
    )
}
STEADY = "SET LOCAL TIME ZONE 'UTC'; SET LOCAL datestyle TO ISO; SET LOCAL extra_float_digits TO 1"
COPY = """
COPY (SELECT {columns} FROM usage_record WHERE tenant_id = %s AND booked_day >= %s AND booked_day < %s
      ORDER BY request_id, number) TO STDOUT (FORMAT csv, HEADER)
"""


def pieces(tenant: int, start: dt.date, end: dt.date, form: int = FORM) -> Iterator[bytes]:
    """The content in that form, a row a piece. Call it within a transaction."""
    with connection.cursor() as wrapper:
        wrapper.execute(STEADY)
        cursor = wrapper.cursor  # psycopg's own: with DEBUG, Django's takes no parameters here
        with cursor.copy(COPY.format(columns=", ".join(FORMS[form])), [tenant, start, end]) as copy:
            yield from map(bytes, copy)


def hashed(tenant: int, start: dt.date, end: dt.date, form: int = FORM) -> tuple[str, int]:
    """SHA-256 of the content, in hexadecimal digits, and how many rows it has."""
    digest, rows = hashlib.sha256(), -1  # the header is none
    for piece in pieces(tenant, start, end, form):
        digest.update(piece)
        rows += 1
    return digest.hexdigest(), rows

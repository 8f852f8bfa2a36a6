"""A tenant's statement as a PDF: what was used, what it costs, and what is still open."""

import datetime as dt
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import typst
from django.conf import settings

from usage.currencies import payable, rounded
from usage.exceptions import Exceptional
from usage.exporting.snapshot import Snapshot
from usage.exports import separated, signed

TEMPLATE = Path(__file__).with_name("statement.typ")
MOST_OPEN = 100  # unresolved calls that are listed one by one
MOST_DAYS = 62  # bars of a chart; a longer period has a bar a month
UNKNOWN = "unknown"
NOT_CHARGED = "–"
NOTHING = Decimal(0)

LINES = """
SELECT b.day < '{start}' AS earlier, b.model, b.size, nullif(b.currency, '') AS currency,
       b.per_image, b.per_million_input, b.per_million_output, b.quality, sum(b.requests)::bigint,
       sum(b.booked_images)::bigint, sum(b.booked_tokens)::bigint, sum(b.booked_cost), s.number
FROM ({bookings}) b LEFT JOIN usage_statement s
    ON b.day < '{start}' AND s.tenant_id = b.tenant_id AND s.month = date_trunc('month', b.day)::date
WHERE b.outcome = 'exact' GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, s.number ORDER BY 1, s.number, 4, 2, 3, 8, 5, 6, 7
"""
BARS = """
SELECT date_trunc('{unit}', b.booked_day)::date, nullif(b.currency, ''), sum(b.booked_cost),
       sum(b.booked_images)::bigint
FROM ({bookings}) b WHERE b.outcome = 'exact' GROUP BY 1, 2 ORDER BY 1, 2
"""


def write(snapshot: Snapshot, out: BinaryIO) -> None:
    """The statement; the same books give the same bytes. Raises ValueError when the query is for all tenants."""
    day_after = dt.datetime.combine(snapshot.query.end, dt.time(), dt.UTC)
    data = json.dumps(content(snapshot), ensure_ascii=False)
    out.write(typst.compile(TEMPLATE.read_bytes(), sys_inputs={"statement": data}, timestamp=day_after))


def content(snapshot: Snapshot) -> dict[str, Any]:
    """What stands on the statement, all of it as text for the template but the heights of the bars (0 to 1)."""
    query = snapshot.query
    if query.tenant is None:
        raise ValueError("A statement is one tenant's.")
    lines, totals = _lines(snapshot)
    return {
        "issuer": settings.ISSUER,
        "number": snapshot.number,
        "issued": f"{snapshot.issued:%-d %B %Y}" if snapshot.issued else "",
        "tenant": {"name": query.tenant.name or query.tenant.slug, "slug": query.tenant.slug},
        "first": f"{query.start:%-d %B %Y}",
        "last": f"{query.end - dt.timedelta(days=1):%-d %B %Y}",
        "timezone": query.tenant.timezone,
        "lines": lines,
        **totals,
        "charts": list(_charts(snapshot)),
        "open": _open(snapshot.unresolved()),
        "content": snapshot.content_hash(),
    }


def _lines(snapshot: Snapshot) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines by model, size and price, and the totals."""
    lines = []
    amounts: dict[str, Decimal] = defaultdict(Decimal)
    counted, unpriced = [0, 0, 0], 0
    found = snapshot.select(LINES, start=snapshot.query.start.isoformat())
    for earlier, model, size, currency, *price, quality, requests, images, tokens, cost, number in found:
        if currency is None:
            unpriced += requests
        else:
            amounts[currency] += cost
        counted = [sum(pair) for pair in zip(counted, (requests, images, tokens), strict=True)]
        lines.append(
            {
                "earlier": earlier,
                "adjusts": number or "",
                "model": model,
                "size": ", ".join(filter(None, (size or "any size", quality))),
                "counts": [signed(number) for number in (requests, images, tokens)],
                "prices": [UNKNOWN, UNKNOWN] if currency is None else _prices(*price),
                "amount": UNKNOWN if currency is None else separated(cost),
                "currency": currency or "",
            }
        )
    totals = [_total(currency, amount) for currency, amount in sorted(amounts.items())]
    return lines, {"totals": totals, "counts": [signed(number) for number in counted], "unpriced": _counted(unpriced)}


def _total(currency: str, amount: Decimal) -> dict[str, str]:
    """What is to be paid in a currency, and the sum that was rounded to it ("" where nothing was)."""
    to_pay = payable(amount, currency)
    return {
        "currency": currency,
        "amount": f"{to_pay:,}".replace("-", "−"),
        "exact": separated(amount) if to_pay != amount else "",
    }


def _prices(image: Decimal | None, read: Decimal | None, drawn: Decimal | None) -> list[str]:
    """Of an image and of a million tokens, input and output apart where they differ; what isn't charged has a dash."""
    asked = [NOT_CHARGED if price is None else separated(price) for price in (image, read, drawn)]
    return [asked[0], asked[1] if (read or NOTHING) == (drawn or NOTHING) else f"{asked[1]} in, {asked[2]} out"]


def _charts(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """A chart of the amounts in each currency; of the images where nothing has a price."""
    query = snapshot.query
    unit = "day" if (query.end - query.start).days <= MOST_DAYS else "month"
    amounts: dict[str | None, dict[dt.date, Decimal]] = defaultdict(dict)
    for start, currency, cost, images in snapshot.select(BARS, unit=unit):
        amounts[currency][start] = Decimal(images) if currency is None else cost
    currencies: list[str | None] = [*sorted(filter(None, amounts))]
    for currency in currencies or list(amounts):
        found = amounts[currency]
        most = max(found.values())
        starts = list(_starts(query.start, query.end, unit))
        yield {
            "title": f"{currency or 'Images'} a {unit}",
            "most": rounded(most, currency) if currency else signed(int(most)),
            "bars": [
                float(max(found.get(start, Decimal(0)) / most, Decimal(0))) if most > 0 else 0 for start in starts
            ],
            "labels": [f"{start:%-d %b}" if unit == "day" else f"{start:%b %Y}" for start in starts],
        }


def _starts(start: dt.date, end: dt.date, unit: str) -> Iterator[dt.date]:
    day = start if unit == "day" else start.replace(day=1)
    while day < end:
        yield day
        day = day + dt.timedelta(days=1) if unit == "day" else (day + dt.timedelta(days=32)).replace(day=1)


def _open(found: Iterable[Exceptional]) -> dict[str, Any]:
    """The calls whose outcome isn't known: the first hundred, how many there are, and their tokens."""
    listed: list[list[str]] = []
    count = tokens = 0
    for item in found:
        count, tokens = count + 1, tokens + (item.tokens or 0)
        if len(listed) < MOST_OPEN:
            amount = UNKNOWN if item.amount is None else f"{separated(item.amount)} {item.currency}"
            at = f"{item.at.astimezone(dt.UTC):%Y-%m-%d %H:%M}"
            listed.append([at, item.reference, item.model or "", signed(item.tokens or 0), amount])
    return {"count": _counted(count), "tokens": signed(tokens), "calls": listed, "more": _counted(count - len(listed))}


def _counted(number: int) -> str:
    return f"{number:,}" if number else ""

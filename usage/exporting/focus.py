"""The charges behind a report as a FOCUS 1.2 dataset: CSV for FinOps tools.

FOCUS is the FinOps Open Cost and Usage Specification (https://focus.finops.org/focus-specification/v1-2/). A charge is
what one token used of one model, size and quality on one day, at one price; images and tokens (input and output apart
where their prices differ) are charges of their own, because a charge has one unit price, which times the quantity is
its cost. Columns that mean nothing here are left out, as the
specification lets one. Days are the tenant's own, written as midnights of UTC, the only zone that it knows.

Usage whose price isn't known stays in: its currency is XXX (ISO 4217 for none), its costs are 0 and its unit prices
null. There the file departs from the specification, which knows no charge of unknown price, until it has one.
"""

import datetime as dt
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, BinaryIO, NamedTuple

from django.conf import settings

from usage.exporting.bookings import NAMES
from usage.exporting.snapshot import Snapshot
from usage.exports import write_csv
from usage.partitions import month_after

NO_CURRENCY = "XXX"
NOTHING = Decimal(0)

CHARGES = f"""
SELECT t.slug AS tenant, t.name AS tenant_name, b.member_id AS member, u.email AS user, b.token_id AS token,
       k.name AS token_name, b.model, b.size, b.quality, b.provider, b.day,
       date_trunc('month', b.booked_day)::date AS month, b.currency, b.per_image, b.per_million_input,
       b.per_million_output, sum(b.requests)::bigint AS requests, sum(b.booked_images)::bigint AS images,
       sum(b.booked_tokens)::bigint AS tokens,
       sum(b.booked_input_tokens)::bigint AS read, sum(b.booked_output_tokens)::bigint AS drawn,
       sum(b.booked_cost) AS cost
FROM ({{bookings}}) b {NAMES} WHERE b.outcome = 'exact'
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
ORDER BY 11, 12, 1, 3, 5, 7, 8, 9, 10, 13, 14, 15, 16
"""  # noqa: S608 - constants


class Charges(NamedTuple):
    """What CHARGES finds: a token's use of a model, size and quality on a day, at a price."""

    tenant: str
    tenant_name: str
    member: int
    user: str
    token: int
    token_name: str
    model: str
    size: str
    quality: str
    provider: str
    day: dt.date
    month: dt.date
    currency: str
    per_image: Decimal | None
    per_million_input: Decimal | None
    per_million_output: Decimal | None
    requests: int
    images: int
    tokens: int
    read: int
    drawn: int
    cost: Decimal | None


class Part(NamedTuple):
    """One charge of them: so many of a unit, priced by another unit at a price; None: the price isn't known."""

    category: str
    meter: str
    consumed: int | None
    consumed_unit: str | None
    quantity: Decimal | None
    unit: str | None
    unit_price: Decimal | None
    cost: Decimal


def parts(charges: Charges) -> Iterator[Part]:
    """The charges, which sum to the cost: images, tokens, and what those two don't explain as an adjustment."""
    left = charges.cost or NOTHING
    for meter, count, consumed_unit, quantity, unit, price in _meters(charges):
        cost = NOTHING if price is None else quantity * price
        left -= cost
        if count:
            yield Part("Usage", meter, count, consumed_unit, quantity, unit, price, cost)
    if left or (charges.requests and not charges.images and not charges.tokens):
        yield Part("Adjustment", "Adjustment", None, None, None, None, None, left)


def _meters(charges: Charges) -> Iterator[tuple[str, int, str, Decimal, str, Decimal | None]]:
    """What is counted: meter, count, its unit, the priced quantity, its unit, the price of one."""
    none = NOTHING if charges.currency else None  # not charged, or not known
    image, read, drawn = (
        none if price is None else price
        for price in (charges.per_image, charges.per_million_input, charges.per_million_output)
    )
    yield "Images", charges.images, "Images", Decimal(charges.images), "Images", image
    tokens = [("Tokens", charges.tokens, read)]
    if read != drawn:
        tokens = [("Input tokens", charges.read, read), ("Output tokens", charges.drawn, drawn)]
    for meter, count, price in tokens:
        yield meter, count, "Tokens", Decimal(count).scaleb(-6), "1000000 Tokens", price


def charge(found: Charges, part: Part, issuer: str, number: str, is_first: bool) -> dict[str, Any]:
    """The row of a charge by the names of its columns, in the specification's order; custom columns at the end."""
    columns = {
        **_money(found, part),
        **_time(found, part),
        **_sku(found, part),
        "BillingAccountId": found.tenant,
        "BillingAccountName": found.tenant_name or None,
        "BillingAccountType": "Tenant",
        "InvoiceId": number or None,
        "InvoiceIssuerName": issuer,
        "ProviderName": issuer,
        "PublisherName": found.provider or issuer,
        "ResourceId": str(found.token),
        "ResourceName": found.token_name or None,
        "ResourceType": "Proxy token",
        "SubAccountId": str(found.member),
        "SubAccountName": found.user or None,
        "SubAccountType": "Member",
        "x_PriceKnown": "no" if part.unit_price is None and part.category == "Usage" else "yes",
        "x_Requests": found.requests if is_first else None,
    }
    return dict(sorted(columns.items()))


def _money(found: Charges, part: Part) -> dict[str, Any]:
    return {
        **dict.fromkeys(("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"), part.cost),
        **dict.fromkeys(("ContractedUnitPrice", "ListUnitPrice"), part.unit_price),
        "BillingCurrency": found.currency or NO_CURRENCY,
        "ConsumedQuantity": part.consumed,
        "ConsumedUnit": part.consumed_unit,
        "PricingCategory": "Standard" if part.category == "Usage" else None,
        "PricingQuantity": part.quantity,
        "PricingUnit": part.unit,
    }


def _time(found: Charges, part: Part) -> dict[str, Any]:
    return {
        "BillingPeriodEnd": _moment(month_after(found.month)),
        "BillingPeriodStart": _moment(found.month),
        "ChargeCategory": part.category,
        "ChargeClass": "Correction" if found.day < found.month else None,
        "ChargeFrequency": "Usage-Based" if part.category == "Usage" else "One-Time",
        "ChargePeriodEnd": _moment(found.day + dt.timedelta(days=1)),
        "ChargePeriodStart": _moment(found.day),
    }


def _sku(found: Charges, part: Part) -> dict[str, Any]:
    size, meter = found.size or "any size", part.meter.lower().replace(" ", "-")
    drawn = f"{size}, {found.quality}" if found.quality else size
    priced = "/".join(filter(None, (found.model, size.replace(" ", "-"), found.quality, meter)))
    details = {"x_Model": found.model, "x_Size": size, **({"x_Quality": found.quality} if found.quality else {})}
    is_usage = part.category == "Usage"
    return {
        "ChargeDescription": f"{part.meter} of {found.model}, {drawn}",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Image generation",
        "ServiceSubcategory": "Generative AI",
        "SkuId": f"{found.model}/{meter}",
        "SkuMeter": part.meter if is_usage else None,
        "SkuPriceDetails": _keys(details) if is_usage else None,
        "SkuPriceId": priced,
        "Tags": _keys({"gateway/model": found.model, "gateway/size": size, "gateway/token": found.token_name}),
    }


def rows(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """Every charge of the usage, by day."""
    for values in snapshot.select(CHARGES):
        found = Charges(*values)
        for place, part in enumerate(parts(found)):
            yield charge(found, part, settings.ISSUER, snapshot.number, place == 0)


def write(snapshot: Snapshot, out: BinaryIO) -> None:
    """The dataset as CSV; null is an empty cell. Its costs sum to the report's, its units to images and tokens."""
    text = io.TextIOWrapper(out, "utf-8", newline="", write_through=True)
    try:
        write_csv(_lines(snapshot), text)
    finally:
        text.detach()  # `out` is the caller's to close


def _lines(snapshot: Snapshot) -> Iterator[list[Any]]:
    yield COLUMNS
    yield from (list(row.values()) for row in rows(snapshot))


def _moment(day: dt.date) -> str:
    return f"{day}T00:00:00Z"


def _keys(values: dict[str, str]) -> str:
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


_NOBODY = Charges(
    *("", "", 0, "", 0, "", "", "", "", ""), dt.date.min, dt.date.min, "", None, None, None, 0, 0, 0, 0, 0, None
)
COLUMNS = list(charge(_NOBODY, Part("Usage", "", None, None, None, None, None, NOTHING), "", "", True))

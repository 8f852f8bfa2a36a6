"""FOCUS exports keep the rules of the specification, version 1.2.

The rules are those of its column definitions and attributes, as far as they can be told from a file. What departs from
them on purpose is named: usage without a known price.
"""

import csv
import datetime as dt
import io
import json
import re
from collections.abc import Callable
from decimal import Decimal

import pytest

from tests.bookkeeping import Customer
from usage.exporting.focus import COLUMNS, NO_CURRENCY, Charges, parts
from usage.exporting.formats import export
from usage.ledger import record
from usage.models import Price
from usage.reports import Query

Row = dict[str, str]


def words(text: str) -> list[str]:
    return text.split()


# The columns of FOCUS 1.2 by their feature levels.
MANDATORY = words(
    """
    BilledCost BillingAccountId BillingAccountName BillingCurrency BillingPeriodEnd BillingPeriodStart
    ChargeCategory ChargeClass ChargeDescription ChargePeriodEnd ChargePeriodStart ContractedCost EffectiveCost
    InvoiceIssuerName ListCost PricingQuantity PricingUnit ProviderName PublisherName ServiceCategory ServiceName
    """
)
OTHERS = words(
    """
    AvailabilityZone BillingAccountType CapacityReservationId CapacityReservationStatus ChargeFrequency
    CommitmentDiscountCategory CommitmentDiscountId CommitmentDiscountName CommitmentDiscountQuantity
    CommitmentDiscountStatus CommitmentDiscountType CommitmentDiscountUnit ConsumedQuantity ConsumedUnit
    ContractedUnitPrice InvoiceId ListUnitPrice PricingCategory PricingCurrency PricingCurrencyContractedUnitPrice
    PricingCurrencyEffectiveCost PricingCurrencyListUnitPrice RegionId RegionName ResourceId ResourceName
    ResourceType ServiceSubcategory SkuId SkuMeter SkuPriceDetails SkuPriceId SubAccountId SubAccountName
    SubAccountType Tags
    """
)
NEVER_NULL = words(
    """
    BilledCost BillingAccountId BillingCurrency BillingPeriodEnd BillingPeriodStart ChargeCategory ChargePeriodEnd
    ChargePeriodStart ContractedCost EffectiveCost InvoiceIssuerName ListCost ProviderName PublisherName
    ServiceCategory ServiceName ServiceSubcategory ChargeFrequency
    """
)
# Of usage that corrects no earlier month.
OF_USAGE = words(
    """
    ConsumedQuantity ConsumedUnit ContractedUnitPrice ListUnitPrice PricingCategory PricingQuantity PricingUnit
    SkuId SkuMeter SkuPriceId
    """
)
NUMBERS = words(
    """
    BilledCost ConsumedQuantity ContractedCost ContractedUnitPrice EffectiveCost ListCost ListUnitPrice
    PricingQuantity
    """
)
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"", "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"", "Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {"AI Platforms", "Bots", "Generative AI", "Machine Learning", "Natural Language Processing"},
}
NUMERIC = re.compile(r"-?\d+(\.\d+)?")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
UNIT = re.compile(r"([1-9]\d* )?[A-Z][a-z]*s")


def broken_rules(row: Row) -> list[str]:
    """The rules that a row breaks, in words."""
    unpriced = row["BillingCurrency"] == NO_CURRENCY
    found = [f"{name} is null" for name in NEVER_NULL if not row[name]]
    if row["ChargeCategory"] == "Usage" and row["ChargeClass"] != "Correction":
        excused = {"ContractedUnitPrice", "ListUnitPrice"} if unpriced else set()
        found += [f"{name} of usage is null" for name in OF_USAGE if not row[name] and name not in excused]
    found += [f"{name} is no number" for name in NUMBERS if row[name] and not NUMERIC.fullmatch(row[name])]
    found += [f"{name} is {row[name]}" for name, values in ALLOWED.items() if row[name] not in values]
    moments = ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd")
    found += [f"{name} is no moment" for name in moments if not MOMENT.fullmatch(row[name])]
    found += [f"{kind} ends before it begins" for kind in ("Billing", "Charge") if _backwards(row, kind)]
    found += [
        f"{unit} is no unit" for unit in (row["ConsumedUnit"], row["PricingUnit"]) if unit and not UNIT.fullmatch(unit)
    ]
    if not re.fullmatch("[A-Z]{3}", row["BillingCurrency"]):
        found.append("BillingCurrency is no ISO 4217 code")
    for cost, price in (("ListCost", "ListUnitPrice"), ("ContractedCost", "ContractedUnitPrice")):
        if row[price] and Decimal(row[price]) * Decimal(row["PricingQuantity"]) != Decimal(row[cost]):
            found.append(f"{price} times PricingQuantity is not {cost}")
    late = row["ChargePeriodStart"] < row["BillingPeriodStart"]
    if late != (row["ChargeClass"] == "Correction"):
        found.append("ChargeClass doesn't fit the periods")
    found += [f"{name} is no object of keys and values" for name in ("Tags", "SkuPriceDetails") if not _keys(row[name])]
    return found


def _backwards(row: Row, kind: str) -> bool:
    return not row[f"{kind}PeriodStart"] < row[f"{kind}PeriodEnd"]


def _keys(text: str) -> bool:
    try:
        values = json.loads(text) if text else {}
    except ValueError:
        return False
    return isinstance(values, dict) and all(isinstance(value, str | int | float | bool) for value in values.values())


@pytest.fixture
def alice() -> Customer:
    customer = Customer()
    tokens = dict.fromkeys(("per_million_input", "per_million_output"), "5.12345678")
    prices = {"per_image": "0.01234567", **tokens, "currency": "EUR"}
    Price.objects.create(model=customer.model, valid_from=dt.date(2026, 1, 1), **prices)
    return customer


def exported(customer: Customer, start: str = "2026-10-01") -> list[Row]:
    out = io.BytesIO()
    export(Query(customer.tenant, dt.date.fromisoformat(start), dt.date(2099, 1, 1), []), "focus", out, number="S-1")
    return list(csv.DictReader(io.StringIO(out.getvalue().decode(), newline="")))


def test_the_columns_are_the_specifications() -> None:
    assert len(MANDATORY) + len(OTHERS) == 57
    ours = [name for name in COLUMNS if not name.startswith("x_")]
    assert set(MANDATORY) <= set(ours) <= {*MANDATORY, *OTHERS}
    assert ours == sorted(ours), "they stand in the specification's order"


def test_every_row_keeps_every_rule(alice: Customer) -> None:
    late = alice.event("unresolved", day="2026-10-30")
    record([alice.event(day=f"2026-10-{day}", size=size) for day in (10, 11, 11) for size in ("512x512", "")])
    record([late, alice.event(day="2026-10-12", model=f"{alice.model}-unpriced")])
    record([alice.event("exact", of=late.request_id, day="2026-10-30")])
    rows = exported(alice)
    assert [rule for row in rows for rule in broken_rules(row)] == []
    assert {row["ChargeClass"] for row in rows} == {"", "Correction"}
    assert {row["BillingCurrency"] for row in rows} == {"EUR", NO_CURRENCY}
    assert {row["InvoiceId"] for row in rows} == {"S-1"}


def test_a_charge_reads_as_it_should(alice: Customer) -> None:
    record([alice.event(day="2026-10-10"), alice.event(day="2026-10-10")])
    images, tokens = exported(alice)
    assert (images["PricingUnit"], images["PricingQuantity"], images["BilledCost"]) == ("Images", "4.00", "0.04938268")
    assert (tokens["PricingUnit"], tokens["PricingQuantity"]) == ("1000000 Tokens", "0.008364")
    assert (tokens["ConsumedUnit"], tokens["ConsumedQuantity"]) == ("Tokens", "8364")
    assert tokens["BilledCost"] == "0.04285259250792"
    assert (images["x_Requests"], tokens["x_Requests"]) == ("2", "")
    assert (images["BillingPeriodStart"], images["BillingPeriodEnd"]) == (
        "2026-10-01T00:00:00Z",
        "2026-11-01T00:00:00Z",
    )
    assert (images["ChargePeriodStart"], images["ChargePeriodEnd"]) == ("2026-10-10T00:00:00Z", "2026-10-11T00:00:00Z")
    assert (images["BillingAccountId"], images["SubAccountName"]) == (alice.tenant.slug, alice.user.email)


def test_what_is_unresolved_or_void_is_no_charge(alice: Customer) -> None:
    record([alice.event("unresolved", day="2026-10-10"), alice.event("void", day="2026-10-10")])
    assert exported(alice) == []


def test_a_rest_that_prices_do_not_explain_is_an_adjustment() -> None:
    day, price = dt.date(2026, 10, 1), Decimal("0.5")
    found = Charges(
        *("t", "t", 1, "u", 1, "k", "m", "", "", "p", day, day, "EUR"),
        *(price, price, price, 1, 2, 1_000_000, 0, 0, Decimal("1.75")),
    )
    assert [(part.category, part.cost) for part in parts(found)] == [
        ("Usage", Decimal(1)),
        ("Usage", Decimal("0.5")),
        ("Adjustment", Decimal("0.25")),
    ]
    apart = found._replace(per_million_output=Decimal(2), read=200_000, drawn=800_000, cost=Decimal("2.7"))
    assert [(part.meter, part.consumed, part.cost) for part in parts(apart)] == [
        ("Images", 2, Decimal(1)),
        ("Input tokens", 200_000, Decimal("0.1")),
        ("Output tokens", 800_000, Decimal("1.6")),
    ]
    nothing = found._replace(images=0, tokens=0, cost=Decimal(0))
    assert [part.category for part in parts(nothing)] == ["Adjustment"], "or its request would be in no row"


@pytest.mark.parametrize(
    ("breaking", "rule"),
    [
        (lambda row: row | {"BilledCost": ""}, "BilledCost is null"),
        (lambda row: row | {"ListUnitPrice": ""}, "ListUnitPrice of usage is null"),
        (lambda row: row | {"BilledCost": "1E-7"}, "BilledCost is no number"),
        (lambda row: row | {"ChargeCategory": "Fee"}, "ChargeCategory is Fee"),
        (lambda row: row | {"ChargePeriodEnd": "2026-10-11"}, "ChargePeriodEnd is no moment"),
        (lambda row: row | {"ChargePeriodEnd": row["ChargePeriodStart"]}, "Charge ends before it begins"),
        (lambda row: row | {"PricingUnit": "tokens"}, "tokens is no unit"),
        (lambda row: row | {"BillingCurrency": "€"}, "BillingCurrency is no ISO 4217 code"),
        (lambda row: row | {"PricingQuantity": "3"}, "ListUnitPrice times PricingQuantity is not ListCost"),
        (lambda row: row | {"ChargeClass": "Correction"}, "ChargeClass doesn't fit the periods"),
        (lambda row: row | {"Tags": "model=m"}, "Tags is no object of keys and values"),
    ],
)
def test_control_each_rule_can_be_broken(alice: Customer, breaking: Callable[[Row], Row], rule: str) -> None:
    record([alice.event(day="2026-10-10")])
    assert rule in broken_rules(breaking(exported(alice)[0]))

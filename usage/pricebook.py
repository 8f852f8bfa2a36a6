"""The price book as a whole: as a file, which prices go before which, and what one call would cost."""

import csv
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q
from django.utils.timezone import now

from tokens.errors import Refused
from tokens.management.base import sentence
from tokens.models import Tenant
from usage.exports import Writable, plain, write_csv
from usage.models import Price
from usage.pricerow import KEY, PROVIDER_ASKS, SELLS, USED
from usage.prices import PriceList, Rates, Tokens, Wanted

AMOUNTS = (*SELLS, *PROVIDER_ASKS)
COLUMNS = (*KEY, *AMOUNTS, "currency", "valid_from")
NEEDED = {"model", "currency", "valid_from"}
MOST_LINES = 10_000
NEW, CHANGED, SAME, REFUSED = "new", "changed", "there already", "refused"


@dataclass(slots=True)
class Line:
    """A line of a file of prices, and what importing it would do: one of NEW, CHANGED, SAME and REFUSED."""

    number: int
    price: Price
    verdict: str
    why: str = ""  # it is refused


def write(prices: Iterable[Price], out: Writable) -> None:
    """The price book as CSV, which `read` takes."""
    write_csv([COLUMNS, *(_cells(price) for price in prices)], out)


def _cells(price: Price) -> list[object]:
    slug = price.tenant.slug if price.tenant else ""
    return [slug, *(getattr(price, name) for name in COLUMNS[1:])]


def read(lines: Iterable[str]) -> list[Line]:
    """Say what importing a file would do, line by line; nothing is changed. Raises Refused when it is no such file.

    CSV with a header that names some of COLUMNS; an empty cell says "any" or "none".
    """
    reader = csv.DictReader(lines)
    try:
        return _lines(reader)
    except csv.Error as exc:
        raise Refused(f"Line {reader.line_num} is no CSV: {exc}.") from exc


def _lines(reader: "csv.DictReader[str]") -> list[Line]:
    names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    unknown, missing = [name for name in names if name not in COLUMNS], NEEDED - set(names)
    if unknown or missing or len(set(names)) < len(names):
        wrong = f"{unknown[0] or 'nothing'} is none of them" if unknown else f"missing: {', '.join(sorted(missing))}"
        raise Refused(f"The first line must name columns of {', '.join(COLUMNS)}, each once; {wrong}.")
    reader.fieldnames = names
    tenants = dict(Tenant.objects.values_list("slug", "pk"))
    stored = {_key(price): price for price in Price.objects.all()}
    found: list[Line] = []
    seen: dict[Any, int] = {}
    for row in reader:
        if len(found) == MOST_LINES:
            raise Refused(f"A file has {MOST_LINES:,} prices at most.")
        line = _line(reader.line_num, row, tenants, stored)
        if line.verdict != REFUSED and (first := seen.setdefault(_key(line.price), line.number)) != line.number:
            line.verdict, line.why = REFUSED, f"Line {first} is for the same calls from the same day."
        found.append(line)
    if not found:
        raise Refused("There are no prices in it.")
    return found


def _line(number: int, row: dict[str, Any], tenants: dict[str, int], stored: dict[Any, Price]) -> Line:
    cells = {name: str(row.get(name) or "").strip().removeprefix("'") for name in COLUMNS}
    price = Price(model=cells["model"], size=cells["size"], quality=cells["quality"], currency=cells["currency"])
    try:
        if None in row:
            raise ValidationError("It has more cells than the first line.")
        if cells["tenant"]:
            price.tenant_id = tenants.get(cells["tenant"])
            if price.tenant_id is None:
                raise ValidationError(f"There is no tenant {cells['tenant']}.")
        for name in AMOUNTS:
            setattr(price, name, _amount(cells[name]))
        price.valid_from = _day(cells["valid_from"])
        before = stored.get(_key(price))
        if before is not None:
            return _known(number, price, before)
        price.full_clean(exclude=["tenant"], validate_unique=False)
    except ValidationError as exc:
        return Line(number, price, REFUSED, sentence(exc))
    return Line(number, price, NEW)


def _known(number: int, price: Price, before: Price) -> Line:
    """A line for which there is a price: the same again, or one that may still be changed."""
    values = {name: getattr(price, name) for name in (*AMOUNTS, "currency")}
    if all(getattr(before, name) == value for name, value in values.items()):
        return Line(number, before, SAME)
    for name, value in values.items():
        setattr(before, name, value)
    if before.used_at is not None:
        return Line(number, before, REFUSED, USED)
    try:
        before.clean_fields(exclude=["tenant"])
        before.validate_constraints()
    except ValidationError as exc:
        return Line(number, before, REFUSED, sentence(exc))
    return Line(number, before, CHANGED)


def _key(price: Price) -> tuple[Any, ...]:
    return price.tenant_id, price.model, price.size, price.quality, price.valid_from


def _amount(text: str) -> Decimal | None:
    try:
        amount = Decimal(text) if text else None
    except InvalidOperation:
        amount = Decimal("NaN")
    if "_" in text or not text.isascii():  # Python reads more as a number than people do
        amount = Decimal("NaN")
    if amount is not None and not amount.is_finite():
        raise ValidationError(f"{text} is no amount such as 0.04.")
    return amount


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise ValidationError(f"{text or 'Nothing'} is no day such as 2026-12-01.") from None


@transaction.atomic
def carry_out(lines: Sequence[Line]) -> int:
    """Import what `read` has found: all of it or nothing. How many prices are new or changed. Raises Refused."""
    refused = [line for line in lines if line.verdict == REFUSED]
    if refused:
        raise Refused(f"Line {refused[0].number}: {refused[0].why} Nothing was imported.")
    changed = [line.price for line in lines if line.verdict != SAME]
    for price in changed:
        price.save()
    return len(changed)


# Which prices go before which


def rank(price: Price) -> tuple[bool, bool, bool]:
    """The higher one goes first, of two prices that fit the same call: tenant, then size, then quality."""
    return price.tenant_id is not None, bool(price.size), bool(price.quality)


def rivals(price: Price) -> Iterator[tuple[Price, bool]]:
    """The other prices in force or planned that fit some of the same calls, and whether each goes before this one."""
    today = now().date()
    fits = Q(model=price.model)
    for name, nothing in (("size", ""), ("quality", "")):
        value = getattr(price, name)
        fits &= Q(**{f"{name}__in": [value, nothing]}) if value else Q()
    if price.tenant_id is not None:
        fits &= Q(tenant=None) | Q(tenant=price.tenant_id)
    for other in Price.objects.filter(fits).exclude(pk=price.pk).with_end().select_related("tenant"):
        if _key(other)[:-1] != _key(price)[:-1] and other.state_on(today) != "ended":
            yield other, rank(other) > rank(price)


# What a call would cost


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call would cost, and why. Amounts are None where they aren't known."""

    price: Price | None
    lines: Sequence[tuple[str, str, str]]  # what, how many times which price, amount
    cost: Decimal | None
    provider_cost: Decimal | None

    @property
    def margin(self) -> Decimal | None:
        """What is left of it."""
        return None if self.cost is None or self.provider_cost is None else self.cost - self.provider_cost


def estimate(wanted: Wanted, images: int, tokens: Tokens) -> Estimate:
    """What such a call would cost, by the price book as it is now."""
    tenants = [] if wanted.tenant is None else [wanted.tenant]
    found = PriceList([wanted.model], tenants).find(wanted)
    if found is None:
        return Estimate(None, [], None, None)
    price = Price.objects.select_related("tenant").get(pk=found.id)
    cost = found.sells.amount(images, tokens)
    asked = None if cost is None or found.asks is None else found.asks.amount(images, tokens)
    return Estimate(price, list(_steps(found.sells, images, tokens)), cost, asked)


def _steps(rates: Rates, images: int, tokens: Tokens) -> Iterator[tuple[str, str, str]]:
    yield "Images", f"{images:,} × {plain(rates.image)}", plain(images * rates.image)
    charged, read, drawn = tokens
    parts: list[tuple[str, int | None, Decimal]] = [("Tokens", charged, rates.read)]
    if rates.read != rates.drawn:
        parts = [("Input tokens", read, rates.read), ("Output tokens", drawn, rates.drawn)]
    for name, count, rate in parts:
        if count is None:
            yield name, f"unknown × {plain(rate)} a million", "unknown"
        else:
            yield name, f"{count:,} × {plain(rate)} a million", plain((count * rate).scaleb(-6))

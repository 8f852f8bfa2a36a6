"""The price of a call, from the dated price book."""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from django.db import connection

from usage.events import UsageEvent
from usage.models import Price

NOTHING = Decimal(0)
MILLION = -6  # as a power of ten that a token's price is scaled by

READ = f"""
SELECT id, tenant_id, model, size, quality, valid_from, used_at IS NOT NULL, currency,
       per_image, per_million_input, per_million_output,
       provider_per_image, provider_per_million_input, provider_per_million_output
FROM {Price._meta.db_table}
WHERE {{condition}} ORDER BY valid_from DESC
"""  # noqa: S608 - constants
OF_MODELS = "model = ANY(%s) AND (tenant_id IS NULL OR tenant_id = ANY(%s::bigint[]))"
# In the order of their numbers, so that two writers who begin to use the same prices wait for one another at most.
USE = f"""
UPDATE {Price._meta.db_table} SET used_at = now() WHERE used_at IS NULL AND id IN (
    SELECT id FROM {Price._meta.db_table} WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE
)
"""  # noqa: S608 - constants


class Tokens(NamedTuple):
    """The tokens of a call: those that are charged, and, None where that isn't known, how they divide."""

    charged: int
    read: int | None
    drawn: int | None


class Rates(NamedTuple):
    """What an image, a million input tokens and a million output tokens cost."""

    image: Decimal
    read: Decimal
    drawn: Decimal

    def amount(self, images: int, tokens: Tokens) -> Decimal | None:
        """What these cost, exact (never rounded).

        None where input and output tokens have prices of their own and it isn't known how those that are charged
        divide: the parts must be known and sum to them.
        """
        charged, read, drawn = tokens
        if self.read == self.drawn or not charged:
            of_tokens = charged * self.read
        elif read is None or drawn is None or read + drawn != charged:
            return None
        else:
            of_tokens = read * self.read + drawn * self.drawn
        return images * self.image + of_tokens.scaleb(MILLION)


class Wanted(NamedTuple):
    """What the price of a call depends on; `day` is its tenant's."""

    tenant: int | None
    model: str
    size: str
    quality: str
    day: dt.date


Place = tuple[int | None, str, str, str]  # tenant, model, size, quality; None and "" stand for any


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of the price book, as a batch of calls is priced by it.

    `shown` are its prices as they are written: None where something isn't charged. `sells` has 0 there. `asks` are the
    provider's, None where they aren't known.
    """

    id: int
    place: Place
    valid_from: dt.date
    used: bool
    currency: str
    shown: tuple[Decimal | None, Decimal | None, Decimal | None]
    sells: Rates
    asks: Rates | None


def listed(row: tuple[Any, ...]) -> Listed:
    """A row of READ."""
    number, tenant, model, size, quality, valid_from, used, currency, *amounts = row
    sells, asks = amounts[:3], amounts[3:]
    return Listed(
        number,
        (tenant, model, size, quality),
        valid_from,
        used,
        currency,
        (sells[0], sells[1], sells[2]),
        Rates(*(amount or NOTHING for amount in sells)),
        None if None in asks else Rates(*asks),
    )


def places(wanted: Wanted) -> list[Place]:
    """Where a price of such a call may stand, the first goes before the others: tenant, then size, then quality."""
    tenants = (None,) if wanted.tenant is None else (wanted.tenant, None)
    sizes = (wanted.size, "") if wanted.size else ("",)
    qualities = (wanted.quality, "") if wanted.quality else ("",)
    return [(tenant, wanted.model, size, quality) for tenant in tenants for size in sizes for quality in qualities]


class PriceList:
    """The prices of some models for everybody and for some tenants, read once; they hold for one batch of calls."""

    def __init__(self, models: Iterable[str], tenants: Iterable[int]) -> None:
        self._places: defaultdict[Place, list[Listed]] = defaultdict(list)
        self._found: dict[Wanted, Listed | None] = {}
        self._by_id: dict[int, Listed] = {}
        self._models, self._tenants = list(set(models)), list(set(tenants))
        self._read()

    def _read(self) -> None:
        self._places.clear()
        self._found.clear()
        for price in _select(OF_MODELS, [self._models, self._tenants]):
            self._places[price.place].append(price)  # the newest first
            self._by_id[price.id] = price

    def find(self, wanted: Wanted) -> Listed | None:
        """The price of such a call; None when there is none: what it costs isn't known."""
        if wanted not in self._found:
            candidates = (price for place in places(wanted) for price in self._places.get(place, ()))
            self._found[wanted] = next((price for price in candidates if price.valid_from <= wanted.day), None)
        return self._found[wanted]

    def use(self, calls: Collection[Wanted]) -> None:
        """Mark the prices of these calls as used: nobody changes them from now on. Within the transaction that books.

        A price is marked once, and only then there is something to do: whoever was just changing it is waited for.
        """
        while new := sorted({price.id for key in calls if (price := self.find(key)) and not price.used}):
            with connection.cursor() as cursor:
                cursor.execute(USE, [new])
            self._read()

    def used(self, wanted: Wanted) -> Listed | None:
        """The price of such a call, marked as used."""
        self.use([wanted])
        return self.find(wanted)

    def get(self, number: int) -> Listed:
        """The price with this number, which was used before and so is there."""
        if number not in self._by_id:
            self._by_id[number] = _select("id = %s", [number])[0]
        return self._by_id[number]


def _select(condition: str, parameters: list[Any]) -> list[Listed]:
    with connection.cursor() as cursor:
        cursor.execute(READ.format(condition=condition), parameters)
        return [listed(row) for row in cursor.fetchall()]


def prices_of(events: Iterable[UsageEvent]) -> PriceList:
    """The price list of a batch of events."""
    keys: Mapping[tuple[int, str], None] = dict.fromkeys((event.tenant, event.model) for event in events)
    return PriceList((model for _, model in keys), (tenant for tenant, _ in keys))


def wanted_by(event: UsageEvent) -> Wanted:
    """What the price of an event's call depends on."""
    return Wanted(event.tenant, event.model, event.size, event.quality, event.day)

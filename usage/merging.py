"""What a call counts as, and how a later event about the same call changes the books. Pure: no database in here.

Figures are absolute: each event says all that is known. A higher rank replaces a lower one (unresolved < void <
exact) through a correction that holds the difference; an equal or lower rank says nothing new, so events may come
doubled and in any order.
"""

import datetime as dt
import operator
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

from usage.events import UsageEvent
from usage.models import Kind, Unpriced
from usage.prices import Listed, Tokens

Number = TypeVar("Number", int, Decimal)

RANK = {"unresolved": 0, "void": 1, "exact": 2}


class Figures(NamedTuple):
    """A row's additive figures; None is unknown."""

    images: int
    input_tokens: int | None
    output_tokens: int | None
    reported_tokens: int | None
    charged_tokens: int
    cost: Decimal | None
    provider_cost: Decimal | None


class Booking(NamedTuple):
    """The additive columns of DailyUsage, by their names."""

    requests: int = 0
    images: int = 0
    charged_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Decimal = Decimal(0)
    provider_cost: Decimal = Decimal(0)
    unpriced_requests: int = 0
    uncosted_requests: int = 0
    unresolved_requests: int = 0
    unresolved_images: int = 0
    unresolved_tokens: int = 0
    voided_requests: int = 0


NOTHING = Booking()


class Pricing(NamedTuple):
    """The price that a row was charged at.

    Where it isn't known what the call costs, `unpriced` says why and nothing else is said but which price there was.
    """

    price: int | None = None
    per_image: Decimal | None = None
    per_million_input: Decimal | None = None
    per_million_output: Decimal | None = None
    currency: str = ""
    unpriced: str = ""

    @classmethod
    def of(cls, price: Listed | None) -> "Pricing":
        """A price from the list, or its absence."""
        return cls() if price is None else cls(price.id, *price.shown, price.currency)


UNPRICED = Pricing(unpriced=str(Unpriced.NO_PRICE))
FREE = Decimal(0)


class Account(NamedTuple):
    """Whom and what a call is booked on."""

    tenant: int
    member: int
    token: int
    model: str


class RollupKey(NamedTuple):
    """A row of the rollups. Writers touch rows in the order of these tuples, otherwise two could deadlock."""

    tenant: int
    booked_day: dt.date
    member: int
    token: int
    model: str
    currency: str


@dataclass(slots=True)
class State:
    """What is known about a call: the sum of its ledger rows."""

    outcome: str
    figures: Figures
    pricing: Pricing


@dataclass(slots=True)
class Written:
    """A call that already stands in the ledger, with what its primary row says about it."""

    account: Account
    size: str
    quality: str
    day: dt.date
    n: int
    number: int  # of its newest row
    state: State


def by_call(events: Iterable[UsageEvent]) -> dict[uuid.UUID, list[UsageEvent]]:
    """The events of each call, in the order they came."""
    calls: dict[uuid.UUID, list[UsageEvent]] = {}
    for event in events:
        calls.setdefault(event.request_id, []).append(event)
    return calls


def state_of(event: UsageEvent, price: Listed | None) -> State:
    """The state that an event leaves its call in. A void call costs nothing, priced or not.

    Nothing of a call is in any amount unless it is known what it costs, nor what the provider asks for it.
    """
    pricing, cost, asked = _charge(event, price)
    told = event.images, event.input_tokens, event.output_tokens, event.reported, event.charged
    return State(event.kind, Figures(*told, cost, asked), pricing)


def _charge(event: UsageEvent, price: Listed | None) -> tuple[Pricing, Decimal | None, Decimal | None]:
    """The price of an event's call, what it costs, and what the provider asks for it."""
    if event.kind == "void":
        return Pricing.of(price), FREE, FREE
    if price is None:
        return UNPRICED, None, None
    tokens = Tokens(event.charged, event.input_tokens, event.output_tokens)
    cost = price.sells.amount(event.images, tokens)
    if cost is None:
        return Pricing(price.id, unpriced=str(Unpriced.SPLIT_UNKNOWN)), None, None
    return Pricing.of(price), cost, price.asks.amount(event.images, tokens) if price.asks else None


def difference(after: Figures, before: Figures) -> Figures:
    """The figures of a correction: added to those before it, they make those after."""
    return Figures(
        images=after.images - before.images,
        input_tokens=_less(after.input_tokens, before.input_tokens),
        output_tokens=_less(after.output_tokens, before.output_tokens),
        reported_tokens=_less(after.reported_tokens, before.reported_tokens),
        charged_tokens=after.charged_tokens - before.charged_tokens,
        # What isn't known stays unknown, rather than taking back what was.
        cost=None if after.cost is None else _less(after.cost, before.cost),
        provider_cost=None if after.provider_cost is None else _less(after.provider_cost, before.provider_cost),
    )


def _less(after: Number | None, before: Number | None) -> Number | None:
    if before is None:
        return after
    return -before if after is None else after - before


def booking(state: State) -> Booking:
    """What a call in this state adds to its rollup. Unresolved calls stand apart: they are not to be invoiced."""
    figures = state.figures
    if state.outcome == Kind.VOID:
        return Booking(voided_requests=1)
    if state.outcome == Kind.UNRESOLVED:
        return Booking(
            unresolved_requests=1, unresolved_images=figures.images, unresolved_tokens=figures.charged_tokens
        )
    return Booking(
        requests=1,
        images=figures.images,
        charged_tokens=figures.charged_tokens,
        input_tokens=figures.input_tokens or 0,
        output_tokens=figures.output_tokens or 0,
        cost=figures.cost or FREE,
        provider_cost=figures.provider_cost or FREE,
        unpriced_requests=1 if figures.cost is None else 0,
        uncosted_requests=1 if figures.provider_cost is None else 0,
    )


class Rollups:
    """The changes that one batch makes to the rollups."""

    def __init__(self) -> None:
        self._changes: dict[RollupKey, Booking] = {}

    def add(self, account: Account, booked_day: dt.date, state: State, sign: int = 1) -> None:
        """Book a call's state on a day; with `sign` -1 take it back."""
        key = RollupKey(
            account.tenant, booked_day, account.member, account.token, account.model, state.pricing.currency
        )
        combined: Any = operator.add if sign > 0 else operator.sub
        self._changes[key] = Booking._make(map(combined, self._changes.get(key, NOTHING), booking(state)))

    def in_key_order(self) -> list[tuple[RollupKey, Booking]]:
        """The changes in the order in which every writer must make them."""
        return sorted(self._changes.items())

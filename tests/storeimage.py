"""The admission store as it should be, in plain Python: what an oracle keeps in place of the store.

`Image` is all that the store holds; losing or rolling back the store replaces it.
"""

import itertools
from dataclasses import dataclass, field

from tokens.admission.periods import OpenPeriods
from tokens.admission.principal import ScopedLimit

Amounts = tuple[int, int, int]  # requests, images, tokens
Use = tuple[str, str]  # scope, period: one counter
Slot = tuple[int, str]  # token, idempotency key


@dataclass
class Record:
    """A token, member or tenant in the store. `ended`: its secret isn't accepted any more (tokens)."""

    status: str = "active"
    version: int = 1
    ended: bool = False


@dataclass(frozen=True)
class Asked:
    """One admission as it is asked for, by a process that remembers `versions`, `limits` and `generation`."""

    request_id: str
    token: int
    costs: Amounts
    lease: float
    generation: str
    versions: tuple[int, ...]
    limits: tuple[ScopedLimit, ...]
    periods: OpenPeriods
    key: str = ""
    body: str = ""
    backlog: int = 1000

    @property
    def scopes(self) -> dict[str, str]:
        """By the names that limits have for them."""
        return {"token": f"token:{self.token}", "member": "member:7", "tenant": "tenant:3"}

    @property
    def uses(self) -> tuple[Use, ...]:
        """The counters that the call counts in."""
        names = (f"day:{self.periods.day}", f"month:{self.periods.month}")
        totals = [
            (self.scopes[one.scope], f"total:{one.limit.id}") for one in self.limits if one.limit.period == "total"
        ]
        return *itertools.product(self.scopes.values(), names), *totals


@dataclass
class Kept:
    """A call as the store holds it; `asked` None: only the mark of one that ended without a reservation.

    `decided`: a person said void, which an exact outcome still overrules.
    """

    state: str
    asked: Asked | None = None
    lease_end: float = 0.0
    decided: bool = False


@dataclass
class Remembered:
    """What an idempotency key holds; `answer` None: the call is in flight."""

    body: str
    request_id: str
    answer: bytes | None = None


@dataclass(frozen=True)
class Event:
    """An entry of the stream, with what it says was used."""

    request_id: str
    kind: str
    sequence: str
    generation: str
    amounts: Amounts
    uses: tuple[Use, ...]


@dataclass
class Image:
    """What the store holds. `generation` empty: not confirmed, nobody is admitted."""

    generation: str = ""
    stopped: bool = False
    records: dict[str, Record] = field(default_factory=dict)
    orders: set[str] = field(default_factory=set)
    uses: dict[Use, list[int]] = field(default_factory=dict)  # three figures used, three reserved
    calls: dict[str, Kept] = field(default_factory=dict)
    remembered: dict[Slot, Remembered] = field(default_factory=dict)
    sequence: int = 0
    events: list[Event] = field(default_factory=list)

    def open_calls(self) -> dict[str, Kept]:
        """Those that were admitted and haven't ended."""
        return {name: kept for name, kept in self.calls.items() if kept.state == "RESERVED"}

"""What web processes have counted (gateway.telemetry), read back from the store in one round trip."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from config.redis import PAGE_SECONDS, store
from gateway.telemetry import BUCKETS, FAILED, LATENCIES, REFUSED, SERVED
from tokens.admission import keys
from tokens.scripts import answered

MOST_PAIRS = 50  # of the pairs that were refused most, which a day's tally is asked for


class Pair(NamedTuple):
    """A token of a tenant and why its calls were refused; 0 for a tenant or token that is not known."""

    tenant: int
    token: int
    type: str


@dataclass
class Tally:
    """Counts of calls: served, refused and failed by error type, and served ones by how long they took."""

    served: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)

    def add(self, raw: Mapping[bytes, bytes]) -> None:
        """Take a hash as the store has it; what a newer version counts besides is left out."""
        for name, value in raw.items():
            outcome, _, kind = name.decode().partition(":")
            if outcome == SERVED:
                self.served += int(value)
            elif outcome in {REFUSED, FAILED}:
                (self.refused if outcome == REFUSED else self.failed)[kind] += int(value)
            elif outcome in _PLACES:
                self.latencies[_PLACES[outcome]] += int(value)

    @property
    def error_share(self) -> float | None:
        """Failed calls of those that were served or failed, 0 to 1; None when there was none."""
        failed = self.failed.total()
        return failed / (self.served + failed) if self.served + failed else None

    def quantile(self, share: float) -> float | None:
        """The seconds within which this share of served calls was answered; None when there was none.

        As near as the buckets tell: within one, calls are taken to be spread evenly; beyond the last, it is its start.
        """
        rank, passed = share * self.latencies.total(), 0
        for place, end in enumerate(LATENCIES):
            here = self.latencies[place]
            if here and passed + here >= rank:
                start = LATENCIES[place - 1] if place else 0.0
                return start + (end - start) * max(0.0, rank - passed) / here
            passed += here
        return float(LATENCIES[-1]) if self.latencies else None


_PLACES = {name: place for place, name in enumerate(BUCKETS)}


@dataclass
class Told:
    """What was counted: all together, by day (ISO), by hour of the day when asked, and who was refused most."""

    total: Tally = field(default_factory=Tally)
    by_day: dict[str, Tally] = field(default_factory=dict)
    by_hour: dict[int, Counter[str]] = field(default_factory=dict)
    most_refused: Counter[Pair] = field(default_factory=Counter)


def read(tallies: Collection[tuple[str, str]], hours: bool = False) -> Told:
    """Add up the tallies given as (day, key). Raises StoreUnavailable."""
    with answered():
        pipeline = store(PAGE_SECONDS).pipeline(transaction=False)
        for _, key in tallies:
            pipeline.hgetall(key)
            pipeline.zrevrange(keys.tally_refused(key), 0, MOST_PAIRS - 1, withscores=True)
            if hours:
                pipeline.hgetall(keys.tally_hours(key))
        replies = iter(pipeline.execute())
    told = Told()
    for day, _ in tallies:
        raw = next(replies)
        told.total.add(raw)
        told.by_day.setdefault(day, Tally()).add(raw)
        _add_refused(told, next(replies))
        if hours:
            _add_hours(told, next(replies))
    return told


def _add_refused(told: Told, scored: list[tuple[bytes, float]]) -> None:
    for name, score in scored:
        tenant, token, kind = name.decode().split(":", 2)
        told.most_refused[Pair(int(tenant), int(token), kind)] += int(score)


def _add_hours(told: Told, raw: dict[Any, Any]) -> None:
    for name, value in raw.items():
        hour, _, outcome = name.decode().partition(":")
        told.by_hour.setdefault(int(hour), Counter())[outcome] += int(value)

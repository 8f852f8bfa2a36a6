"""What pages tell of calls beside the books: how many were refused and why, how many failed, how long they took.

Each web process counts in memory and hands its counts to the admission store once a second, from a task of its own: no
request waits for that, and none is decided or invoiced by it. A process that is killed loses a second of it; a store
that is away or full gets less of it. Never a prompt, a token or a secret is in it.
"""

import asyncio
import datetime as dt
import logging
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from gateway.overload import StoreLoad
from tokens.admission import keys, scripts
from tokens.admission.connection import StoreConnection, StoreError, StoreUnavailable
from tokens.admission.principal import Principal
from tokens.admission.scripts import Script

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
DAY_SECONDS = 86_400
KEPT_DAYS = 40
HOURS_KEPT_DAYS = 3
DECISIONS_KEPT = 200_000  # about 80 MB of the store
MOST_DAYS = 5_000  # tenants' days that are counted between two flushes; a tenant beyond is counted with its zone only
MOST_REFUSED = 1_000  # (token, type) pairs of which a day keeps the count
MOST_DECISIONS = 2_000  # kept between two flushes
MOST_OF_A_TOKEN = 200  # of them; the others are counted, and who asks about one is told so
PIECE = 400  # keys or decisions handed over by one script, which holds up the store for about a millisecond

# Upper ends of the buckets in seconds; the last one is open. A name is the field of the tally.
LATENCIES = (0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 35, 60, 120)
BUCKETS = [f"t{place}" for place in range(len(LATENCIES) + 1)]
Name = TypeVar("Name")
SERVED, REFUSED, FAILED = "served", "refused", "failed"


class LimitSaid(msgspec.Struct, frozen=True):
    """The limit that refused a call, as it stood. `reserved`: by calls under way; `frees`: in seconds, -1 for never."""

    scope: str
    metric: str
    period: str
    amount: int
    burst: int
    remaining: int
    reserved: int
    frees: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a call with a known token wasn't admitted. `at` is in epoch seconds.

    `type` is the error's, empty when an earlier call's answer was given again; `verdict` the admission's own word,
    empty when the call was refused before it; `first` the request id of the call that has the same idempotency key.
    `address` and `origin` are kept when they are why.
    """

    request_id: str
    at: float
    tenant: int
    member: int
    token: int
    status: int
    type: str
    message: str = ""
    verdict: str = ""
    first: str = ""
    model: str = ""
    images: int = 0
    tokens: int = 0  # the upper bound that was asked for
    address: str = ""
    origin: str = ""
    limit: LimitSaid | None = None


@dataclass(slots=True)
class _Day:
    """Counts of a tenant's day, or of a zone's, between two flushes. Each is by what its key in the store has."""

    outcomes: dict[str, int] = field(default_factory=dict)
    hours: dict[tuple[int, str], int] = field(default_factory=dict)
    refused: dict[tuple[int, int, str], int] = field(default_factory=dict)

    def count(self, name: str, hour: tuple[int, str], bucket: str) -> None:
        """One call."""
        outcomes, hours = self.outcomes, self.hours
        outcomes[name] = outcomes.get(name, 0) + 1
        hours[hour] = hours.get(hour, 0) + 1
        if bucket:
            outcomes[bucket] = outcomes.get(bucket, 0) + 1

    def add(self, other: "_Day") -> None:
        """All that another one has counted."""
        _add(self.outcomes, other.outcomes)
        _add(self.hours, other.hours)
        _add(self.refused, other.refused)


def _add(mine: dict[Name, int], theirs: dict[Name, int]) -> None:
    for name, count in theirs.items():
        mine[name] = mine.get(name, 0) + count


class Telemetry:
    """What one process's event loop has counted and not yet handed over."""

    def __init__(self, store: StoreConnection, load: StoreLoad) -> None:
        self._store, self._load = store, load
        self._failing = False
        self._forget()

    def _forget(self) -> None:
        self._tenants: dict[tuple[int, int], tuple[str, int, str, _Day]] = {}  # (id, day's start): zone, shard, day
        self._zones: defaultdict[tuple[str, str], _Day] = defaultdict(_Day)
        self._refusals: list[Refusal] = []
        self._by_token: Counter[int] = Counter()

    def answered(self, principal: Principal | None, at: float, status: int, kind: str, seconds: float = -1.0) -> None:
        """Count a call that came in `at` (epoch seconds). `kind` is the error's type, "" for a success.

        `seconds` is how long a success took; less than 0 leaves it out. Costs about 2 µs.
        """
        outcome = SERVED if not kind else FAILED if status >= 500 else REFUSED
        name = f"{outcome}:{kind}" if kind else SERVED
        bucket = BUCKETS[bisect_left(LATENCIES, seconds)] if seconds >= 0 and not kind else ""
        if principal is None:
            moment = dt.datetime.fromtimestamp(at, dt.UTC)
            self._zones[keys.NOBODY, moment.date().isoformat()].count(name, (moment.hour, outcome), bucket)
            return
        start = principal.plan(at).periods.day_start
        known = self._tenants.get((principal.tenant, start))
        day = known[3] if known is not None else self._begin(principal, at)
        day.count(name, (int(at - start) // 3600, outcome), bucket)
        if outcome is REFUSED and len(day.refused) < MOST_REFUSED:
            pair = (principal.tenant, principal.token, kind)
            day.refused[pair] = day.refused.get(pair, 0) + 1

    def _begin(self, principal: Principal, at: float) -> _Day:
        """A tenant's first call since the last flush: where its calls of this day are counted."""
        zone, periods = principal.calendar.at(at).key, principal.plan(at).periods
        if len(self._tenants) >= MOST_DAYS:
            return self._zones[zone, periods.day]
        day = _Day()
        self._tenants[principal.tenant, periods.day_start] = (zone, principal.shard, periods.day, day)
        return day

    def refused(self, refusal: Refusal) -> None:
        """Keep a decision, as far as there is room."""
        if len(self._refusals) < MOST_DECISIONS and self._by_token[refusal.token] < MOST_OF_A_TOKEN:
            self._by_token[refusal.token] += 1
            self._refusals.append(refusal)

    async def flush_forever(self) -> None:
        """Hand over once a second, whatever happens."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.flush()
            except Exception:  # otherwise one surprise would end it for good
                logger.exception("telemetry can't be handed over")

    async def flush(self) -> None:
        """Hand over what was counted; what the store doesn't take is lost. Without a store it waits, bounded."""
        if not self._store.ready or not (self._tenants or self._zones or self._refusals):
            return
        if self._load.problem:  # counts are small; decisions are not what a store should be filled with
            self._refusals.clear()
        calls = list(self._calls())
        self._forget()
        results = await asyncio.gather(*[self._run(*call) for call in calls], return_exceptions=True)
        failure = next((result for result in results if isinstance(result, BaseException)), None)
        if failure is not None and not isinstance(failure, StoreUnavailable | StoreError):
            raise failure
        if failure is not None and not self._failing:
            logger.warning("telemetry was lost: %s", failure)
        self._failing = failure is not None

    def _calls(self) -> Iterator[tuple[Script, list[str], list[Any]]]:
        """The script calls that hand everything over; the keys of each are in one slot."""
        by_shard: defaultdict[int, list[tuple[str, list[Any]]]] = defaultdict(list)
        for (tenant, _), (zone, shard, name, day) in self._tenants.items():
            by_shard[shard] += _work(day, keys.tally(shard, tenant, name))
            self._zones[zone, name].add(day)
        groups = list(by_shard.values())
        groups += [list(_work(day, keys.zone_tally(zone, name))) for (zone, name), day in self._zones.items()]
        for group in groups:
            for start in range(0, len(group), PIECE):
                piece = group[start : start + PIECE]
                yield scripts.tally(), [key for key, _ in piece], [msgspec.msgpack.encode([work for _, work in piece])]
        for start in range(0, len(self._refusals), PIECE):
            entries = [msgspec.json.encode(refusal) for refusal in self._refusals[start : start + PIECE]]
            yield scripts.remember(), [keys.DECISIONS], [DECISIONS_KEPT, KEPT_DAYS * DAY_SECONDS, *entries]

    async def _run(self, script: Script, names: list[str], arguments: list[Any]) -> None:
        try:
            await self._store.setup_call("EVALSHA", script.sha, len(names), *names, *arguments)
        except StoreError as exc:
            if exc.code != "NOSCRIPT":
                raise
            await self._store.setup_call("EVAL", script.text, len(names), *names, *arguments)


def _work(day: _Day, key: str) -> Iterator[tuple[str, list[Any]]]:
    """What tally.lua does with each key of a day."""
    hours = {f"{hour}:{outcome}": count for (hour, outcome), count in day.hours.items()}
    refused = {f"{tenant}:{token}:{kind}": count for (tenant, token, kind), count in day.refused.items()}
    for name, days, most, counts in (
        (key, KEPT_DAYS, 0, day.outcomes),
        (keys.tally_hours(key), HOURS_KEPT_DAYS, 0, hours),
        (keys.tally_refused(key), KEPT_DAYS, MOST_REFUSED, refused),
    ):
        if counts:
            yield name, [days * DAY_SECONDS, most, *(part for pair in counts.items() for part in pair)]

"""What a state machine over the scripts acts in: store, oracle, calendar, database, and a process that remembers.

Every verb does one thing to the store and to the oracle, and compares what each of them says of it.
"""

import time
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import redis
from django.conf import settings
from hypothesis.stateful import RuleBasedStateMachine

from config.redis import parse_address
from tests.oracle import Oracle
from tests.scriptbench import Bench, limit
from tests.storeimage import Amounts, Asked, Image, Kept, Record
from tokens.admission import admission, keys, principal, scripts
from tokens.admission.admission import Claim
from tokens.admission.periods import OpenPeriods
from tokens.admission.principal import ScopedLimit

LIMITS = [
    limit("token", "images:16/day", 1),
    limit("token", "requests:25/total", 2),
    limit("member", "tokens:9000/month", 3),
    limit("tenant", "images:24/day", 4),
    limit("tenant", "concurrent:5", 5),
    limit("tenant", "requests:700/second", 6, burst=6),
    limit("member", "tokens:70000/minute", 7, burst=3000),
    limit("token", "images:7000/hour", 8, burst=7),
]
LONG = 3600.0
RECORDS = ("member:7", "tenant:3")
ORDER = '{"status":"suspended"}'
REVOKED = 2  # the place of the token that was last revoked, behind the two that call


@dataclass
class Calendar:
    """Days and months of the test's own: each lasts until `end_soon` says otherwise, then the next begins."""

    day: int = 1
    month: int = 1

    def __post_init__(self) -> None:
        now = time.time()
        self.starts, self.ends = {"day": now, "month": now}, {"day": now + LONG, "month": now + LONG}

    def end_soon(self, which: str, seconds: float) -> None:
        self.at(now := time.time())
        self.ends[which] = now + seconds

    def at(self, now: float) -> OpenPeriods:
        """The day and month at `now`, turning those that are over."""
        for which in ("day", "month"):
            if now >= self.ends[which]:
                setattr(self, which, getattr(self, which) + 1)
                self.starts[which], self.ends[which] = self.ends[which], now + LONG
        return self._periods()

    def _periods(self) -> OpenPeriods:
        starts, ends = cast("dict[str, int]", self.starts), cast("dict[str, int]", self.ends)  # to the microsecond here
        return OpenPeriods(str(self.day), starts["day"], ends["day"], str(self.month), starts["month"], ends["month"])


@dataclass(frozen=True)
class Held:
    """A call that was admitted, with the claim it was admitted for."""

    claim: Claim
    asked: Asked


class World(RuleBasedStateMachine):
    """A tenant 3 with member 7 and two tokens; `run` and `name` are those of the server's generation."""

    def __init__(self) -> None:
        super().__init__()
        self.client = redis.Redis.from_url(parse_address(settings.REDIS_URL).url(11))
        self.bench = Bench(self.client, list(LIMITS))
        self.client.flushdb()
        self.oracle = Oracle()
        self.calendar = Calendar()
        self.tokens = [11, 12]
        self.revoked = 0
        self.database = {name: Record() for name in ("token:11", "token:12", *RECORDS)}
        self.name, self.run = 0, 1  # of the generation and of the server
        self.generation = ""  # as the process knows it
        self.newest: Held | None = None  # of the calls that were admitted
        self.memory: dict[int, tuple[tuple[int, ...], tuple[ScopedLimit, ...]]] = {}
        self.copy: tuple[Any, Image] | None = None
        self.patience = 0

    def teardown(self) -> None:
        self.oracle.check_rates(self.bench.limits)
        self.client.close()

    def lose_patience(self) -> None:
        """Called before each admission."""

    def _asked(self, slot: int, claim: Claim, periods: OpenPeriods) -> Asked:
        token = int(self._token(slot).partition(":")[2])
        versions, limits = self.memory.get(token) or self._learn(token)
        costs = (1, claim.images, claim.tokens)
        given = claim.idempotency, claim.fingerprint
        return Asked(claim.request_id, token, costs, claim.lease, self.generation, versions, limits, periods, *given)

    def _admit(self, slot: int, claim: Claim) -> Held | None:
        """None: refused. It counts as a result all the same: which rules may come next must not depend on the time."""
        self.lose_patience()
        for _ in range(3):
            asked = self._asked(slot, claim, self.calendar.at(time.time()))
            status, at = self._decide(asked, claim)
            if status == "ADMITTED":
                periods = asked.periods
                assert periods.day_start * 1_000_000 <= at < periods.day_end * 1_000_000
                assert periods.month_start * 1_000_000 <= at < periods.month_end * 1_000_000
                self.oracle.admit(asked, at)
                self.newest = Held(claim, asked)
                return self.newest
            if status != "PERIOD":
                return None
        raise AssertionError("three periods in a row were over before the store was asked")

    def _decide(self, asked: Asked, claim: Claim) -> tuple[str, int]:
        """Ask the script and compare with the verdict; the status, and when the call was admitted (µs)."""
        before, now = self._rates(), time.time()
        expected = self.oracle.verdict(asked, now)
        reply = self._send(asked, claim)
        status = reply[0].decode()
        if status == "ADMITTED":
            assert expected == "ADMITTED"
            return status, int(reply[1])
        after = self._rates()
        assert after.items() <= before.items()  # a rate that is whole again is gone
        if status == "PERIOD" and expected not in {"NOT_READY", "GENERATION", "INVALID", "STALE", "PERIOD"}:
            assert time.time() >= min(asked.periods.day_end, asked.periods.month_end)  # it turned on the way
        elif status == "REFUSED" and expected in {"ADMITTED", "BACKLOG"}:
            scoped = asked.limits[reply[1] - 1]
            assert scoped.limit.is_rate
            assert self.oracle.may_refuse(scoped, asked, now)
            assert 0 < int(reply[2]) <= 61_000_000
        else:
            assert status == expected
        self._heed(status, asked, reply)
        return status, 0

    def _send(self, asked: Asked, claim: Claim) -> list[Any]:
        with mock.patch.object(principal, "open_periods", lambda _calendar, _now: asked.periods):
            caller = self.bench.principal(asked.token, asked.versions)
            caller.limits = asked.limits
            plan = caller.plan(time.time())
        arguments = admission.command(caller, plan, claim, asked.generation, asked.backlog)
        count = arguments[0]
        return cast("list[Any]", scripts.admit().run(self.client, arguments[1 : count + 1], arguments[count + 1 :]))

    def _heed(self, status: str, asked: Asked, reply: list[Any]) -> None:
        """What a process does with a refusal."""
        image = self.oracle.image
        if status == "STALE":
            self._learn(asked.token)
        elif status == "GENERATION" and image.generation.endswith(f":{self.run}"):
            self.generation = reply[1].decode()
        elif status in {"REPLAY", "IN_FLIGHT"}:
            known = image.remembered[asked.token, asked.key]
            assert [known.request_id.encode(), *([known.answer] if known.answer else [])] == reply[1:]

    def _learn(self, token: int) -> tuple[tuple[int, ...], tuple[ScopedLimit, ...]]:
        """Read the records, as a process does that was told STALE."""
        records = [self.oracle.image.records.get(name) for name in (f"token:{token}", *RECORDS)]
        versions = tuple(record.version if record else 0 for record in records)
        self.memory[token] = versions, self.bench.principal(token).limits
        return self.memory[token]

    def _rates(self) -> dict[bytes, bytes | None]:
        names = [keys.rate(3, scope, *rate) for scope, *rate in self.oracle.latest]
        values = cast("list[Any]", self.client.mget(names)) if names else []
        rates = {name.encode(): value for name, value in zip(names, values, strict=True) if value is not None}
        for value in rates.values():  # a number that went through Lua's own formatting would read 1.8e+15
            assert value.isdigit()
            assert abs(int(value) / 1_000_000 - time.time()) < 60
        return rates

    def kept(self, held: Held | None) -> Kept | None:
        """A call as the store has it; for one that was refused, the newest that was not."""
        held = held or self.newest
        return self.oracle.image.calls.get(held.asked.request_id) if held else None

    def costs(self, held: Held | None) -> Amounts:
        """What a call was admitted for."""
        held = held or self.newest
        return held.asked.costs if held else (0, 0, 0)

    def _end(
        self,
        held: Held | None,
        kind: str,
        amounts: Amounts,
        answer: bytes = b"",
        overdue: bool = False,
        decided: bool = False,
    ) -> None:
        held = held or self.newest
        if held is None:
            return
        counts = self.oracle.counts(held.asked)
        answer = answer if held.asked.key else b""
        self.oracle.run = self.run
        expected = self.oracle.end(held.asked, kind, amounts, answer, overdue, decided, time.time())
        figures: dict[str, Any] = {"images": amounts[1], "tokens": amounts[2], "answer": answer, "decided": decided}
        figures["run_id"] = str(self.run)
        try:
            reply = self.bench.end(held.claim, kind, overdue, bool(amounts[0]), **figures)
        except redis.ResponseError as exc:
            raise AssertionError(f"the script broke: {exc}") from exc
        assert [part.decode() if isinstance(part, bytes) else str(part) for part in reply[: len(expected)]] == expected
        if expected[0] == "DONE" and counts:
            self.oracle.pay(held.asked, kind, amounts)

    def _token(self, slot: int) -> str:
        return f"token:{self.revoked if slot == REVOKED and self.revoked else self.tokens[slot % REVOKED]}"

    def _publish(self, name: str) -> None:
        """The database's next version of a record goes to the store."""
        known, stored = self.database.setdefault(name, Record(version=0)), self.oracle.image.records.get(name)
        known.version = max(known.version, stored.version if stored else 0) + 1
        self._put(name)

    def _put(self, name: str) -> None:
        known = self.database[name]
        said = name, known.status, known.version, known.ended
        assert self.bench.put(*said) == self.oracle.put(*said)

    def _revoke(self, name: str, status: str, order: str) -> None:
        assert self.bench.revoke(name, status, order) == self.oracle.revoke(name, status, bool(order))

    def _learnt(self) -> None:
        assert self.bench.forget("tenant:3", ORDER) == ("tenant:3" in self.oracle.image.orders)
        self.oracle.image.orders.discard("tenant:3")

    def _replaced(self, image: Image) -> None:
        """Another server than before: who connects to it knows that it must be confirmed."""
        self.oracle.image = image
        self.run += 1
        self.generation = f"{self.name}:{self.run}"

"""The admission scripts beside a plain Python oracle that knows the rules and none of the code."""

import hashlib
import itertools
import time
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import redis
from django.conf import settings as gateway_settings
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from config.redis import parse_address
from tests.scriptbench import Bench, limit
from tokens.admission import keys, scripts
from tokens.admission.admission import Claim
from tokens.admission.principal import ScopedLimit

LIMITS = [
    limit("token", "images:12/day", 1),
    limit("token", "requests:25/total", 2),
    limit("member", "tokens:9000/month", 3),
    limit("tenant", "images:20/day", 4),
    limit("tenant", "concurrent:4", 5),
    limit("tenant", "requests:700/second", 6, burst=6),
    limit("member", "tokens:70000/minute", 7, burst=3000),
    limit("token", "images:7000/hour", 8, burst=9),
]
METRICS = {"requests": 0, "images": 1, "tokens": 2}
SECONDS = {"second": 1, "minute": 60, "hour": 3600}
OVERDUE = 0.001


@dataclass
class Held:
    """A call as the oracle knows it."""

    claim: Claim
    token: int
    costs: tuple[int, int, int]
    lease_end: float
    admitted_at: int  # µs
    state: str = "RESERVED"
    scopes: tuple[str, ...] = ()


@dataclass
class Oracle:
    """Counts by scope, without periods: the run is over before a day is (and is repeated if midnight comes)."""

    used: dict[str, list[int]] = field(default_factory=dict)
    reserved: dict[str, list[int]] = field(default_factory=dict)
    taken: dict[int, list[tuple[int, int, str]]] = field(default_factory=dict)  # limit -> time µs, cost, request id
    calls: list[Held] = field(default_factory=list)

    def scope(self, scoped: ScopedLimit, token: int) -> str:
        return {"token": f"token:{token}", "member": "member:7", "tenant": "tenant:3"}[scoped.scope]

    def count(self, book: dict[str, list[int]], scope: str) -> list[int]:
        return book.setdefault(scope, [0, 0, 0])

    def verdict(self, limits: tuple[ScopedLimit, ...], token: int, costs: tuple[int, int, int]) -> str:
        """EXCEEDS, REFUSED, or MAYBE, which leaves the rates to decide."""
        verdict = "MAYBE"
        for scoped in limits:
            scope, one = self.scope(scoped, token), scoped.limit
            if one.metric == "concurrent":
                now = time.time()
                open_calls = [call for call in self.calls if call.state == "RESERVED" and call.lease_end > now]
                if len(open_calls) + 1 > one.amount:
                    verdict = "REFUSED"
                continue
            cost = costs[METRICS[one.metric]]
            most = (one.burst or one.amount) if one.is_rate else one.amount
            if cost > most:
                return "EXCEEDS"
            metric = METRICS[one.metric]
            if not one.is_rate:
                taken = self.count(self.used, scope)[metric] + self.count(self.reserved, scope)[metric]
                if taken + cost > one.amount:
                    verdict = "REFUSED"
        return verdict

    def move(self, call: Held, book: dict[str, list[int]], sign: int, amounts: tuple[int, int, int]) -> None:
        for scope in (f"token:{call.token}", "member:7", "tenant:3"):
            count = self.count(book, scope)
            for metric in range(3):
                count[metric] += sign * amounts[metric]

    def check_rates(self, limits: list[ScopedLimit]) -> None:
        """In any interval d, what was admitted (as it was settled) <= burst + d x amount / period."""
        for scoped in limits:
            one = scoped.limit
            for events in (self.taken.get(key, []) for key in self.taken if key // 100 == one.id):
                for first, last in itertools.combinations_with_replacement(range(len(events)), 2):
                    passed = (events[last][0] - events[first][0]) / 1_000_000
                    cost = sum(event[1] for event in events[first : last + 1])
                    assert cost <= (one.burst or one.amount) + passed * one.amount / SECONDS[one.period] + 1e-6


class Scripts(RuleBasedStateMachine):
    """Calls of two tokens of one member begin and end in every way and order."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.client = redis.Redis.from_url(parse_address(gateway_settings.REDIS_URL).url(11))
        self.bench = Bench(self.client, LIMITS)
        self.oracle = Oracle()
        self.sequence = 0

    def teardown(self) -> None:
        self.oracle.check_rates([scoped for scoped in LIMITS if scoped.limit.is_rate])
        self.client.close()

    @rule(
        target=calls,
        token=st.sampled_from([11, 12]),
        images=st.integers(1, 4),
        tokens=st.integers(1, 1100) | st.just(3001),
        overdue=st.booleans(),
    )
    def admit(self, token: int, images: int, tokens: int, overdue: bool) -> Held | None:
        claim = self.bench.claim(images, tokens, OVERDUE if overdue else 60)
        limits = self.bench.principal(token).limits
        expected = self.oracle.verdict(limits, token, (1, images, tokens))
        before = self.bench.contents()
        reply = self.bench.admit_raw(claim, token)
        status = reply[0].decode()
        if status != "ADMITTED":
            self.check_refusal(expected, status, limits, reply, token)
            after = self.bench.contents()
            expired = before.keys() - after.keys()  # a rate that is whole again
            assert after == {name: value for name, value in before.items() if name not in expired}
            assert all(b":rate:" in name for name in expired)
            return None
        assert expected == "MAYBE"
        held = Held(claim, token, (1, images, tokens), time.time() + claim.lease, int(reply[1]))
        self.oracle.calls.append(held)
        self.oracle.move(held, self.oracle.reserved, 1, held.costs)
        for scoped in limits:
            if scoped.limit.is_rate:
                cost = held.costs[METRICS[scoped.limit.metric]]
                key = scoped.limit.id * 100 + (token if scoped.scope == "token" else 0)
                self.oracle.taken.setdefault(key, []).append((held.admitted_at, cost, claim.request_id))
        if overdue:
            time.sleep(OVERDUE * 2)
        return held

    def check_refusal(
        self, expected: str, status: str, limits: tuple[ScopedLimit, ...], reply: list[Any], token: int
    ) -> None:
        if expected != "MAYBE":
            assert status == expected
            return
        assert status == "REFUSED"
        assert limits[reply[1] - 1].limit.is_rate
        assert 0 < int(reply[2]) <= 61_000_000

    def pay(self, held: Held, kind: str, amounts: tuple[int, int, int]) -> None:
        """Correct the costs of rates to what a call was settled at: images and requests stay, unless it was void."""
        for key, events in self.oracle.taken.items():
            metric = METRICS[next(one.limit.metric for one in LIMITS if one.limit.id == key // 100)]
            for number, (at, cost, request_id) in enumerate(events):
                if request_id == held.claim.request_id:
                    kept = cost if metric == 1 and kind == "exact" else amounts[metric]
                    events[number] = (at, min(kept, cost), request_id)

    @rule(held=calls, share=st.integers(0, 100), fewer=st.booleans())
    def settle(self, held: Held | None, share: int, fewer: bool) -> None:
        if held is None:
            return
        amounts = (1, max(held.costs[1] - fewer, 1), held.costs[2] * share // 100)
        reply = self.bench.end(held.claim, "exact", images=amounts[1], tokens=amounts[2])
        self.end(held, "SETTLED", amounts, reply)

    @rule(held=calls, keep=st.booleans())
    def void(self, held: Held | None, keep: bool) -> None:
        if held is not None:
            self.end(held, "VOIDED", (int(keep), 0, 0), self.bench.end(held.claim, "void", keep=keep))

    @rule(held=calls)
    def expire(self, held: Held | None) -> None:
        if held is None:
            return
        reply = self.bench.end(held.claim, "unresolved", overdue=True)
        if held.state == "RESERVED" and held.lease_end > time.time():
            assert reply[0] == b"EARLY"
        else:
            self.end(held, "EXPIRED", held.costs, reply)

    @rule(held=consumes(calls))
    def forget(self, held: Held | None) -> None:
        """So that new calls are more often chosen."""

    def end(self, held: Held, state: str, amounts: tuple[int, int, int], reply: list[Any]) -> None:
        if held.state == "RESERVED":
            self.oracle.move(held, self.oracle.reserved, -1, held.costs)
            self.oracle.move(held, self.oracle.used, 1, amounts)
        elif held.state == "EXPIRED" and state != "EXPIRED":
            self.oracle.move(held, self.oracle.used, -1, held.costs)
            self.oracle.move(held, self.oracle.used, 1, amounts)
        else:
            assert reply == [b"REPEAT", held.state.encode()]
            return
        held.state = state
        self.sequence += 1
        assert reply == [b"DONE", str(self.sequence).encode()]
        self.pay(held, "exact" if state == "SETTLED" else "other", amounts)

    @invariant()
    def counters_agree(self) -> None:
        plan = self.bench.principal().plan(time.time())
        scopes = {"token:11": 3, "member:7": 5, "tenant:3": 7}
        for scope, place in scopes.items():
            expected = [*self.oracle.count(self.oracle.used, scope), *self.oracle.count(self.oracle.reserved, scope)]
            for name in plan.keys[place : place + 2]:  # day and month
                assert self.bench.use(name) == expected
        assert self.bench.use(keys.use(3, "token:11", "total:2")) == [
            *self.oracle.count(self.oracle.used, "token:11"),
            *self.oracle.count(self.oracle.reserved, "token:11"),
        ]
        open_calls = {call.claim.request_id for call in self.oracle.calls if call.state == "RESERVED"}
        for name in (keys.deadlines(3), keys.inflight(3, "tenant:3")):
            listed = cast("list[bytes]", self.client.zrange(name, 0, -1))
            assert {member.decode() for member in listed} == open_calls

    @invariant()
    def events_are_gapless(self) -> None:
        sequences = [int(event[b"sequence"]) for event in self.bench.events()]
        assert sequences == list(range(1, self.sequence + 1))

    @invariant()
    def times_are_whole_microseconds(self) -> None:
        """A number that went through Lua's own formatting would read 1.8e+15."""
        for name in self.client.scan_iter("*:rate:*"):
            raw = self.client.get(name)
            if raw is not None:
                assert raw.isdigit()
                assert abs(int(raw) / 1_000_000 - time.time()) < 10


BOUNDS = settings(
    stateful_step_count=30, deadline=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)
)
TestScripts = Scripts.TestCase
TestScripts.settings = settings(BOUNDS, max_examples=60)

MUTANTS = {
    "too many": ("admit", "cost > remaining", "cost > remaining + 3"),
    "rounded": ("admit", "string.format('%.0f', value)", "tostring(value)"),
    "not released": ("finish", "figures[metric + 3] - estimate[metric]", "figures[metric + 3]"),
    "ended twice": ("finish", "state ~= 'RESERVED' and not late", "false"),
    "expired early": ("finish", "ARGV[10] == '1' and", "false and"),
    "free rates": ("admit", "+ cost * limit.unit\n    redis.call('SET'", "\n    redis.call('SET'"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_control_the_oracle_catches_a_wrong_script(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, right, wrong = MUTANTS[name]
    text = getattr(scripts, script)().text
    assert right in text
    text = text.replace(right, wrong)
    mutant = scripts.Script(script, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
    monkeypatch.setattr(scripts, script, lambda: mutant)
    with pytest.raises((AssertionError, ValueError, redis.ResponseError)):
        run_state_machine_as_test(
            Scripts, settings=settings(BOUNDS, max_examples=200, database=None, phases=[Phase.generate])
        )

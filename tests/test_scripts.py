"""The admission scripts, each rule on the real store. tests/test_scripts_oracle.py checks them against an oracle."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import redis
from django.conf import settings

from config.redis import parse_address, store
from tests.ownvalkey import OwnValkey, own_valkey
from tests.scriptbench import GENERATION, USE_FIELDS, Bench, Direct, limit
from tokens.admission import keys
from tokens.admission.admission import standing
from tokens.admission.connection import StoreConnection
from tokens.admission.principal import Principal

WEEK = 604_800


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    with redis.Redis.from_url(parse_address(settings.REDIS_URL).url(10)) as made:
        yield made


@pytest.fixture
def bench(client: redis.Redis) -> Bench:
    return Bench(client)


def record(bench: Bench, kind: str, **fields: Any) -> None:
    names = {"token": keys.token(3, 11), "member": keys.member(3, 7), "tenant": keys.tenant(3, 3), "meta": keys.meta(3)}
    bench.client.hset(names[kind], mapping=cast("dict[Any, Any]", fields))


def count_from_now(bench: Bench) -> None:
    """As after a loss of counters whose period is still open."""
    record(bench, "meta", counted_since=2**40)
    bench.client.delete(*bench.principal().plan(time.time()).keys)


CHANGES: dict[str, tuple[str, Callable[[Bench], Any]]] = {
    "token is newer": ("STALE", lambda bench: record(bench, "token", version=2)),
    "member is newer": ("STALE", lambda bench: record(bench, "member", version=2)),
    "tenant is newer": ("STALE", lambda bench: record(bench, "tenant", version=2)),
    "token revoked": ("INVALID", lambda bench: record(bench, "token", status="revoked", version=2)),
    "member suspended": ("INVALID", lambda bench: record(bench, "member", status="suspended", version=2)),
    "tenant suspended": ("INVALID", lambda bench: record(bench, "tenant", status="suspended", version=2)),
    "token expired": ("INVALID", lambda bench: record(bench, "token", expires=int(time.time()))),
    "secret over": ("INVALID", lambda bench: record(bench, "token", **{"secret:110": int(time.time())})),
    "secret ended": ("INVALID", lambda bench: bench.client.hdel(keys.token(3, 11), "secret:110")),
    "token of another tenant": ("INVALID", lambda bench: record(bench, "token", tenant=4)),
    "token of another member": ("INVALID", lambda bench: record(bench, "token", member=8)),
    "member of another tenant": ("INVALID", lambda bench: record(bench, "member", tenant=4)),
    "no token record": ("NOT_READY", lambda bench: bench.client.delete(keys.token(3, 11))),
    "no member record": ("NOT_READY", lambda bench: bench.client.delete(keys.member(3, 7))),
    "no tenant record": ("NOT_READY", lambda bench: bench.client.delete(keys.tenant(3, 3))),
    "store not confirmed": ("NOT_READY", lambda bench: bench.client.hdel(keys.meta(3), "generation")),
    "store replaced": ("GENERATION", lambda bench: record(bench, "meta", generation="another:1")),
    "counters younger than the day": ("NOT_READY", count_from_now),
    "stopped": ("STOPPED", lambda bench: record(bench, "meta", stopped=1)),
    "backlog": ("BACKLOG", lambda bench: setattr(bench, "backlog", 0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_admits_nobody_says_why_and_writes_nothing(name: str, bench: Bench) -> None:
    bench.limits = [limit("tenant", "images:20/day"), limit("token", "requests:60/minute")]
    assert bench.admit(bench.claim()).status == "ADMITTED"
    status, change = CHANGES[name]
    change(bench)
    before = bench.contents()
    assert bench.admit(bench.claim()).status == status
    assert bench.contents() == before


def test_a_grace_and_an_expiry_to_come_admit(bench: Bench) -> None:
    record(bench, "token", expires=int(time.time()) + 5, **{"secret:110": int(time.time()) + 5})
    assert bench.admit(bench.claim()).status == "ADMITTED"


def test_a_plan_of_another_day_is_refused_by_the_stores_clock(bench: Bench) -> None:
    for days in (-1, 1):
        assert bench.admit(bench.claim(), now=time.time() + days * 86_400).status == "PERIOD"


def test_a_known_request_id_is_not_admitted_again(bench: Bench) -> None:
    claim = bench.claim()
    assert bench.admit(claim).status == "ADMITTED"
    assert bench.admit(claim).status == "REPEATED"
    bench.end(claim, "void")
    assert bench.admit(claim).status == "REPEATED"
    early = bench.claim()
    bench.end(early, "void")  # of a call that may have been admitted, and comes only now
    assert bench.admit(early).status == "REPEATED"


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("images:4/day", "token"),
        ("tokens:399/month", "member"),
        ("requests:1/total", "tenant"),
        ("concurrent:1", "token"),
    ],
)
def test_all_limits_are_taken_or_none(text: str, scope: str, bench: Bench) -> None:
    bench.limits = [limit(scope, text), limit("tenant", "requests:100/minute", 2), limit("tenant", "images:50/day", 3)]
    assert bench.admit(bench.claim(images=3, tokens=300)).status == "ADMITTED"
    before = bench.contents()
    decision = bench.admit(bench.claim(images=3, tokens=300))
    assert (decision.status, decision.limit) == ("REFUSED", bench.limits[0])
    assert bench.contents() == before


def test_what_no_waiting_lets_pass_is_told_apart(bench: Bench) -> None:
    bench.limits = [limit("token", "tokens:100/minute", burst=10), limit("tenant", "images:3/total", 2)]
    assert bench.admit(bench.claim(tokens=11)).limit == bench.limits[0]
    decision = bench.admit(bench.claim(images=4, tokens=10))
    assert (decision.status, decision.limit) == ("EXCEEDS", bench.limits[1])


def test_the_limit_that_frees_last_is_named(bench: Bench) -> None:
    bench.limits = [limit("token", "requests:1/minute"), limit("tenant", "images:1/day", 2)]
    assert bench.admit(bench.claim()).status == "ADMITTED"
    decision = bench.admit(bench.claim())
    assert decision.limit == bench.limits[1]
    plan = bench.principal().plan(time.time())
    assert abs(decision.retry_after - (plan.periods.day_end - time.time())) < 2
    bench.limits = [limit("token", "requests:1/total", 3), *bench.limits]
    bench.client.hset(keys.use(3, "token:11", "total:3"), mapping=dict.fromkeys(USE_FIELDS, 1))
    assert bench.admit(bench.claim()).retry_after == 0  # never


def test_a_lease_that_ended_frees_its_place_and_holds_its_quota(bench: Bench) -> None:
    bench.limits = [limit("tenant", "concurrent:1"), limit("tenant", "images:2/day", 2)]
    assert bench.admit(bench.claim(lease=0.02)).status == "ADMITTED"
    assert bench.admit(bench.claim()).limit == bench.limits[0]
    time.sleep(0.03)
    assert bench.admit(bench.claim()).status == "ADMITTED"
    time.sleep(0.03)
    refused = bench.admit(bench.claim())
    assert refused.status == "REFUSED"


def test_an_early_expiry_is_refused_and_a_late_settle_moves_the_difference(bench: Bench) -> None:
    bench.limits = [limit("tenant", "tokens:1000/day")]
    claim = bench.claim(images=2, tokens=600, lease=0.05)
    bench.admit(claim)
    assert bench.end(claim, "unresolved", overdue=True)[0] == b"EARLY"
    time.sleep(0.06)
    assert bench.end(claim, "unresolved", overdue=True)[0] == b"DONE"
    name = bench.principal().plan(time.time()).keys[3]
    assert bench.use(name) == [1, 2, 600, 0, 0, 0]
    assert bench.end(claim, "unresolved", overdue=True)[0] == b"REPEAT"
    assert bench.end(claim, "exact", images=2, tokens=450)[0] == b"DONE"
    assert bench.use(name) == [1, 2, 450, 0, 0, 0]
    assert bench.end(claim, "exact", images=2, tokens=450)[0] == b"REPEAT"
    assert [event[b"kind"] for event in bench.events()] == [b"unresolved", b"exact"]
    assert [int(event[b"sequence"]) for event in bench.events()] == [1, 2]


def test_how_long_each_key_lives(bench: Bench) -> None:
    bench.limits = [limit("token", "images:9/total"), limit("token", "requests:60/minute", 2)]
    claim = bench.claim(key="k")
    bench.admit(claim)
    plan = bench.principal().plan(time.time())
    day, month = plan.keys[3], plan.keys[4]
    ttl = bench.client.ttl
    assert bench.client.expiretime(day) == plan.periods.day_end + WEEK
    assert bench.client.expiretime(month) == plan.periods.month_end + WEEK
    assert ttl(keys.use(3, "token:11", "total:1")) == -1
    assert 0 < int(bench.client.pttl(keys.rate(3, "token:11", "requests", "minute"))) <= 2000
    reservation = keys.reservation(3, claim.request_id)
    assert ttl(reservation) == -1
    assert ttl(keys.idempotency(3, 11, "k")) in {86_399, 86_400}
    bench.end(claim, "unresolved")
    assert ttl(reservation) in {3_023_999, 3_024_000}
    bench.end(claim, "exact", images=1, tokens=9)
    assert ttl(reservation) in {3599, 3600}
    assert bench.client.hmget(reservation, "call", "held") == [b"", b""]
    bench.client.delete(day)  # its period ended over a week ago
    other = bench.claim()
    bench.admit(other)
    bench.client.delete(day)
    bench.end(other, "exact", images=1, tokens=9)
    assert not bench.client.exists(day)


def test_what_a_person_decided_is_kept_no_longer_than_while_it_was_undecided(bench: Bench) -> None:
    claim = bench.claim()
    bench.admit(claim)
    reservation = keys.reservation(3, claim.request_id)
    bench.end(claim, "unresolved")
    bench.client.expire(reservation, 500)
    assert bench.end(claim, "void", decided=True)[0] == b"DONE"
    assert bench.client.ttl(reservation) in {499, 500}
    lost = bench.claim()
    bench.end(lost, "void", decided=True)
    assert bench.client.ttl(keys.reservation(3, lost.request_id)) in {3_023_999, 3_024_000}


def test_an_idempotency_key_remembers_its_first_answer(bench: Bench) -> None:
    first = bench.claim(key="k", body="one")
    assert bench.admit(first).status == "ADMITTED"
    in_flight = bench.admit(bench.claim(key="k", body="one"))
    assert (in_flight.status, in_flight.request_id) == ("IN_FLIGHT", first.request_id)
    assert bench.admit(bench.claim(key="k", body="two")).status == "MISMATCH"
    assert bench.admit(bench.claim(key="k", body="two"), token=12).status == "ADMITTED"
    bench.end(first, "exact", images=1, tokens=7, answer=b"answer")
    replay = bench.admit(bench.claim(key="k", body="one"))
    assert (replay.status, replay.request_id, replay.answer) == ("REPLAY", first.request_id, b"answer")
    voided = bench.claim(key="v")
    bench.admit(voided)
    bench.end(voided, "void", keep=False)
    assert bench.admit(bench.claim(key="v")).status == "ADMITTED"


def test_what_a_rate_gets_back_never_lets_more_than_its_burst_pass(bench: Bench) -> None:
    bench.limits = [limit("token", "tokens:1000/second")]
    slow = bench.claim(tokens=1000)
    assert bench.admit(slow).status == "ADMITTED"
    time.sleep(1.01)  # its thousand have run off
    assert bench.admit(bench.claim(tokens=1000)).status == "ADMITTED"
    bench.end(slow, "void")
    assert bench.admit(bench.claim(tokens=500)).status == "REFUSED"
    time.sleep(1.01)
    quick = bench.claim(tokens=1000)
    assert bench.admit(quick).status == "ADMITTED"
    bench.end(quick, "void")
    assert bench.admit(bench.claim(tokens=900)).status == "ADMITTED"


def read_then_write(bench: Bench, principal: Principal) -> str:
    """The control: what is left is read in one step, and taken in the next."""
    direct = cast(StoreConnection, Direct(bench.client))
    (left,) = asyncio.run(standing(direct, principal, time.time()))
    if left.remaining < 1:
        return "REFUSED"
    unlimited = Bench.__new__(Bench)
    unlimited.client, unlimited.limits, unlimited.backlog = bench.client, [], 1000
    return unlimited.admit(bench.claim()).status


@pytest.mark.parametrize("atomic", [True, False], ids=["script", "control"])
def test_many_at_once_are_admitted_up_to_the_amount(atomic: bool, bench: Bench) -> None:
    bench.limits = [limit("token", "images:50/day")]
    statuses: list[str] = []
    begin = threading.Barrier(16)

    def work() -> None:
        begin.wait()
        for _ in range(8):
            status = bench.admit(bench.claim()).status if atomic else read_then_write(bench, bench.principal())
            statuses.append(status)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {"ADMITTED", "REFUSED"}
    admitted = statuses.count("ADMITTED")
    assert (admitted == 50) if atomic else (admitted > 50)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[OwnValkey, Bench]]:
    with own_valkey(monkeypatch) as valkey:
        yield valkey, Bench(store())


def test_a_full_store_admits_nobody_and_records_what_ends(full: tuple[OwnValkey, Bench]) -> None:
    _, bench = full
    claim = bench.claim()
    assert bench.admit(claim).status == "ADMITTED"
    bench.client.config_set("maxmemory", "1mb")
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        bench.admit(bench.claim())
    assert bench.end(claim, "exact", images=1, tokens=7)[0] == b"DONE"
    assert [event[b"kind"] for event in bench.events()] == [b"exact"]
    bench.client.config_set("maxmemory", "0")
    assert bench.admit(bench.claim()).status == "ADMITTED"


def test_a_store_that_was_emptied_admits_nobody_and_still_takes_usage(bench: Bench) -> None:
    claim = bench.claim()
    bench.admit(claim)
    bench.client.flushdb()
    assert bench.admit(bench.claim()).status == "NOT_READY"
    assert bench.end(claim, "exact", images=1, tokens=7)[0] == b"DONE"
    (event,) = bench.events()
    assert (event[b"kind"], event[b"generation"], event[b"call"]) == (b"exact", b"", b"{}")


def test_what_a_person_decided_gives_way_to_the_answer_even_of_a_call_that_the_store_has_lost(bench: Bench) -> None:
    claim = bench.claim()
    bench.admit(claim)
    bench.client.delete(keys.reservation(3, claim.request_id))
    assert bench.end(claim, "void", decided=True)[0] == b"DONE"
    assert bench.end(claim, "void", decided=True)[0] == b"REPEAT"
    assert bench.end(claim, "exact", images=1, tokens=7)[0] == b"DONE"
    assert bench.end(claim, "exact", images=1, tokens=7)[0] == b"REPEAT"
    assert [event[b"kind"] for event in bench.events()] == [b"void", b"exact"]


def test_the_principals_versions_are_what_is_compared(bench: Bench) -> None:
    """So that a process which read the newer records is admitted."""
    record(bench, "token", version=2)
    newer = dataclasses.replace(bench.principal(), versions=(2, 1, 1))
    bench.principal = lambda *_: newer  # type: ignore[method-assign]
    assert bench.admit(bench.claim(), generation=GENERATION).status == "ADMITTED"

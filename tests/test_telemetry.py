"""Telemetry: what was refused is counted and explained, and nothing of it touches a call."""

import asyncio
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from config.redis import parse_address, store
from gateway import decisions, tallies
from gateway.overload import StoreLoad
from gateway.telemetry import MOST_DECISIONS, MOST_OF_A_TOKEN, Refusal, Telemetry
from tests import processes, stack
from tests.conftest import Customer, Gateway
from tests.processes import wait_until
from tokens import records, stopping
from tokens.admission import keys
from tokens.admission.connection import StoreConnection, StoreUnavailable

BODY = {"prompt": "a lighthouse that nobody else draws", "size": "512x512", "n": 1}


def tally(customer: Customer, hours: bool = False) -> tallies.Told:
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return tallies.read([(day, keys.tally(records.shard_of(customer.tenant.pk), customer.tenant.pk, day))], hours)


def found(request_id: str) -> Refusal | None:
    wanted = uuid.UUID(request_id)
    at = decisions.moment_of(wanted)
    assert at is not None
    return decisions.find(wanted, at)


def test_refusals_are_counted_and_kept_over_http(gateway: Gateway, customer: Customer) -> None:
    customer.limit("images:2/day", scope="token")
    answers = [gateway.post(customer.secret, BODY) for _ in range(4)]
    answers.append(gateway.post(customer.secret, {**BODY, "n": 9}))
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429, 400]
    wait_until(lambda: tally(customer).total.refused.total() == 3)
    told = tally(customer, hours=True)
    assert told.total.served == told.total.latencies.total() == 2
    assert told.total.refused == {"quota_exceeded": 2, "invalid_request": 1}
    assert dict(told.most_refused) == {
        (customer.tenant.pk, customer.token.pk, "quota_exceeded"): 2,
        (customer.tenant.pk, customer.token.pk, "invalid_request"): 1,
    }
    assert told.by_hour[time.gmtime().tm_hour]["served"] == 2
    assert told.total.error_share == 0
    middle = told.total.quantile(0.5)
    assert middle is not None
    assert 0 < middle < 5
    refusal = found(answers[2].headers["X-Request-Id"])
    assert refusal is not None
    assert refusal.limit is not None
    said = refusal.limit
    assert (said.scope, said.metric, said.period, said.amount, said.remaining) == ("token", "images", "day", 2, 0)
    assert 0 < said.frees <= 86_400
    assert (refusal.tenant, refusal.token, refusal.type) == (customer.tenant.pk, customer.token.pk, "quota_exceeded")
    assert found(answers[0].headers["X-Request-Id"]) is None, "what was admitted is in the books"


def test_what_calls_under_way_hold_is_told(gateway: Gateway, customer: Customer) -> None:
    """A reservation isn't use: a person who sees 0 of 1 used would wonder."""
    customer.limit("images:1/day", scope="token")
    shard, scope = records.shard_of(customer.tenant.pk), f"token:{customer.token.pk}"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    assert gateway.post(customer.secret, {**BODY, "n": 2}).status_code == 400  # exceeds, and reserves nothing
    figures: dict[Any, Any] = {"requests": 0, "images": 0, "tokens": 0, "reserved_requests": 1, "reserved_images": 1}
    store().hset(keys.use(shard, scope, f"day:{day}"), mapping={**figures, "reserved_tokens": 10})
    answer = gateway.post(customer.secret, BODY)
    assert answer.status_code == 429
    wait_until(lambda: found(answer.headers["X-Request-Id"]))
    refusal = found(answer.headers["X-Request-Id"])
    assert refusal
    assert refusal.limit
    assert (refusal.limit.reserved, refusal.limit.remaining) == (1, 0)


def test_a_revoked_token_is_known_and_a_made_up_one_is_not(gateway: Gateway, customer: Customer) -> None:
    stopping.revoke(customer.token.pk, "tests")
    revoked = gateway.post(customer.secret, BODY)
    unknown = gateway.post("gem_" + "x" * 46, BODY)
    assert (revoked.status_code, unknown.status_code) == (403, 403)
    wait_until(lambda: found(revoked.headers["X-Request-Id"]))
    assert tally(customer).total.refused == {"invalid_token": 1}
    day = time.strftime("%Y-%m-%d", time.gmtime())
    nobody = tallies.read([(day, keys.zone_tally(keys.NOBODY, day))]).total
    assert nobody.refused["invalid_token"] >= 1
    assert found(unknown.headers["X-Request-Id"]) is None


def test_no_prompt_and_no_token_is_in_it(gateway: Gateway, customer: Customer) -> None:
    secret = f"canary-{uuid.uuid4().hex}"
    bodies = ({"prompt": secret, "n": 9}, {"prompt": "x", secret: 1}, {"prompt": secret, "size": secret})
    answers = [gateway.post(customer.secret, body) for body in bodies]
    assert {answer.status_code for answer in answers} == {400}
    wait_until(lambda: tally(customer).total.refused.total() == 3)
    entries: Any = store().xrange(keys.DECISIONS)
    everything = b"".join(fields[b"decision"] for _, fields in entries)
    assert answers[0].headers["X-Request-Id"].encode() in everything
    assert secret.encode() not in everything
    assert customer.secret.encode() not in everything


def test_a_store_without_room_or_life_costs_no_call(provider: Path, customer: Customer) -> None:
    """Every flush fails, as it does in a process whose scripts the store refuses; calls don't notice."""
    with processes.web(provider, application="tests.controls.deaf:application") as (url, process):
        gateway = Gateway(url, provider, httpx.Client(timeout=20))
        statuses = []
        end = time.monotonic() + 3
        while time.monotonic() < end:
            begun = time.monotonic()
            statuses.append(gateway.post(customer.secret, BODY).status_code)
            assert time.monotonic() - begun < 5, "it waits for no flush"
        gateway.client.close()
        assert set(statuses) == {200}
        assert process.text().count("telemetry was lost") == 1, "said once, not every second"
    assert tally(customer).total.served == 0


# In one process


def collector(load: StoreLoad | None = None) -> Telemetry:
    connection = StoreConnection(parse_address(stack.SERVERS.redis_url), 0.25, _nothing)
    return Telemetry(connection, load or StoreLoad())


async def _nothing() -> None:
    """Nothing to do on a connection."""


def refusal(**changes: Any) -> Refusal:
    known: dict[str, Any] = {"request_id": str(uuid.uuid4()), "at": time.time(), "tenant": 1, "member": 1, "token": 1}
    return Refusal(**{**known, "status": 429, "type": "rate_limited", **changes})


def test_memory_is_bounded_while_the_store_is_away() -> None:
    telemetry = collector()
    for number in range(MOST_DECISIONS * 2):
        telemetry.refused(refusal(token=number % 100))
    assert len(telemetry._refusals) == MOST_DECISIONS
    telemetry = collector()
    for _ in range(MOST_OF_A_TOKEN * 2):
        telemetry.refused(refusal())
    telemetry.refused(refusal(token=2))
    assert len(telemetry._refusals) == MOST_OF_A_TOKEN + 1, "one token leaves room for the others"
    asyncio.run(telemetry.flush())
    assert telemetry._refusals, "they wait"


async def _flushed(telemetry: Telemetry, change: Callable[[], None]) -> None:
    telemetry._store.start()
    try:
        async with asyncio.timeout(5):
            while not telemetry._store.ready:
                await asyncio.sleep(0.01)
        change()
        await telemetry.flush()
    finally:
        await telemetry._store.close()


def test_a_full_store_is_not_filled_with_decisions() -> None:
    load = StoreLoad()
    marker = refusal()
    telemetry = collector(load)

    def change() -> None:
        load.problem = "70% of its memory is used"
        telemetry.refused(marker)
        telemetry.answered(None, time.time(), 403, "invalid_token")

    before = store().xlen(keys.DECISIONS)
    asyncio.run(_flushed(telemetry, change))
    assert store().xlen(keys.DECISIONS) == before
    load = StoreLoad()
    telemetry = collector(load)
    asyncio.run(_flushed(telemetry, lambda: telemetry.refused(marker)))
    assert store().xlen(keys.DECISIONS) == before + 1, "the control: with room it is kept"


def test_everything_it_keeps_expires_and_none_of_it_is_the_admissions(gateway: Gateway, customer: Customer) -> None:
    gateway.post(customer.secret, {**BODY, "n": 9})
    wait_until(lambda: tally(customer).total.refused)
    names = [keys.DECISIONS.encode(), *store().scan_iter("*tally:*", count=1000)]
    assert len(names) > 3
    for name in names:
        assert 0 < store().ttl(name) <= 40 * 86_400, name
        assert b":use:" not in name
        assert b":tenant:" not in name


def test_without_the_store_reading_says_so(monkeypatch: pytest.MonkeyPatch, customer: Customer) -> None:
    gone = parse_address("unix:///nonexistent/valkey.sock").url()
    monkeypatch.setattr("gateway.tallies.store", lambda _: redis.Redis.from_url(gone))
    with pytest.raises(StoreUnavailable):
        tally(customer)

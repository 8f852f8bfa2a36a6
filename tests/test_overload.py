"""Too much at once: new calls are shed before a part runs full, calls in flight end, and memory stays bounded."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from django.conf import settings

from config.redis import parse_address, store
from gateway import catalog
from gateway.answermemory import AnswerMemory, Held
from gateway.breaker import Breaker
from gateway.errors import Unavailable
from gateway.judging import Failed, judge
from gateway.models import Model, Provider
from gateway.overload import StoreLoad, memory_share
from gateway.upstream import Answer
from tests import processes, rawservers
from tests.conftest import PATH, Customer, Gateway, point_at
from tests.ledgerwatch import in_flight, outcome, rows
from tests.ownvalkey import OwnValkey, own_valkey
from tests.rawservers import RawServer
from tests.scriptcalls import Caller
from tokens.admission import keys
from tokens.admission.connection import StoreConnection
from usage.drain import drain

MEBIBYTE = 1 << 20
CALLS, ANSWER = 30, 8  # at once; MiB


@pytest.fixture
def valkey(provider: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnValkey]:
    with own_valkey(monkeypatch) as made:
        yield made


@contextlib.contextmanager
def running(provider: Path, **environment: Any) -> Iterator[Gateway]:
    with processes.web(provider, **environment) as (url, _), httpx.Client(timeout=20) as client:
        yield Gateway(url, provider, client)


def readiness(gateway: Gateway) -> dict[str, str]:
    """What /readyz names."""
    return dict(gateway.client.get(f"{gateway.url}/readyz").json()["problems"])


def refused(gateway: Gateway, customer: Customer) -> bool:
    """Whether a call is shed; the answer must be the contract's."""
    answer = gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256"})
    if answer.status_code == 200:
        return False
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable")
    assert answer.headers["Retry-After"] == "10"
    return True


def admits_by_itself() -> bool:
    """Whether the store's own script still admits: what refuses is then the shedding alone."""
    return Caller().admit()[0] == "ADMITTED"


# The store


def test_new_calls_are_shed_before_the_store_is_full_and_those_in_flight_end(
    valkey: OwnValkey, provider: Path, customer: Customer
) -> None:
    most = int(store().info("memory")["used_memory"]) + 24 * MEBIBYTE
    store().config_set("maxmemory", most)
    with running(provider, UPSTREAM_DEADLINE="20", MEMORY_LIMIT_SHARE="0.75") as gateway, ThreadPoolExecutor(1) as pool:
        assert not refused(gateway, customer)
        drain()  # makes the group that reads the streams, which a full store wouldn't let it
        body = {"prompt": "a gem [sandbox delay=2s]", "size": "256x256"}
        call = pool.submit(gateway.post, customer.secret, body)
        processes.wait_until(lambda: in_flight(customer) == 1, 5, "the call in flight")
        store().setrange("ballast", int(most * 0.85 - store().info("memory")["used_memory"]), b"x")
        processes.wait_until(lambda: "memory" in readiness(gateway).get("store", ""), 5, "the shedding")
        assert refused(gateway, customer)
        assert admits_by_itself(), "the control: without shedding it would go on until nothing fits in"
        store().config_set("maxmemory", int(store().info("memory")["used_memory"]) - 1)
        answer = call.result()
        assert answer.status_code == 200, "a full store must still end calls"
        assert outcome(answer.headers["x-request-id"]).kind == "exact"
        assert in_flight(customer) == 0
        store().config_set("maxmemory", most)
        store().delete("ballast")
        processes.wait_until(lambda: readiness(gateway) == {}, 5, "readiness")
        assert not refused(gateway, customer)


def test_events_that_wait_are_counted_over_all_shards(valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "BACKLOG_LIMIT", 12)
    for shard in (0, 7, 15):  # none of them near the limit of its own
        for _ in range(4):
            store().xadd(keys.usage(shard), {"waits": "for a worker"})
    assert asyncio.run(problem()).startswith("12 usage events wait")
    assert admits_by_itself()
    store().xtrim(keys.usage(7), maxlen=3, approximate=False)
    assert asyncio.run(problem()) == ""


async def problem() -> str:
    """Why the store is taken for too full, by a connection of its own."""
    load, read = StoreLoad(), asyncio.Event()

    async def on_connect() -> None:
        await load.read(connection)
        read.set()

    connection = StoreConnection(parse_address(settings.REDIS_URL), 5, on_connect)
    connection.start()
    async with asyncio.timeout(5):
        await read.wait()
    await connection.close()
    return load.problem


@pytest.mark.parametrize(
    ("info", "share"),
    [
        (b"# Memory\r\nused_memory:600\r\nmaxmemory:1000\r\ntotal_system_memory:100000\r\n", 0.6),
        (b"# Memory\r\nused_memory:600\r\nmaxmemory:0\r\ntotal_system_memory:100000\r\n", 0.006),
        (b"# Memory\r\nused_memory:600\r\n", 0.0),
    ],
)
def test_how_full_a_store_is(info: bytes, share: float) -> None:
    assert memory_share(info) == pytest.approx(share)


# A provider that is down


def test_a_provider_that_is_down_is_left_alone_for_a_while(
    provider: Path, make_customer: Callable[..., Customer]
) -> None:
    customer = make_customer(model="down")
    customer.limit("requests:100/day")
    server = RawServer(rawservers.well)
    model = point_at(server.url, name="down", default=False)
    try:
        with running(provider, BREAKER_FAILURES="3", BREAKER_SECONDS="2") as gateway:
            body = {"prompt": "a gem", "size": "256x256"}
            first = gateway.post(customer.secret, body, **{"Idempotency-Key": "before"})
            assert first.status_code == 200
            server.close()
            point_at("http://127.0.0.1:1", name="down", default=False)
            processes.wait_until(lambda: gateway.post(customer.secret, body).status_code == 500, 5, "its end")
            answers = [gateway.post(customer.secret, body) for _ in range(6)]
            assert [answer.status_code for answer in answers] == [500] * 2 + [503] * 4
            assert answers[-1].json()["error"]["type"] == "unavailable"
            assert answers[-1].headers["Retry-After"] in {"1", "2"}
            again = gateway.post(customer.secret, body, **{"Idempotency-Key": "before"})
            assert (again.status_code, again.headers.get("Idempotent-Replayed")) == (200, "true")
            assert gateway.post(customer.secret, body, **{"Idempotency-Key": "new"}).status_code == 503
            assert 'gateway_breaker_open{provider="down"} 1.0' in gateway.client.get(f"{gateway.url}/metrics").text
            voided = [row.reason for row in rows(customer) if row.kind == "void"]
            assert voided == ["not_dispatched"] * 4, "without a key, what is refused is not even admitted"
            server = RawServer(rawservers.well)
            point_at(server.url, name="down", default=False)
            processes.wait_until(lambda: gateway.post(customer.secret, body).status_code == 200, 5, "its return")
            assert gateway.post(customer.secret, body).status_code == 200
            assert 'gateway_breaker_open{provider="down"} 0.0' in gateway.client.get(f"{gateway.url}/metrics").text
            server.close()
    finally:
        provider_row = model.provider
        model.delete()
        provider_row.delete()
        catalog.publish()


def test_what_counts_as_down(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gateway.breaker.time", SimpleNamespace(monotonic=lambda: now[0]))
    guard, never = Breaker(3, 5), Breaker(0, 5)
    for each in (guard, never):
        for happened in "ffaff":
            each.failed("p") if happened == "f" else each.answered("p")
        each.require_closed("p")  # never three in a row
    guard.failed("p")
    never.failed("p")
    never.require_closed("p")
    guard.require_closed("another")
    for at, passes in ((4.9, False), (5.0, True), (5.1, False), (9.9, False), (10.1, True)):
        now[0] = at
        for look in (guard.require_closed, guard.require_closed, guard.enter):  # looking takes nobody's place
            with contextlib.nullcontext() if passes else pytest.raises(Unavailable):
                look("p")
    guard.answered("p")
    guard.require_closed("p")
    guard.failed("p")
    guard.require_closed("p")


def test_which_answers_say_that_a_provider_is_down() -> None:
    page, own = b"<html>a proxy's page</html>", b'{"error": {"message": "overloaded"}}'
    judged = {
        (status, body): judge(Answer(status, body), 1, 1) for status in (500, 502, 503, 504) for body in (page, own)
    }
    down = {key for key, outcome in judged.items() if isinstance(outcome, Failed) and outcome.down}
    assert down == {(502, page), (503, page), (504, page)}


# Clients that leave


def test_calls_that_run_for_nobody_are_bounded_and_none_of_them_is_given_up(
    provider: Path, make_customer: Callable[..., Customer]
) -> None:
    limit, customer = 3, make_customer()
    slow, slower = ({"prompt": f"a gem [sandbox delay={delay}]", "size": "256x256"} for delay in ("1500ms", "2500ms"))
    with running(provider, DETACHED_LIMIT=str(limit)) as gateway, ThreadPoolExecutor(limit) as pool:
        stay = [pool.submit(gateway.post, customer.secret, slow) for _ in range(limit)]
        processes.wait_until(lambda: in_flight(customer) == limit, 5, "the calls in flight")
        time.sleep(1.2)  # the process looks once a second
        assert not is_busy(gateway, customer), "the control: these are answered to somebody"
        assert [call.result().status_code for call in stay] == [200] * limit
        assert in_flight(customer) == 0
        for _ in range(limit):
            leave(gateway, customer, slower)
        processes.wait_until(lambda: is_busy(gateway, customer), 3, "refusal")
        assert in_flight(customer) == limit
        processes.wait_until(lambda: in_flight(customer) == 0, 5, "their end")
        assert not is_busy(gateway, customer)
    kinds = [row.kind for row in rows(customer)]
    assert set(kinds) == {"exact"}


def is_busy(gateway: Gateway, customer: Customer) -> bool:
    """Whether a call is refused for want of room."""
    answer = gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256"})
    assert answer.status_code in {200, 503}
    return answer.status_code == 503


def leave(gateway: Gateway, customer: Customer, fields: dict[str, str]) -> None:
    """Ask, and close the connection once the call is in flight."""
    before, body = in_flight(customer), json.dumps(fields).encode()
    parts = urlsplit(gateway.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}X-Proxy-Token: {customer.secret}\r\n\r\n".encode() + body)
        processes.wait_until(lambda: in_flight(customer) == before + 1, 5, "one call more in flight")


# Answers of providers


async def read(memory: AnswerMemory, size: int, chunk: int = 64, drip: asyncio.Event | None = None) -> int:
    """Hold an answer's bytes until it is whole, then give them back; what was held at most while it was read."""
    held, most = Held(memory), 0
    for at in range(0, size, chunk):
        if drip is not None and at > size // 2:
            await drip.wait()
        if not held.take(chunk):
            await held.wait(chunk)
        most = max(most, memory.taken)
        await asyncio.sleep(0)
    held.release()
    held.release()
    return most


async def test_answers_beyond_the_budget_are_read_one_after_the_other_and_none_waits_for_ever() -> None:
    memory = AnswerMemory(budget=4096, most=1024)
    async with asyncio.timeout(10):
        most = await asyncio.gather(*[read(memory, 1024) for _ in range(50)])
    assert max(most) <= 3072
    assert (memory.taken, memory.finisher, len(memory.waiting)) == (0, None, 0)


async def test_control_without_a_part_set_apart_half_read_answers_wait_for_each_other() -> None:
    memory = AnswerMemory(budget=4096, most=0)
    memory.finisher = Held(memory)  # nobody gets it
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.gather(*[read(memory, 1024) for _ in range(50)])


async def test_whoever_gives_up_waiting_takes_nothing_with_it() -> None:
    memory = AnswerMemory(budget=2048, most=1024)
    full, finisher, next_ = Held(memory), Held(memory), Held(memory)
    while full.take(64):
        pass
    await finisher.wait(64)
    gone, waiting = (asyncio.create_task(held.wait(64)) for held in (Held(memory), next_))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    assert not waiting.done()
    full.release()
    async with asyncio.timeout(5):
        await waiting
    assert memory.taken == 64
    next_.release()
    finisher.release()
    assert (memory.taken, memory.finisher, len(memory.waiting)) == (0, None, 0)


class Slow:
    """A provider of large answers: each lacks its end until all `CALLS` of them are on their way that far, or 2 s."""

    def __init__(self) -> None:
        head, tail = b'{"created": 1, "data": [{"url": "https://images.example/1.png"}], "pad": "', b'"}'
        self.answer = rawservers.answer("200 OK", head + b"x" * ANSWER * MEBIBYTE + tail)
        self.begun = threading.Barrier(CALLS)
        self.nearly: list[None] = []  # one entry an answer; appending is atomic
        self.patience = 0.0

    def __call__(self, server: RawServer, connection: Any) -> None:
        server.read_request(connection)
        if self.begun.wait(20) == 0:
            self.patience = time.monotonic() + 2
        self.begun.wait(20)
        connection.sendall(self.answer[:-10])
        self.nearly.append(None)
        while len(self.nearly) % CALLS and time.monotonic() < self.patience:
            time.sleep(0.02)
        connection.sendall(self.answer[-10:])


def test_many_large_answers_at_once_take_no_more_memory_than_their_budget(
    provider: Path, make_customer: Callable[..., Customer]
) -> None:
    with large_answers() as model:
        customer = make_customer(model=model)
        guard, control = (growth(provider, customer, budget) for budget in (18, 512))
    assert guard * 2 < control, f"MiB for {CALLS} answers of {ANSWER} MiB each"


@contextlib.contextmanager
def large_answers() -> Iterator[str]:
    """A model whose provider answers slowly and at length."""
    server = RawServer(Slow())
    point_at(server.url, name="large", default=False)
    try:
        yield "large"
    finally:
        server.close()
        Model.objects.filter(name="large").delete()
        Provider.objects.filter(name="large").delete()
        catalog.publish()


def growth(provider: Path, customer: Customer, budget: int) -> int:
    """By how many MiB a web process grows at most while `CALLS` answers come in, all of which succeed."""
    environment: dict[str, Any] = {"UPSTREAM_ANSWER_LIMIT": str(9 * MEBIBYTE), "ANSWER_MEMORY": str(budget * MEBIBYTE)}
    with (
        processes.web(provider, UPSTREAM_DEADLINE="20", **environment) as (url, process),
        httpx.Client(timeout=30, limits=httpx.Limits(max_connections=CALLS)) as client,
        ThreadPoolExecutor(CALLS) as pool,
    ):
        gateway = Gateway(url, provider, client)
        before = most_memory(process)
        answers = list(pool.map(lambda _: gateway.post(customer.secret, {"prompt": "a gem"}), range(CALLS)))
        assert [answer.status_code for answer in answers] == [200] * CALLS
        return most_memory(process) - before


def most_memory(process: processes.Process) -> int:
    """The most memory that a web process of one worker has ever held, in MiB."""
    (worker,) = process.children()
    status = Path(f"/proc/{worker}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10

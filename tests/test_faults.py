"""Processes that die, freeze or are told to stop, and clients that leave: every admitted call is accounted for."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from config.redis import store
from tests import processes
from tests.conftest import PATH, Customer, Gateway
from tests.ledgerwatch import check_books, in_flight, outcome, rows
from tests.ownvalkey import OwnValkey, own_valkey
from usage import expiry, guardian

SHORT = {"UPSTREAM_DEADLINE": "3", "LEASE_MARGIN": "1", "SETTLE_RETRY_SECONDS": "0.4"}
NO_DATABASE = "postgresql://nobody:nothing@127.0.0.1:1/none"
Server = tuple[Gateway, processes.Process]


@contextlib.contextmanager
def running(
    provider: Path, workers: int = 1, application: str = "config.asgi:application", **more: str
) -> Iterator[Server]:
    """A web server of the test's own with short time-outs."""
    environment = {**SHORT, "SPOOL_ROOT": str(provider / f"spool-{time.monotonic_ns()}"), **more}
    with (
        processes.web(provider, workers, True, application, **environment) as (url, process),
        httpx.Client(timeout=20) as client,
    ):
        yield Gateway(url, provider, client), process


@pytest.fixture
def valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnValkey]:
    with own_valkey(monkeypatch) as made:
        yield made


@pytest.fixture
def background() -> Iterator[Callable[..., Future[httpx.Response]]]:
    """Sends a call in a thread."""
    with ThreadPoolExecutor(16) as pool:

        def send(gateway: Gateway, customer: Customer, prompt: str, **fields: Any) -> Future[httpx.Response]:
            return pool.submit(gateway.post, customer.secret, {"prompt": prompt, "size": "256x256", **fields})

        yield send


def until_in_flight(customer: Customer, calls: int) -> None:
    processes.wait_until(lambda: in_flight(customer) == calls, 5, f"{calls} calls in flight")


def status_of(gateway: Gateway, customer: Customer) -> int:
    """The status of one more call; a connection that the killed process was about to take is tried again."""
    for _ in range(50):
        with contextlib.suppress(httpx.TransportError):
            return gateway.post(customer.secret, {"prompt": "one more"}).status_code
        time.sleep(0.02)
    raise AssertionError("nobody answers")


def expire_all(customer: Customer) -> bool:
    expiry.expire_overdue()
    return in_flight(customer) == 0


def drawn_tokens(gateway: Gateway, request_id: str) -> int:
    return int(gateway.drawn()[request_id]["usage"]["total_tokens"])


def leave_mid_call(gateway: Gateway, customer: Customer, prompt: str) -> None:
    """Send a call over a raw socket and close once it is in flight."""
    body = b'{"prompt": "%s", "size": "256x256"}' % prompt.encode()
    parts = urlsplit(gateway.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}X-Proxy-Token: {customer.secret}\r\n\r\n".encode() + body)
        until_in_flight(customer, 1)


def test_a_client_that_leaves_is_charged_what_was_drawn(gateway: Gateway, customer: Customer) -> None:
    leave_mid_call(gateway, customer, "a gem [sandbox delay=300ms]")
    until_in_flight(customer, 0)
    (row,) = rows(customer)
    assert (row.kind, row.images) == ("exact", 1)
    assert row.charged_tokens == drawn_tokens(gateway, str(row.request_id))


@pytest.mark.parametrize("group", [False, True], ids=["main", "group"])
def test_sigterm_lets_calls_in_flight_end(
    group: bool, provider: Path, customer: Customer, background: Callable[..., Future[httpx.Response]]
) -> None:
    with running(provider, workers=2) as (gateway, process):
        calls = [background(gateway, customer, "a gem [sandbox delay=1s]") for _ in range(6)]
        until_in_flight(customer, 6)
        if group:  # as a service manager does that signals every process of a unit
            os.killpg(process.child.pid, signal.SIGTERM)
        else:
            process.child.send_signal(signal.SIGTERM)
        answers = [call.result() for call in calls]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert process.child.wait(10) == 0
        with pytest.raises(httpx.ConnectError):
            gateway.post(customer.secret, {"prompt": "too late"})
    assert [row.kind for row in rows(customer)] == ["exact"] * 6


@pytest.mark.parametrize(("milliseconds", "held_up"), [("1000", False), ("60000", True)], ids=["guard", "control"])
def test_half_sent_headers_do_not_hold_up_a_stop(milliseconds: str, held_up: bool, provider: Path) -> None:
    with running(provider, GRANIAN_HTTP1_HEADER_READ_TIMEOUT=milliseconds) as (gateway, process):
        parts = urlsplit(gateway.url)
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
            connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode())
            assert gateway.post(None, {}).status_code == 403  # the worker has taken what came before
            process.child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.child.wait(4)
            assert (process.child.poll() is None) == held_up
            if held_up:
                process.stop(signal.SIGKILL)


def test_sigterm_waits_for_a_call_whose_client_has_left(provider: Path, customer: Customer) -> None:
    with running(provider) as (gateway, process):
        leave_mid_call(gateway, customer, "a gem [sandbox delay=1s]")
        process.child.send_signal(signal.SIGTERM)
        assert process.child.wait(10) == 0
        (row,) = rows(customer)
        assert row.charged_tokens == drawn_tokens(gateway, str(row.request_id))


def test_kill_9_of_a_worker_costs_only_its_calls_and_those_are_accounted(
    provider: Path, customer: Customer, background: Callable[..., Future[httpx.Response]]
) -> None:
    customer.limit("images:10/day", "concurrent:8")
    with running(provider, workers=2) as (gateway, process):
        calls = [background(gateway, customer, "a gem [sandbox delay=1500ms]") for _ in range(8)]
        until_in_flight(customer, 8)
        victim, survivor = process.children()
        os.kill(victim, signal.SIGKILL)
        assert status_of(gateway, customer) == 429  # its calls hold their places, though they may be dead
        lost = 0
        for call in calls:
            try:
                assert call.result().status_code == 200
            except httpx.TransportError:
                lost += 1
        assert lost > 0
        processes.wait_until(lambda: len(set(process.children())) == 2, 10, "the respawn")
        assert survivor in process.children()
        assert victim not in process.children()
        expiry.expire_overdue()
        assert in_flight(customer) == lost  # never before the lease ends
        processes.wait_until(lambda: expire_all(customer), 8, "the lease's end")
        outcomes = sorted((row.kind, row.reason) for row in rows(customer))
        assert outcomes == [("exact", "")] * (8 - lost) + [("unresolved", "lease_ended")] * lost
        refused = gateway.post(customer.secret, {"prompt": ""})
        assert refused.headers["X-RateLimit-Remaining-Images"] == "2"  # unresolved holds its quota
    check_books([customer])


def test_a_web_server_needs_no_database_for_calls(provider: Path, customer: Customer) -> None:
    with running(provider, DATABASE_URL=NO_DATABASE) as (gateway, _):
        answer = gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256"})
    assert answer.status_code == 200
    assert outcome(answer.headers["x-request-id"]).kind == "exact"


def test_a_killed_store_stops_new_calls_at_once_and_loses_none_in_flight(
    valkey: OwnValkey, provider: Path, customer: Customer, background: Callable[..., Future[httpx.Response]]
) -> None:
    with running(provider, DATABASE_URL=NO_DATABASE) as (gateway, _):
        before = gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256"})
        call = background(gateway, customer, "a gem [sandbox delay=500ms]")
        until_in_flight(customer, 1)
        valkey.kill()
        begun = time.monotonic()
        refused = [gateway.post(customer.secret, {"prompt": "a gem"}) for _ in range(5)]
        assert time.monotonic() - begun < 0.5
        assert {(answer.status_code, answer.json()["error"]["type"]) for answer in refused} == {(503, "unavailable")}
        assert {answer.headers["Retry-After"] for answer in refused} == {"2"}
        answer = call.result()
        assert answer.status_code == 200  # its usage is in the spool
        store().close()
        valkey.start()
        time.sleep(1.5)
        assert gateway.post(customer.secret, {"prompt": "a gem"}).status_code == 503  # not before it is confirmed
        assert guardian.confirm() == "confirmed"
        processes.wait_until(lambda: processes.answers(f"{gateway.url}/readyz"), 5, "readiness")
        assert gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256"}).status_code == 200
        for name in (before, answer):
            request_id = name.headers["x-request-id"]
            assert outcome(request_id).charged_tokens == drawn_tokens(gateway, request_id)
        assert in_flight(customer) == 0
        assert [row.kind for row in rows(customer)] == ["exact"] * 3


def test_control_without_spool_the_client_is_not_told_a_success(
    valkey: OwnValkey, provider: Path, customer: Customer, background: Callable[..., Future[httpx.Response]]
) -> None:
    with running(provider, SPOOL_ROOT="/dev/null/spool", DATABASE_URL=NO_DATABASE) as (gateway, _):
        call = background(gateway, customer, "a gem [sandbox delay=300ms]")
        until_in_flight(customer, 1)
        valkey.kill()
        answer = call.result()
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "storage_failed"
        store().close()
        valkey.start()
    assert rows(customer) == []
    processes.wait_until(expiry.expire_overdue, 8, "the lease's end")
    assert outcome(answer.headers["x-request-id"]).kind == "unresolved"


def test_a_frozen_store_is_answered_for_in_time_and_what_it_may_have_taken_is_given_back(
    valkey: OwnValkey, provider: Path, customer: Customer
) -> None:
    customer.limit("images:10/day", "requests:10/day", "concurrent:2")
    with running(provider) as (gateway, _):
        assert gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256"}).status_code == 200
        with valkey.frozen():
            begun = time.monotonic()
            slow = gateway.post(customer.secret, {"prompt": "a gem"})
            fast = [gateway.post(customer.secret, {"prompt": "a gem"}) for _ in range(3)]
            assert time.monotonic() - begun < 1
            assert {answer.status_code for answer in (slow, *fast)} == {503}
        processes.wait_until(lambda: processes.answers(f"{gateway.url}/readyz"), 8, "readiness")
        assert outcome(slow.headers["x-request-id"]).kind == "void"
        assert in_flight(customer) == 0
        after = gateway.post(customer.secret, {"prompt": ""})
        assert after.headers["X-RateLimit-Remaining-Images"] == "9"
        assert after.headers["X-RateLimit-Remaining-Requests"] == "9"


@pytest.mark.parametrize("moment", ["held_up", "held_up_reading"])
@pytest.mark.parametrize(("within", "status"), [("0.2", 503), ("5", 200)], ids=["guard", "control"])
def test_a_process_that_was_held_up_after_admission_sends_nothing(
    moment: str, within: str, status: int, provider: Path, customer: Customer
) -> None:
    entry = f"tests.controls.{moment}:application"
    with running(provider, 1, entry, DISPATCH_WITHIN=within, STORE_TIMEOUT="5") as (gateway, _):
        answer = gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256"})
        assert answer.status_code == status
        request_id = answer.headers["x-request-id"]
        assert (request_id in gateway.drawn()) == (status == 200)
        assert outcome(request_id).kind == ("exact" if status == 200 else "void")

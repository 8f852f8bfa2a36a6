"""Whatever the provider does: what the client is told, and what the books say of it."""

import contextlib
import json
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.conftest import SANDBOX_KEY, SIZES, Customer, Gateway, point_at
from tests.contract import SMALL, assert_error, assert_images, drawings, ending
from tests.processes import wait_until


@dataclass(frozen=True)
class Fault:
    """A directive, and what it must come to. `drawn`: how often the provider really drew."""

    directive: str
    status: int
    type: str
    kind: str
    drawn: int = 0
    retry_after: str | None = None


FAULTS = [
    Fault("status=400", 400, "refused_by_provider", "void"),
    Fault("status=404", 400, "refused_by_provider", "void"),
    Fault("status=413", 400, "refused_by_provider", "void"),
    Fault("status=422", 400, "refused_by_provider", "void"),
    Fault("status=401", 500, "upstream_failed", "void"),
    Fault("status=402", 500, "upstream_failed", "void"),
    Fault("status=403", 500, "upstream_failed", "void"),
    Fault("status=429", 503, "unavailable", "void", retry_after="7"),
    Fault("status=500", 500, "upstream_failed", "void"),
    Fault("status=503", 500, "upstream_failed", "void"),
    Fault("status=408", 500, "outcome_unknown", "unresolved"),
    Fault("status=409", 500, "outcome_unknown", "unresolved"),
    Fault("status=425", 500, "outcome_unknown", "unresolved"),
    Fault("status=499", 500, "outcome_unknown", "unresolved"),
    Fault("status=502", 500, "outcome_unknown", "unresolved"),
    Fault("status=504", 500, "outcome_unknown", "unresolved"),
    Fault("status=599", 500, "outcome_unknown", "unresolved"),
    Fault("drop=unread", 500, "outcome_unknown", "unresolved"),
    Fault("drop=after_draw", 500, "outcome_unknown", "unresolved", drawn=1),
    Fault("drop=midway", 500, "outcome_unknown", "unresolved", drawn=1),
    Fault("body=garbage", 500, "outcome_unknown", "unresolved", drawn=1),
    Fault("body=huge", 500, "outcome_unknown", "unresolved", drawn=1),
    Fault("body=drip", 500, "upstream_timeout", "unresolved", drawn=1),
    Fault("delay=6s", 500, "upstream_timeout", "unresolved", drawn=1),
]


@dataclass
class Failed:
    """What a fault came to: the answer, and that of a wrong request afterwards, whose headers say what is left."""

    answer: httpx.Response
    after: httpx.Response


def provoke(gateway: Gateway, customer: Customer, directive: str) -> Failed:
    body = {**SMALL, "prompt": f"a ruby [sandbox {directive}]", "n": 2}
    answer = gateway.post(customer.secret, body)
    return Failed(answer, gateway.post(customer.secret, b"{}"))


def test_each_fault_is_answered_and_booked_as_the_table_says(
    gateway: Gateway, make_customer: Callable[..., Customer]
) -> None:
    customers = [make_customer() for _ in FAULTS]
    for customer in customers:
        customer.limit("requests:10/day", "images:10/day", "tokens:100000/day", "concurrent:2")
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(provoke, gateway, customer, fault.directive)
            for customer, fault in zip(customers, FAULTS, strict=True)
        ]
        results = [future.result() for future in asked]
    for fault, failed in zip(FAULTS, results, strict=True):
        check_answer(fault, failed)
        check_books(gateway, fault, failed)


def check_answer(fault: Fault, failed: Failed) -> None:
    answer = failed.answer
    assert_error(answer, fault.status, fault.type)
    assert SANDBOX_KEY not in answer.text
    assert "sandbox" not in answer.text.lower(), "nothing of the provider's own words"
    may_be_charged = fault.kind == "unresolved"
    assert answer.headers.get("x-should-retry") == ("false" if may_be_charged else None), fault
    assert answer.headers.get("retry-after") == fault.retry_after, fault


def check_books(gateway: Gateway, fault: Fault, failed: Failed) -> None:
    row = ending(failed.answer)
    assert row.kind == fault.kind, (fault, row.reason)
    if fault.drawn:  # a slow provider carries it out long after the client was answered
        wait_until(lambda: drawings(gateway, failed.answer), what=f"the drawing of {fault.directive}")
    assert drawings(gateway, failed.answer) == fault.drawn, fault
    estimate = 2 * SIZES["256x256"] + len(f"a ruby [sandbox {fault.directive}]")
    held = {"void": (0, 0), "unresolved": (2, estimate)}[fault.kind]
    assert (row.images, row.charged_tokens) == held, fault
    for answer in (failed.answer, failed.after):
        left = [answer.headers[f"x-ratelimit-remaining-{name}"] for name in ("requests", "images", "tokens")]
        assert left == ["9", str(10 - held[0]), str(100_000 - held[1])], fault
        assert '"tenant-concurrent";r=2' in answer.headers["ratelimit"], fault


@pytest.mark.parametrize(
    ("directive", "provenance", "reported"),
    [
        ("usage=missing", "missing", None),
        ("usage=zero", "estimated", 0),
        ("usage=absurd", "estimated", 10**12),
        ("usage=parts", "reported", "same"),
        ("tokens=123", "reported", 123),
    ],
)
def test_odd_usage_is_charged_by_the_rules(
    gateway: Gateway, customer: Customer, directive: str, provenance: str, reported: int | str | None
) -> None:
    prompt = f"a ruby [sandbox {directive}]"
    answer = gateway.post(customer.secret, {**SMALL, "prompt": prompt})
    total = assert_images(answer)["usage"]["total_tokens"]
    row = ending(answer)
    assert (row.kind, row.provenance, row.charged_tokens) == ("exact", provenance, total)
    assert row.reported_tokens == (total if reported == "same" else reported)
    if provenance == "reported":
        assert gateway.drawn()[answer.headers["x-request-id"]]["usage"]["total_tokens"] == total
    else:
        assert total == SIZES["256x256"] + len(prompt)
        assert (row.input_tokens, row.output_tokens) == (None, None)


@dataclass
class Scripted:
    """A provider of ours, and a model at it: it answers a prompt with the bytes that a test gave it, and closes."""

    url: str = ""
    model: str = field(default_factory=lambda: f"m{uuid.uuid4().hex[:12]}")
    answers: dict[bytes, bytes] = field(default_factory=dict)
    came: dict[bytes, list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def serve(self, listener: socket.socket) -> None:
        """Answer one connection after the other until the listener is closed."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                request = b""
                while not request.endswith(b"}"):
                    request += connection.recv(65536)
                prompt = json.loads(request.partition(b"\r\n\r\n")[2])["prompt"].encode()
                self.came[prompt].append(request)
                connection.sendall(self.answers[prompt])


@pytest.fixture(scope="module")
def scripted(gateway: Gateway, django_db_blocker: Any) -> Iterator[Scripted]:
    """The scripted provider, known to the gateway."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        scripted = Scripted(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=scripted.serve, args=[listener], daemon=True)
        thread.start()
        with django_db_blocker.unblock():
            point_at(scripted.url, name=scripted.model, default=False)
        time.sleep(1.2)  # the gateway reads the catalog every second
        yield scripted
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def http(status: str, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers])
    return head.encode() + b"\r\n\r\n" + body


def test_a_provider_gets_its_own_key_and_nothing_of_the_client(
    gateway: Gateway, make_customer: Callable[..., Customer], scripted: Scripted
) -> None:
    customer = make_customer(model=scripted.model)
    scripted.answers[b"secrets"] = http("503 Busy", b"<html>busy</html>")
    client = {"Cookie": "session=1", "X-Forwarded-For": "1.2.3.4", "X-Custom": "mine", "User-Agent": "phone/1"}
    answer = gateway.post(customer.secret, {"prompt": "secrets", "user": "u1", "model": "x"}, **client)
    assert_error(answer, 500, "outcome_unknown")
    came = scripted.came[b"secrets"]
    assert len(came) == 1, "one upstream call for one call"
    head, _, body = came[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    names = {line.partition(":")[0].lower() for line in lines[1:]}
    assert lines[0] == "POST /v1/images/generations HTTP/1.1"
    assert names <= {"authorization", "content-type", "content-length", "accept", "x-request-id", "host", "user-agent"}
    assert f"authorization: bearer {SANDBOX_KEY}" in head.decode().lower()
    assert f"x-request-id: {answer.headers['x-request-id']}" in head.decode().lower()
    for secret in (customer.secret, "session=1", "1.2.3.4", "mine", "phone/1", "u1"):
        assert secret.encode() not in came[0]
    assert b'"model":"sandbox-image-1"' in body


LEAK = f'{{"error":{{"message":"key {SANDBOX_KEY} of account org-42","code":"%s"}}}}'.encode()


@pytest.mark.parametrize(
    ("raw", "status", "kind", "booked"),
    [
        (http("400 Bad", LEAK % b"moderation_blocked"), 400, "refused_by_provider", "void"),
        (http("401 No", LEAK % b"invalid_api_key"), 500, "upstream_failed", "void"),
        (http("500 Oops", LEAK % b"server_error"), 500, "upstream_failed", "void"),
        (http("500 Oops", b"<html>oops</html>"), 500, "outcome_unknown", "unresolved"),
        (http("429 Slow", LEAK % b"x", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"), 503, "unavailable", "void"),
        (http("429 Slow", LEAK % b"x", "Retry-After: 99999999999"), 503, "unavailable", "void"),
        (http("307 Moved", b"", "Location: http://127.0.0.1:1/"), 500, "outcome_unknown", "unresolved"),
        (http("200 OK", b'{"data":[]}'), 500, "outcome_unknown", "unresolved"),
        (http("200 OK", b'{"data":[{"b64_json":"PGh0bWw+"}]}'), 500, "outcome_unknown", "unresolved"),
        (http("200 OK", b'{"data":[{"url":"javascript:alert(1)"}]}'), 500, "outcome_unknown", "unresolved"),
        (http("200 OK", b"[" * 100_000), 500, "outcome_unknown", "unresolved"),
        (http("200 OK", b'{"data":"\xff"}'), 500, "outcome_unknown", "unresolved"),
        (http("204 None", b""), 500, "outcome_unknown", "unresolved"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 500, "outcome_unknown", "unresolved"),
    ],
)
def test_no_answer_of_a_provider_leaks_or_confuses(
    gateway: Gateway,
    make_customer: Callable[..., Customer],
    scripted: Scripted,
    raw: bytes,
    status: int,
    kind: str,
    booked: str,
) -> None:
    prompt = uuid.uuid4().hex.encode()
    scripted.answers[prompt] = raw
    answer = gateway.post(make_customer(model=scripted.model).secret, {"prompt": prompt.decode()})
    assert len(scripted.came[prompt]) == 1
    message = assert_error(answer, status, kind)
    assert SANDBOX_KEY not in message
    assert "org-42" not in answer.text
    assert int(answer.headers.get("retry-after", "1")) <= 3600
    assert ending(answer).kind == booked


def test_a_provider_that_is_not_there_costs_nothing(gateway: Gateway, make_customer: Callable[..., Customer]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port, and it refuses
        name = f"m{uuid.uuid4().hex[:12]}"
        point_at(f"http://127.0.0.1:{closed.getsockname()[1]}", name=name, default=False)
        time.sleep(1.2)  # the gateway reads the catalog every second
        customer = make_customer(model=name)
        customer.limit("requests:10/day", "images:10/day")
        answer = gateway.post(customer.secret, SMALL)
    assert_error(answer, 500, "upstream_failed")
    assert "x-should-retry" not in answer.headers
    assert ending(answer).kind == "void"
    assert answer.headers["x-ratelimit-remaining-requests"] == "10", "never dispatched: the request is given back too"
    assert answer.headers["x-ratelimit-remaining-images"] == "10"


def hosted(images: int, tokens: int) -> bytes:
    links = ",".join(f'{{"url":"https://cdn.example/{number}.png"}}' for number in range(images))
    body = f'{{"created":1773223961,"data":[{links}],"usage":{{"total_tokens":{tokens}}}}}'
    return http("200 OK", body.encode())


def test_images_that_the_provider_hosts_are_passed_on(
    gateway: Gateway, make_customer: Callable[..., Customer], scripted: Scripted
) -> None:
    customer = make_customer(model=scripted.model)
    customer.limit("images:10/day", "tokens:100000/day")
    scripted.answers[b"one of three"] = hosted(1, 777)
    answer = gateway.post(customer.secret, {"prompt": "one of three", "n": 3})
    assert assert_images(answer, 1) == {
        "created": 1773223961,
        "data": [{"url": "https://cdn.example/0.png"}],
        "output_format": "png",
        "usage": {"total_tokens": 777},
    }
    assert ending(answer).images == 1, "fewer than asked for are counted as delivered"
    assert answer.headers["x-ratelimit-remaining-images"] == "9"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "99223"
    scripted.answers[b"five of two"] = hosted(5, 778)
    answer = gateway.post(customer.secret, {"prompt": "five of two", "n": 2})
    assert_images(answer, 2)


def test_more_than_the_bound_is_charged_as_reported(
    gateway: Gateway, make_customer: Callable[..., Customer], scripted: Scripted
) -> None:
    scripted.answers[b"dear"] = hosted(1, 2 * SIZES["256x256"])
    answer = gateway.post(make_customer(model=scripted.model).secret, {"prompt": "dear", "size": "256x256"})
    assert assert_images(answer)["usage"]["total_tokens"] == 2 * SIZES["256x256"]
    assert ending(answer).charged_tokens == 2 * SIZES["256x256"]

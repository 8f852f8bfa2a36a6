"""Nonsense on the wire: the process lives on, nothing is drawn, and no answer is a server error or a trace."""

import contextlib
import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests import processes
from tests.conftest import PATH, Customer, Gateway
from tests.contract import SMALL, raw_post
from tokens import issuing

# Statuses that nonsense may get; 413 and 431 for what is too large, 408 for a head that doesn't come in time.
REFUSALS = {400, 403, 404, 405, 408, 411, 413, 414, 415, 417, 421, 429, 431, 501, 505}
SECONDS = 4.0  # the server has shorter time-outs: by then it has answered or closed
MUTATIONS = int(os.environ.get("BAD_INPUT_MUTATIONS", "600"))
KILOBYTES = 65_536
PREFIX = len("POST /wp-json/")  # what isn't below a path of the API is answered by Django's own handler
HTTP2_SETTINGS = b"\0\0\x18\x04\0"


@dataclass
class Target:
    """A web process of these tests' own, whose log and pid they watch, and a customer whose quota shows what passed."""

    gateway: Gateway
    process: processes.Process
    customer: Customer

    def send(self, request: bytes, seconds: float = SECONDS) -> bytes:
        """What comes back until the server closes or is silent; b"" when it only closes."""
        parts = urlsplit(self.gateway.url)
        received = b""
        with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as connection:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError, TimeoutError):
                connection.sendall(request)
            with contextlib.suppress(ConnectionResetError, TimeoutError):
                while chunk := connection.recv(KILOBYTES):
                    received += chunk
        return received


@pytest.fixture(scope="module")
def target(provider: Path, django_db_blocker: Any) -> Iterator[Target]:
    with (
        django_db_blocker.unblock(),
        processes.web(provider, UPSTREAM_DEADLINE="4", BODY_TIMEOUT="1", GRANIAN_HTTP1_HEADER_READ_TIMEOUT="1000") as (
            url,
            process,
        ),
        httpx.Client(timeout=20) as client,
    ):
        slug = f"nonsense-{os.urandom(6).hex()}"
        tenant = issuing.create_tenant(slug, slug, origins=["*"])
        member = issuing.add_member(tenant, f"{slug}@example.com")
        customer = Customer(tenant, member, *issuing.issue_token(member, name="test"))
        customer.limit("requests:100000/day", "images:100000/day")
        yield Target(Gateway(url, provider, client), process, customer)


def problems(received: bytes) -> list[str]:
    """What no answer to nonsense may be. Nothing at all is fine: the connection was closed.

    Whoever greets the server in HTTP/2 is greeted back. HTML is for paths that aren't the API's: a page for people.
    """
    found = []
    if received.startswith(HTTP2_SETTINGS):
        return []
    statuses = [int(status) for status in re.findall(rb"(?:\A|\r\n)HTTP/1\.[01] (\d{3})", received)]
    if received and not statuses:
        found.append("no HTTP")
    found += [f"answered {status}" for status in statuses if status not in REFUSALS]
    found += [f"shows {word!r}" for word in (b"Traceback", b"Error:", b"site-packages") if word in received]
    return found


def post(token: str, body: bytes, *lines: str, drop: tuple[str, ...] = (), path: str = PATH) -> bytes:
    """A POST with further or fewer header lines; it asks for the connection's end."""
    kept = [("Host", "gateway"), ("X-Proxy-Token", token), ("Content-Length", str(len(body)))]
    kept += [("Content-Type", "application/json"), ("Connection", "close")]
    head = [f"POST {path} HTTP/1.1", *[f"{name}: {value}" for name, value in kept if name not in drop], *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


BODY = b'{"prompt":""}'  # wrong, so that whatever passes draws nothing
CHUNKED = "Transfer-Encoding: chunked"
LENGTH = ("Content-Length",)
SMALL_BODY = b'{"prompt":"smuggled","size":"256x256"}'


def nonsense(token: str) -> dict[str, bytes]:
    """Requests that no client sends, each by its name."""
    good = post(token, BODY)
    _, rest = good.split(b"\r\n", 1)
    bomb = post(token, SMALL_BODY).replace(b"Connection: close\r\n", b"")

    def first(text: bytes) -> bytes:
        return text + b"\r\n" + rest

    def with_body(body: bytes, *lines: str) -> bytes:
        return post(token, body, *lines, drop=LENGTH)

    return {
        # Request lines
        "nothing but NULs": bytes(4000),
        "bytes of all kinds": bytes(range(256)) * 40,
        "a greeting of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
        "a greeting of SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
        "a proxy's header": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + good,
        "one word": b"GET\r\n\r\n",
        "two words": b"GET /healthz\r\n\r\n",
        "no version": first(f"POST {PATH}".encode()),
        "HTTP/9.9": first(f"POST {PATH} HTTP/9.9".encode()),
        "HTTP/1.2": first(f"POST {PATH} HTTP/1.2".encode()),
        "two blanks": first(f"POST  {PATH} HTTP/1.1".encode()),
        "a tab": first(f"POST\t{PATH} HTTP/1.1".encode()),
        "a blank in the path": first(f"POST {PATH} x HTTP/1.1".encode()),
        "a NUL in the path": first(f"POST {PATH}\0 HTTP/1.1".encode()),
        "letters beyond ASCII": first(f"POST {PATH}/\xe9\xff HTTP/1.1".encode("latin-1")),
        "a method of small letters": first(f"post {PATH} HTTP/1.1".encode()),
        "a method of signs": first(f"P(ST {PATH} HTTP/1.1".encode()),
        "a method of 64 KB": first(b"P" * KILOBYTES + f" {PATH} HTTP/1.1".encode()),
        "a path of 200 KB": first(b"POST /v1/" + b"a" * 200_000 + b" HTTP/1.1"),
        "a path of escapes": first(b"POST /v1/" + b"%2e%2e%2f" * 900 + b" HTTP/1.1"),
        "half an escape": first(b"POST /images/%f/%zz HTTP/1.1"),
        "no path": first(b"POST HTTP/1.1"),
        "a fragment": first(f"POST {PATH}#x HTTP/1.1".encode()),
        "a whole URL": first(f"POST http://elsewhere.example{PATH} HTTP/1.1".encode()),
        "a tunnel": b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "a star": b"POST * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "line feeds alone": good.replace(b"\r\n", b"\n").replace(b"\n\n", b"\n\n\n"),
        "returns alone": good.replace(b"\r\n", b"\r"),
        "empty lines and no request": b"\r\n" * 5000,
        # Headers
        "a header of 64 KB": post(token, BODY, "X-Large: " + "x" * KILOBYTES * 8),
        "5000 headers": post(token, BODY, *[f"X-{number}: 1" for number in range(5000)]),
        "no colon": post(token, BODY, "nonsense"),
        "a blank before the colon": post(token, BODY, "X-Odd : 1"),
        "no name": post(token, BODY, ": 1"),
        "a name of signs": post(token, BODY, "X(Odd): 1"),
        "a name beyond ASCII": post(token, BODY, "X-\xe9: 1"),
        "a folded header": post(token, BODY, "X-Odd: 1\r\n folded"),
        "a NUL in a header": post(token, BODY, "X-Odd: a\0b"),
        "a return in a header": post(token, BODY, "X-Odd: a\rb"),
        "a host twice": post(token, BODY, "Host: other"),
        "a host of signs": post(token, BODY, "Host: a b/c?d#e\\@", drop=("Host",)),
        "a token twice": post(token, BODY, "X-Proxy-Token: other"),
        "a token beyond ASCII": post("gem_\xff\xfe" * 20, BODY),
        "a token of 60 KB": post("gem_" + "a" * 60_000, BODY),
        "a token of a tab": post("gem_\ta", BODY),
        "bearers by the hundred": post(token, BODY, "Authorization: " + "Bearer " * 500),
        "hops by the thousand": post(token, BODY, "X-Forwarded-For: " + "1.2.3.4, " * 3000),
        "a key of 40 KB": post(token, BODY, "Idempotency-Key: " + "k" * 40_000),
        "an origin of 40 KB": post(token, BODY, "Origin: https://" + "o" * 40_000),
        "an origin beyond ASCII": post(token, BODY, "Origin: https://\xe9\xff"),
        "a request id of markup": post(token, BODY, "X-Request-Id: <script>\x80"),
        "an agent beyond ASCII": post(token, BODY, "User-Agent: \xff\xfe\xf0\x9f"),
        "cookies of 40 KB": post(token, BODY, "Cookie: " + "a=b; " * 8000),
        # Lengths and chunks
        "a negative length": post(token, BODY, "Content-Length: -1", drop=LENGTH),
        "a length with a sign": post(token, BODY, "Content-Length: +13", drop=LENGTH),
        "a length in hexadecimal": post(token, BODY, "Content-Length: 0x0d", drop=LENGTH),
        "a fraction": post(token, BODY, "Content-Length: 13.0", drop=LENGTH),
        "a length of 2^64": post(token, BODY, "Content-Length: 18446744073709551629", drop=LENGTH),
        "a length of 5000 digits": post(token, BODY, "Content-Length: " + "9" * 5000, drop=LENGTH),
        "a length of other digits": post(token, BODY, "Content-Length: \xb2", drop=LENGTH),
        "an empty length": post(token, BODY, "Content-Length:", drop=LENGTH),
        "two lengths": post(token, BODY, "Content-Length: 3"),
        "two lengths in one": post(token, BODY, "Content-Length: 13, 14", drop=LENGTH),
        "a length and chunks": post(token, b"0\r\n\r\n", CHUNKED),
        "no length": post(token, BODY, drop=LENGTH),
        "an unknown coding": with_body(BODY, "Transfer-Encoding: gzip"),
        "chunked and not last": with_body(BODY, "Transfer-Encoding: chunked, gzip"),
        "chunked twice": with_body(b"0\r\n\r\n", CHUNKED, CHUNKED),
        "chunked with a NUL": with_body(b"0\r\n\r\n", "Transfer-Encoding: \0chunked"),
        "a chunk of letters": with_body(b"zz\r\n{}\r\n0\r\n\r\n", CHUNKED),
        "a negative chunk": with_body(b"-2\r\n{}\r\n0\r\n\r\n", CHUNKED),
        "a chunk of 2^68": with_body(b"f" * 17 + b"\r\n{}", CHUNKED),
        "a chunk without its end": with_body(b"2\r\n{}XX0\r\n\r\n", CHUNKED),
        "chunks without end": with_body(b"2\r\n{}\r\n", CHUNKED),
        "an extension of 100 KB": with_body(b"2;" + b"x" * 100_000 + b"\r\n{}\r\n0\r\n\r\n", CHUNKED),
        "trailers of 100 KB": with_body(b"2\r\n{}\r\n0\r\nX-Large: " + b"x" * 100_000 + b"\r\n\r\n", CHUNKED),
        "chunks of a byte": with_body(b"1\r\n \r\n" * 20_000 + b"0\r\n\r\n", CHUNKED),
        "less than its length": post(token, BODY, "Content-Length: 500", drop=LENGTH),
        "more than its length": good + bytes(1000),
        # What is asked of the connection
        "an odd expectation": post(token, BODY, "Expect: 200-maybe"),
        "an upgrade to HTTP/2": post(token, BODY, "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"),
        "an upgrade to a socket": b"GET /v1/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        "a compressed body": post(token, b"\x1f\x8b\x08\0", "Content-Encoding: gzip"),
        "a half that waits": good[: len(good) // 2],
        # Bodies beside those of test_contract_bodies
        "a body of NULs": post(token, bytes(200_000)),
        "100,000 members": post(token, b"{" + b",".join(b'"%d":1' % number for number in range(20_000)) + b"}"),
        "names of prototypes": post(token, b'{"__proto__":{"prompt":"a"},"constructor":1}'),
        "a prompt of escapes": post(token, b'{"prompt":"' + b"\\u0000" * 40_000 + b'"}'),
        "a prompt of backslashes": post(token, b'{"prompt":"' + b"\\" * 100_001 + b'"}'),
        "a member of 200 KB": post(token, b'{"' + b"p" * 200_000 + b'":1}'),
        "numbers of 4000 digits": post(token, b'{"n":[' + b",".join([b"9" * 4000] * 60) + b"]}"),
        # A second request within the first: whoever reads the length otherwise would draw for it
        "a request in a length": with_body(b"0\r\n\r\n" + bomb, "Content-Length: 5", "Transfer-Encoding: xchunked"),
        "a request in a header": post(token, BODY, "X-Odd: a\n\n" + bomb.decode("latin-1")),
    }


def test_nonsense_is_refused_or_cut_and_the_process_lives_on(target: Target) -> None:
    workers, before = target.process.children(), len(target.process.text())
    cases = nonsense(target.customer.secret)
    assert len(cases) >= 80
    begun = time.monotonic()
    with ThreadPoolExecutor(32) as threads:
        received = dict(zip(cases, threads.map(target.send, cases.values()), strict=True))
    assert time.monotonic() - begun < 3 * SECONDS, "nothing hangs"
    assert {name: found for name, answer in received.items() if (found := problems(answer))} == {}
    assert sum(bool(answer) for answer in received.values()) > len(cases) / 2, "most are answered, not only cut"
    check_unharmed(target, workers, before)


def check_unharmed(target: Target, workers: list[int], before: int) -> None:
    """The same worker answers a good call; nothing else was drawn or counted; the log has no trace."""
    answer = target.gateway.post(target.customer.secret, SMALL)
    assert answer.status_code == 200
    assert target.process.children() == workers, "no worker died"
    assert int(answer.headers["x-ratelimit-remaining-images"]) == 100_000 - calls(target), "nothing was smuggled in"
    logged = target.process.text()[before:]
    for word in ("Traceback", "a request failed", "a view failed", "panicked", target.customer.secret):
        assert word not in logged


_good_calls: Counter[int] = Counter()


def calls(target: Target) -> int:
    """How many good calls these tests have made, this one included."""
    _good_calls[id(target)] += 1
    return _good_calls[id(target)]


def mutated(chance: random.Random, request: bytes) -> bytes:
    """A request with up to six places removed, replaced, doubled or filled; the first part of its path stays ours."""
    odd = (
        b"\0",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b"\xff",
        b"%",
        b'"',
        b"{",
        b"\\",
        b"0",
        b"-",
        b",",
    )
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(PREFIX, len(request))
        end = at + chance.choice((0, 1, 1, 2, 8))
        request = request[:at] + chance.choice((*odd, b"", request[at:end] * 2)) + request[end:]
    return request


def test_no_mutation_of_a_request_gives_a_server_error(target: Target) -> None:
    workers, before = target.process.children(), len(target.process.text())
    seed = int(os.environ.get("BAD_INPUT_SEED", random.randrange(2**32)))
    chance = random.Random(seed)
    requests = [
        raw_post(target.customer.secret, BODY, "Connection: close", "Origin: https://a.example", "Idempotency-Key: k"),
        post(target.customer.secret, b"d\r\n" + BODY + b"\r\n0\r\n\r\n", CHUNKED, drop=LENGTH),
        post(target.customer.secret, BODY, "Authorization: Bearer gem_x", path="/wp-json/x?expires=1"),
    ]
    sent = [mutated(chance, chance.choice(requests)) for _ in range(MUTATIONS)]
    with ThreadPoolExecutor(64) as threads:
        received = list(threads.map(target.send, sent))
    wrong = [(request, found) for request, got in zip(sent, received, strict=True) if (found := problems(got))]
    assert wrong == [], f"BAD_INPUT_SEED={seed}"
    assert sum(got.startswith(b"HTTP/1.1 4") for got in received) > MUTATIONS / 3
    check_unharmed(target, workers, before)


def test_a_pipeline_of_nonsense_is_answered_in_order_or_cut(target: Target) -> None:
    token = target.customer.secret
    one = raw_post(token, BODY)
    received = target.send(one * 20 + b"\0\0\r\n\r\n" + one, seconds=1)
    assert problems(received) == []
    assert 1 <= received.count(b"HTTP/1.1 400") <= 21


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 400 Bad Request\r\n\r\nTraceback (most recent call last)",
        b"\x00\x01",
    ],
)
def test_control_an_answer_that_must_not_be_is_noticed(answer: bytes) -> None:
    assert problems(answer)
    assert problems(b"") == problems(b"HTTP/1.1 400 Bad Request\r\n\r\n") == []

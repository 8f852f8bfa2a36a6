"""What every answer of the endpoint owes its client, and how a test finds out what became of a call."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.conftest import PATH, Gateway
from tests.processes import wait_until
from usage.drain import drain
from usage.models import UsageRecord

SMALL = {"prompt": "a ruby at dawn", "size": "256x256"}
RETRY_AFTER = {"rate_limited", "in_flight", "unavailable"}  # always; quota_exceeded unless it never frees
NEVER_RETRY = {"invalid_token", "not_allowed", "quota_exceeded", "outcome_unknown"}
_addresses = itertools.count(os.getpid() * 7)


def assert_error(answer: httpx.Response, status: int, kind: str) -> str:
    """Check everything that the contract says of an error, and return its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    content = json.loads(answer.content)
    assert list(content) == ["error"], "one member"
    error = content["error"]
    assert {"message", "code", "type", "request_id"} <= set(error)
    assert (error["code"], error["type"]) == (status, kind), error["message"]
    assert isinstance(error["message"], str)
    assert error["message"].strip()
    assert "Traceback" not in answer.text
    assert error["request_id"] == assert_request_id(answer)
    if kind in RETRY_AFTER:
        assert re.fullmatch(r"[1-9]\d*", answer.headers["retry-after"])
    if kind in NEVER_RETRY:
        assert answer.headers["x-should-retry"] == "false"
    message: str = error["message"]
    return message


def assert_request_id(answer: httpx.Response) -> str:
    """The answer's request id, a UUIDv7."""
    text: str = answer.headers["x-request-id"]
    assert uuid.UUID(text).version == 7
    return text


def assert_images(answer: httpx.Response, n: int = 1) -> dict[str, Any]:
    """Check a success of `n` images, and return its body."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert_request_id(answer)
    content: dict[str, Any] = json.loads(answer.content)
    assert list(content) == ["created", "data", "output_format", "usage"]
    assert isinstance(content["created"], int)
    assert content["output_format"] == "png"
    assert list(content["usage"]) == ["total_tokens"]
    assert isinstance(content["usage"]["total_tokens"], int)
    assert len(content["data"]) == n
    assert len({entry["url"] for entry in content["data"]}) == n
    return content


@contextlib.contextmanager
def elsewhere(gateway: Gateway, address: str = "") -> Iterator[Gateway]:
    """The same gateway, called from an address of its own, so that failed authentications are nobody else's."""
    number = next(_addresses)
    address = address or f"127.{1 + number // 62_500 % 250}.{number // 250 % 250}.{1 + number % 250}"
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=30) as client:
        yield dataclasses.replace(gateway, client=client)


def raw_exchange(gateway: Gateway, request: bytes, seconds: float = 10) -> bytes:
    """Send bytes over a connection of their own; what comes back until the server closes or stays silent."""
    parts = urlsplit(gateway.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as connection:
        connection.sendall(request)
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
                if whole(received):
                    break
    return received


def whole(received: bytes) -> bool:
    """Whether `received` is a complete answer with a Content-Length."""
    head, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)^content-length: *(\d+)", head, re.MULTILINE)
    return bool(end and length and len(body) >= int(length[1]))


def read_raw(received: bytes) -> httpx.Response:
    """An answer that came over a raw connection."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return httpx.Response(int(first.split()[1]), headers=headers, content=body)


def raw_post(token: str, body: bytes, *headers: str, path: str = PATH, length: int | None = None) -> bytes:
    """The bytes of a POST; `headers` are whole lines."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: gateway",
        f"X-Proxy-Token: {token}",
        f"Content-Length: {len(body) if length is None else length}",
        "Content-Type: application/json",
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def ending(answer: httpx.Response) -> UsageRecord:
    """The ledger's row of the call that `answer` belongs to, once it is booked."""
    rows = UsageRecord.objects.filter(request_id=answer.headers["x-request-id"])

    def booked() -> bool:
        drain()
        return rows.exists()

    wait_until(booked, what="the booking of the call")
    return rows.get()


def drawings(gateway: Gateway, answer: httpx.Response) -> int:
    """How often the provider carried out the call that `answer` belongs to."""
    path = gateway.folder / "sandbox" / "generations.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(json.loads(line)["request_id"] == answer.headers["x-request-id"] for line in lines)

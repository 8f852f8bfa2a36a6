"""What a provider's answer is taken for, byte by byte; the table of outcomes is tested over HTTP."""

import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.judging import Delivered, Failed, judge
from gateway.upstream import Answer
from tests.conftest import PATH, Customer, Gateway


def delivered(body: bytes, n: int = 2, estimate: int = 1000) -> Delivered:
    """Judge a 200 that must count as a success."""
    outcome = judge(Answer(200, body), n, estimate)
    assert isinstance(outcome, Delivered)
    return outcome


@pytest.mark.parametrize(
    ("usage", "charged", "provenance"),
    [
        (b'{"total_tokens": 7}', 7, "reported"),
        (b'{"total_tokens": 10000}', 10_000, "reported"),
        (b'{"total_tokens": 10001}', 1000, "estimated"),
        (b'{"total_tokens": 0}', 1000, "estimated"),
        (b'{"total_tokens": -3}', 1000, "estimated"),
        (b'{"total_tokens": 1.5}', 1000, "estimated"),
        (b'{"total_tokens": true}', 1000, "estimated"),
        (b'{"total_tokens": "12"}', 1000, "estimated"),
        (b'{"total_tokens": 99999999999999999999999}', 1000, "estimated"),
        (b'{"total_tokens": null, "input_tokens": 3}', 1000, "missing"),
        (b'{"input_tokens": 3, "output_tokens": 4}', 1000, "missing"),
        (b"null", 1000, "missing"),
        (b"[]", 1000, "missing"),
        (b'{"total_tokens": 7, "x": "\xff"}', 1000, "missing"),
        (b'{"input_tokens": 0, "output_tokens": 0, "total_tokens": 9}', 9, "reported"),
    ],
)
def test_usage_is_what_was_reported_or_marked(usage: bytes, charged: int, provenance: str) -> None:
    outcome = delivered(b'{"data": [{"b64_json": "aGk="}], "usage": ' + usage + b"}")
    assert (outcome.usage.charged, outcome.usage.provenance) == (charged, provenance)


@pytest.mark.parametrize("created", ["2026", None, -1, 1.5, True, [], 2**60])
def test_an_odd_date_does_not_throw_an_image_away(created: object) -> None:
    text = httpx.Response(200, json={"created": created, "data": [{"b64_json": "aGk="}]}).content
    assert delivered(text).created is None


def test_an_image_is_its_base64_or_else_its_url() -> None:
    body = b'{"data": [{"url": "https://a.example/1.png", "b64_json": ""}, {"b64_json": "aGk=", "url": 5}]}'
    outcome = delivered(body)
    assert ([bytes(text) for text in outcome.encoded], outcome.urls) == ([b"aGk="], ["https://a.example/1.png"])


def test_more_images_than_were_asked_for_are_left_out() -> None:
    assert len(delivered(b'{"data": [{"b64_json": "aGk="}, {"b64_json": "aGk="}]}', n=1).encoded) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"data": []}',
        b'{"data": [{}]}',
        b'{"data": [{"url": "javascript:alert(1)"}]}',
        b'{"data": [{"url": "file:///etc/passwd"}]}',
        b'{"data": [{"b64_json": null, "url": null}]}',
        b'{"data": "\xff"}',
        b'{"data": ' + b"[" * 100_000,
    ],
)
def test_a_success_without_an_image_is_unresolved(body: bytes) -> None:
    outcome = judge(Answer(200, body), 1, 1000)
    assert isinstance(outcome, Failed)
    assert (outcome.kind, outcome.error.status, outcome.error.type) == ("unresolved", 500, "outcome_unknown")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_ours(
    gateway: Gateway, customer: Customer
) -> None:
    def failures() -> list[str]:
        text = httpx.get(f"{gateway.url}/metrics").text
        return [line for line in text.splitlines() if "requests_total" in line and 'internal_error"' in line]

    before = failures()
    address = urlsplit(gateway.url)
    assert address.hostname
    assert address.port
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nX-Proxy-Token: {customer.secret}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
    for _ in range(3):
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(head.encode())
            time.sleep(0.05)
    time.sleep(0.3)
    assert failures() == before

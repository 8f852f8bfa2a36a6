"""415, 413 and 400: what the endpoint makes of bodies, however they come, over HTTP."""

import contextlib
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import PATH, Customer, Gateway
from tests.contract import SMALL, assert_error, assert_request_id, elsewhere, raw_exchange, raw_post, read_raw
from tests.test_validation import ACCEPTED, REFUSED
from tokens import issuing

LIMIT = 256 * 1024
# Statuses that a client can bring about by itself. 431: the server refuses before our code sees a request.
BY_THE_CLIENT = {400, 403, 404, 405, 413, 415, 429, 431}
JSON = {"Content-Type": "application/json"}


def padded(length: int) -> bytes:
    """A body of that many bytes that is wrong only in its prompt, so that nothing is drawn for it."""
    return b'{"prompt":""' + b" " * (length - 13) + b"}"


@pytest.fixture(scope="module")
def limited(provider: Path, django_db_blocker: Any) -> Customer:
    """A customer with a limit of each metric, none of which a refused body may touch: so all of them may share it."""
    with django_db_blocker.unblock():
        slug = f"bodies-{uuid.uuid4().hex[:12]}"
        tenant = issuing.create_tenant(slug, slug)
        member = issuing.add_member(tenant, f"{slug}@example.com")
        customer = Customer(tenant, member, *issuing.issue_token(member, name="test"))
        customer.limit("requests:100/day", "images:100/day", "tokens:1000000/day", "concurrent:5")
        return customer


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_body_gets_400_that_names_what_is_wrong(gateway: Gateway, limited: Customer, name: str) -> None:
    body, naming = REFUSED[name]
    answer = gateway.post(limited.secret, body)
    assert naming in assert_error(answer, 400, "invalid_request")
    assert answer.headers["x-ratelimit-remaining-requests"] == "100", "a refused body takes nothing"
    assert answer.headers["x-ratelimit-remaining-images"] == "100"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "1000000"


def test_the_accepted_bodies_are_accepted(gateway: Gateway, customer: Customer) -> None:
    small = [body for body, asked in ACCEPTED if len(body) < 200 and asked.size == "256x256"]
    for body in [*small, *(body[:-1] + b',"size":"256x256"}' for body, asked in ACCEPTED[4:6])]:
        assert gateway.post(customer.secret, body).status_code == 200


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", ""],
)
def test_another_content_type_gets_415(gateway: Gateway, limited: Customer, content_type: str) -> None:
    answer = gateway.post(limited.secret, SMALL, **{"Content-Type": content_type})
    assert_error(answer, 415, "unsupported_media_type")
    assert answer.headers["x-ratelimit-remaining-requests"] == "100"


def test_no_content_type_gets_415(gateway: Gateway, limited: Customer) -> None:
    answer = gateway.client.post(gateway.url + PATH, content=b"{}", headers={"X-Proxy-Token": limited.secret})
    assert_error(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    [
        *("application/json; charset*=x''utf-8", "application/json; charset*=utf-8''%ff", "; charset*=''"),
        *("application/json; charset=\x80", "x" * 20_000, "application/json;" + "a=b;" * 5_000, ";" * 9_000),
    ],
)
def test_a_content_type_that_frameworks_stumble_over(gateway: Gateway, limited: Customer, content_type: str) -> None:
    line = f"Content-Type: {content_type}"
    request = raw_post(limited.secret, b"{}").replace(b"Content-Type: application/json", line.encode("latin-1"))
    answer = read_raw(raw_exchange(gateway, request))
    assert_error(answer, 415 if answer.status_code == 415 else 400, answer.json()["error"]["type"])


def test_the_largest_body_passes_and_one_byte_more_gets_413(gateway: Gateway, limited: Customer) -> None:
    assert_error(gateway.post(limited.secret, padded(LIMIT)), 400, "invalid_request")
    answer = gateway.post(limited.secret, padded(LIMIT + 1))
    assert "256 KB" in assert_error(answer, 413, "too_large")
    assert answer.headers["x-ratelimit-remaining-requests"] == "100"


def test_a_declared_length_is_refused_before_the_body_comes(gateway: Gateway, limited: Customer) -> None:
    began = time.monotonic()
    answer = read_raw(raw_exchange(gateway, raw_post(limited.secret, b"", length=257 * 1024)))
    assert_error(answer, 413, "too_large")
    assert time.monotonic() - began < 0.9, "it did not wait for the body"


def test_a_chunked_body_over_the_limit_gets_413(gateway: Gateway, limited: Customer) -> None:
    def chunks(length: int) -> Iterator[bytes]:
        body = padded(length)
        for start in range(0, length, 8192):
            yield body[start : start + 8192]

    headers = {"X-Proxy-Token": limited.secret, **JSON}
    for length, status, kind in [(LIMIT, 400, "invalid_request"), (257 * 1024, 413, "too_large")]:
        answer = gateway.client.post(gateway.url + PATH, content=chunks(length), headers=headers)
        assert_error(answer, status, kind)


def test_the_token_is_checked_before_the_body(gateway: Gateway) -> None:
    with elsewhere(gateway) as there:
        assert_error(there.post("gem_x", padded(300 * 1024)), 403, "invalid_token")
        assert_error(there.post("gem_x", SMALL, **{"Content-Type": "text/plain"}), 403, "invalid_token")


def test_the_content_type_is_checked_before_the_length(gateway: Gateway, limited: Customer) -> None:
    answer = gateway.post(limited.secret, padded(300 * 1024), **{"Content-Type": "text/plain"})
    assert_error(answer, 415, "unsupported_media_type")


def test_a_body_that_does_not_come_gets_400(gateway: Gateway, limited: Customer) -> None:
    answer = read_raw(raw_exchange(gateway, raw_post(limited.secret, b'{"prompt":', length=100)))
    assert "in time" in assert_error(answer, 400, "invalid_request")


def test_a_body_that_drips_has_a_deadline_of_its_own(gateway: Gateway, limited: Customer) -> None:
    parts, began, received = urlsplit(gateway.url), time.monotonic(), b""
    with socket.create_connection((parts.hostname, parts.port), timeout=0.1) as connection:
        connection.sendall(raw_post(limited.secret, b"", length=1000))
        while not received and time.monotonic() - began < 5:
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(65536)
    assert_error(read_raw(received), 400, "invalid_request")


def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(gateway: Gateway, limited: Customer) -> None:
    parts = urlsplit(gateway.url)
    for _ in range(5):
        with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
            connection.sendall(raw_post(limited.secret, b'{"prompt":', length=100))
    assert_error(gateway.post(limited.secret, b"{}"), 400, "invalid_request")


def test_a_body_in_several_pieces_is_one_body(gateway: Gateway, customer: Customer) -> None:
    pieces = iter([b'{"prompt":"a ru', b'by","size"', b':"256x256"}'])
    headers = {"X-Proxy-Token": customer.secret, **JSON}
    assert gateway.client.post(gateway.url + PATH, content=pieces, headers=headers).status_code == 200


def test_an_answer_to_an_unread_body_ends_the_connection_and_says_so(gateway: Gateway, limited: Customer) -> None:
    with elsewhere(gateway) as there:
        for token, length, content_type, close in [
            ("wrong", 2, "application/json", "close"),
            (limited.secret, 2, "text/plain", "close"),
            (limited.secret, 300_000, "application/json", "close"),
            (limited.secret, 2, "application/json", None),
        ]:
            for _ in range(5):
                answer = there.post(token, b"[" * length, **{"Content-Type": content_type})
                assert answer.headers.get("connection") == close, answer.text
        assert "connection" not in there.client.post(there.url + PATH).headers, "without a body none is unread"


header_values = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"))
odd_headers = st.dictionaries(
    st.sampled_from(
        [
            *("Content-Type", "Accept", "Origin", "Authorization", "Idempotency-Key", "X-Request-Id", "Cookie", "Host"),
            *("X-Forwarded-For", "X-Forwarded-Proto", "Content-Encoding", "User-Agent", "Range", "X-HTTP-Method"),
        ]
    ),
    header_values | st.sampled_from(["application/json", "null", "gzip", "a,b", "Bearer", "bytes=0-", "PUT"]),
    max_size=4,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=64) | st.sampled_from([body for body, _ in REFUSED.values() if len(body) < 1000]),
    headers=odd_headers,
    path=st.just(PATH) | st.text(alphabet="/%.?#;&=aZ0é\0", max_size=12).map("/v1/".__add__),
    method=st.sampled_from(["POST", "POST", "POST", "GET", "HEAD", "PUT", "OPTIONS", "BREW"]),
)
def test_no_input_gives_a_server_error_or_html(
    gateway: Gateway, customer: Customer, body: bytes, headers: dict[str, str], path: str, method: str
) -> None:
    sent: dict[str, Any] = {name: value.strip(" \t").encode("latin-1") for name, value in headers.items()}
    sent = {"X-Proxy-Token": customer.secret.encode(), **JSON, **sent}
    try:
        url = httpx.URL(gateway.url + path)
    except httpx.InvalidURL:
        return
    answer = gateway.client.request(method, url, content=body, headers=sent)
    assert answer.status_code in BY_THE_CLIENT or (method == "OPTIONS" and answer.status_code == 204), answer.text
    assert "html" not in answer.headers.get("content-type", "")
    if answer.status_code not in {204, 431}:
        assert_request_id(answer)
        if method != "HEAD":
            assert_error(answer, answer.status_code, answer.json()["error"]["type"])


targets = st.binary(max_size=40).map(lambda tail: b"".join(bytes([byte]) for byte in tail if byte not in b" \r\n\t"))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tail=targets, header=st.binary(max_size=40), start=st.sampled_from(["/v1/", "/images/", f"{PATH}?", "/wp-json/"])
)
def test_no_bytes_on_the_wire_give_a_server_error_or_html(
    gateway: Gateway, limited: Customer, tail: bytes, header: bytes, start: str
) -> None:
    value = bytes(byte for byte in header if byte not in b"\r\n\0")
    request = raw_post(limited.secret, b"{}", path=start + tail.decode("latin-1"))
    request = request.replace(b"\r\n\r\n", b"\r\nX-Odd: " + value + b"\r\nConnection: close\r\n\r\n", 1)
    received = raw_exchange(gateway, request)
    answer = read_raw(received)
    assert answer.status_code in BY_THE_CLIENT, received
    assert b"<html" not in received.lower()


def test_a_query_that_is_no_text_is_no_server_error(gateway: Gateway, limited: Customer) -> None:
    headers = {"X-Proxy-Token": limited.secret}
    assert_error(gateway.client.post(f"{gateway.url}{PATH}?%ff=%00", headers=headers), 415, "unsupported_media_type")
    received = raw_exchange(gateway, raw_post(limited.secret, b"{}", path=PATH + "?\xff\xfe"))
    assert read_raw(received).status_code == 400, "the server's own word, without a body"


def test_a_query_of_many_fields_is_no_server_error(gateway: Gateway) -> None:
    answer = gateway.client.get(f"{gateway.url}/images/2026-11-22/a.png?" + "a=1&" * 2000)
    assert_error(answer, 400, "invalid_request")


def test_headers_over_64_kb_are_refused_without_html(gateway: Gateway, limited: Customer) -> None:
    received = raw_exchange(gateway, raw_post(limited.secret, b"{}", f"X-Large: {'x' * 200_000}"))
    assert read_raw(received).status_code in BY_THE_CLIENT
    assert b"<html" not in received.lower()

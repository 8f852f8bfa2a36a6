"""What the admin and the management API are sent has a bound, before anybody is asked who sends it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from config.bodies import MOST_BYTES, bounded
from tests.conftest import Gateway

MEGABYTE = bytes(1024 * 1024)


def endless() -> Iterator[bytes]:
    for _ in range(MOST_BYTES // len(MEGABYTE) + 2):
        yield MEGABYTE


@pytest.mark.parametrize("path", ["/admin/login/", "/api/tokens"])
@pytest.mark.parametrize("declared", [True, False])
def test_what_is_too_large_is_refused_unread(gateway: Gateway, path: str, declared: bool) -> None:
    content: Any = b"".join(endless()) if declared else endless()
    with httpx.Client(timeout=30) as client:
        try:
            answer = client.post(gateway.url + path, content=content)
        except (httpx.WriteError, httpx.ReadError):  # the server closed the connection while more was to come
            return
    assert answer.status_code == 413
    if path.startswith("/api/"):
        assert answer.json()["error"]["type"] == "too_large"
        assert answer.headers["X-Request-Id"] == answer.json()["error"]["request_id"]
    else:
        assert "This is too large" in answer.text
    assert gateway.client.get(gateway.url + "/admin/login/").status_code == 200


def answered(messages: list[dict[str, Any]], pause: float = 0, most: int = 10) -> tuple[list[int], int]:
    """The statuses that a client gets who sends these, and how many bytes the application saw."""
    sent, seen = [], 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal seen
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            seen += len(message["body"])
            if not message["more_body"]:
                await send({"type": "http.response.start", "status": 200})
                return

    async def receive() -> Any:
        await asyncio.sleep(pause)
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message.get("status"))

    scope = {"type": "http", "path": "/api/tokens", "headers": []}
    asyncio.run(bounded(application, most, seconds=0.2)(scope, receive, send))
    return [status for status in sent if status], seen


def body(text: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": text, "more_body": more}


def test_pieces_are_counted_together_and_waited_for_so_long() -> None:
    assert answered([body(b"12345", True), body(b"67890", False)]) == ([200], 10)
    assert answered([body(b"12345", True), body(b"678901", False)]) == ([413], 5)
    assert answered([body(b"1", True) for _ in range(9)], pause=0.09)[0] == [408]

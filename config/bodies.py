"""A bound on what the admin and the management API are sent.

Django puts the whole body of a request on disk before it asks who sends it: without a bound anybody could fill it, or
hold connections open by sending a byte now and then.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from django.template.loader import render_to_string

from config.requestids import make_request_id

MOST_BYTES = 16 * 1024 * 1024  # more than any file that a page takes
SECONDS = 60.0  # for all of it to arrive
TOO_LARGE = (413, "too_large", "This is too large", f"A request may have {MOST_BYTES // 1024**2} MB.")
TOO_SLOW = (408, "invalid_request", "This took too long", "The request didn't arrive whole in time. Send it again.")

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]  # servers and frameworks name these differently


def bounded(application: Application, most: int = MOST_BYTES, seconds: float = SECONDS) -> Application:
    """The same application, which never sees a body that is larger, or comes more slowly: 413 or 408 instead."""

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > most:
            await _refuse(scope, send, *TOO_LARGE)
            return
        size, whole, until = 0, False, time.monotonic() + seconds
        refusal: tuple[int, str, str, str] | None = None

        async def counted() -> Message:
            nonlocal size, whole, refusal
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                refusal = TOO_SLOW
                return {"type": "http.disconnect"}  # Django then stops, and answers nothing
            size += len(message.get("body", b""))
            whole = not message.get("more_body")
            if size > most:
                refusal = TOO_LARGE
                return {"type": "http.disconnect"}
            return message

        await application(scope, counted, send)
        if refusal is not None:
            await _refuse(scope, send, *refusal)

    return answer


async def _refuse(scope: Message, send: Send, status: int, kind: str, title: str, text: str) -> None:
    """Answer, and end the connection: what is still to come of the body isn't read."""
    headers = [(b"connection", b"close"), (b"cache-control", b"no-store")]
    if scope["path"].startswith("/api/"):
        request_id = make_request_id()
        headers.append((b"x-request-id", request_id.encode()))
        error = {"message": text, "code": status, "type": kind, "request_id": request_id}
        body, content_type = json.dumps({"error": error}), b"application/json"
    else:
        body, content_type = render_to_string("error.html", {"title": title, "text": text}), b"text/html; charset=utf-8"
    headers.append((b"content-type", content_type))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})

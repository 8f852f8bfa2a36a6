"""A request of the API, as the lean handler makes it."""

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from typing import Any

from django.core.handlers.asgi import ASGIRequest

from config.addresses import client_address
from config.requestids import make_request_id
from gateway.calls import Call
from gateway.deadlines import Deadline
from gateway.errors import ApiError, InvalidRequest, TooLarge
from gateway.inflight import Receive
from gateway.runtime import Runtime
from tokens.admission.principal import Principal

Send = Callable[[dict[str, Any]], Awaitable[None]]


class LeanRequest(ASGIRequest):
    """A request whose body is read only when a view asks for it."""

    def __init__(self, scope: Any, receive: Receive, runtime: Runtime) -> None:
        super().__init__(scope, io.BytesIO())
        self.runtime = runtime
        self.receive = receive
        self.begun_at = time.time()
        self.request_id = make_request_id()
        meta = self.META
        self.origin = meta.get("HTTP_ORIGIN", "")
        self.client_address = client_address(
            meta.get("REMOTE_ADDR", ""), meta.get("HTTP_X_FORWARDED_FOR"), runtime.bounds.trusted_proxies
        )
        self.unread = meta.get("CONTENT_LENGTH", "0") != "0" or "HTTP_TRANSFER_ENCODING" in meta  # whether a body waits
        self.error_type = ""
        self.error: ApiError | None = None
        self.route = "unknown"
        self.known: Principal | None = None
        self.call: Call | None = None

    def _set_content_type_params(self, meta: Any) -> None:
        """Nothing of it is read here, and Django's reading fails on some spellings: before there is a request id."""
        self.content_type, self.content_params = "", {}

    async def read_body(self) -> bytes:
        """The whole body. Raises TooLarge over the limit, InvalidRequest when it doesn't arrive whole and in time."""
        declared, limit = self.META.get("CONTENT_LENGTH", ""), self.runtime.bounds.body_limit
        if declared.isdigit() and int(declared) > limit:
            raise TooLarge(f"The body may have at most {limit // 1024} KB.")
        try:
            with Deadline(asyncio.get_running_loop(), self.runtime.bounds.body_timeout):
                return await self._read(limit)
        except TimeoutError:
            raise InvalidRequest("The body didn't arrive in time.") from None

    async def _read(self, limit: int) -> bytes:
        chunks, size = [], 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                # The client left, or sent chunks that aren't; the server itself would answer the latter with 500.
                raise InvalidRequest("The body broke off, or can't be read.")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"The body may have at most {limit // 1024} KB.")
            chunks.append(chunk)
            if not message.get("more_body"):
                self.unread = False
                return b"".join(chunks)

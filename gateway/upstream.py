"""Step 4: the upstream call to a provider that speaks the OpenAI Images API.

The one module that knows httpx: its request, response and error types over pyreqwest's transport, which costs a
fraction of httpx's own. Whether a call was dispatched is decided by our own flag, never by an exception's type:
transports report "the provider read the request, then hung" as a failure to connect.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache

import httpx
import msgspec
from pyreqwest.client import ClientBuilder
from pyreqwest.compatibility.httpx import HttpxTransport

from gateway.answermemory import AnswerMemory, Held
from gateway.catalog import UpstreamModel
from gateway.validation import GenerationRequest

PASSED_HEADERS = ("retry-after", "x-request-id")  # all that is ever read of a provider's headers


@dataclass(slots=True)
class Answer:
    """A complete answer: status, the allow-listed headers, and the whole body, which `held` accounts for."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    held: Held | None = None


class UpstreamError(Exception):
    """There is no complete answer. `dispatched`: the provider may have got the request. `kind`: an error type."""

    def __init__(self, kind: str, dispatched: bool) -> None:
        super().__init__(kind)
        self.kind = kind
        self.dispatched = dispatched


class _Body(httpx.AsyncByteStream):
    """The request's body; reading it is the moment from which the outcome may be unknown."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.dispatched = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.dispatched = True
        yield self.content


@lru_cache(maxsize=1024)
def _endpoint(base_url: str) -> httpx.URL:
    """Where a provider draws images; parsing it for each call would cost more than all else that httpx does."""
    return httpx.URL(f"{base_url}/images/generations")


def _request(model: UpstreamModel, body: _Body, request_id: str) -> httpx.Request:
    return httpx.Request(
        "POST",
        _endpoint(model.base_url),
        headers={
            "Authorization": f"Bearer {model.key}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body.content)),
            "Accept": "application/json",
            "X-Request-Id": request_id,
        },
        stream=body,
    )


class Upstream:
    """The client of one process. `connect_timeout` and `deadline` in seconds.

    `answer_limit` is in bytes, for one answer; `answer_memory` for all that are held at once, at least as much.
    """

    def __init__(self, connect_timeout: float, deadline: float, answer_limit: int, answer_memory: int) -> None:
        self.deadline, self.answer_limit = deadline, answer_limit
        self.memory = AnswerMemory(answer_memory, answer_limit)
        client = (
            ClientBuilder()
            .no_proxy()
            .follow_redirects(False)
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .http1_only()
            .connect_timeout(timedelta(seconds=connect_timeout))
            .timeout(timedelta(seconds=deadline + 5))
            .pool_idle_timeout(timedelta(seconds=20))
            .max_connections(None)
            .error_for_status(False)
            .build()
        )
        self._transport = HttpxTransport(client)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def generate(self, model: UpstreamModel, asked: GenerationRequest, request_id: str) -> Answer:
        """Ask `model` for images; whoever gets the answer releases what it holds.

        Raises UpstreamError when there is no complete answer in time.
        """
        fields = {"model": model.upstream_name, "prompt": asked.prompt, "n": asked.n, "size": asked.size}
        if model.answer_form:
            fields["response_format"] = model.answer_form
        body = _Body(msgspec.json.encode(fields))
        try:
            request = _request(model, body, request_id)
        except Exception as exc:  # a base URL or key that no request can carry
            raise UpstreamError("upstream_failed", dispatched=False) from exc
        try:
            async with asyncio.timeout(self.deadline):
                return await self._exchange(request)
        except (TimeoutError, httpx.TimeoutException) as exc:
            raise UpstreamError("upstream_timeout", body.dispatched) from exc
        except _TooLong as exc:
            raise UpstreamError("upstream_failed", True) from exc
        except (httpx.HTTPError, httpx.StreamError, OSError, ssl.SSLError) as exc:
            raise UpstreamError("upstream_failed", body.dispatched) from exc
        except Exception as exc:  # a transport written in another language may raise anything: it may have been sent
            raise UpstreamError("upstream_failed", True) from exc

    async def _exchange(self, request: httpx.Request) -> Answer:
        response = await self._transport.handle_async_request(request)
        held = Held(self.memory)
        try:
            try:
                body = await self._read(response, held)
            finally:
                await response.aclose()
        except BaseException:  # above all a deadline, which cancels
            held.release()
            raise
        headers = {name: response.headers[name] for name in PASSED_HEADERS if name in response.headers}
        return Answer(response.status_code, body, headers, held)

    async def _read(self, response: httpx.Response, held: Held) -> bytes:
        chunks, size = [], 0
        async for chunk in response.stream:  # type: ignore[union-attr]
            size += len(chunk)
            if size > self.answer_limit:
                raise _TooLong
            if not held.take(len(chunk)):
                await held.wait(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)


class _TooLong(Exception):
    """The provider's answer is over the limit."""

"""Step 4: the upstream call to a provider that speaks the OpenAI Images API.

The one module that knows httpx, which reads the providers' addresses, and pyreqwest, which sends: httpx's own client
costs many times as much, and its request and response types alone as much as the sending. Whether a call was
dispatched is decided by our own flag, never by an exception's type: transports report "the provider read the request,
then hung" as a failure to connect.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache

import httpx
import msgspec
from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import DecodeError, TransportError
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response

from gateway.answermemory import AnswerMemory, Held
from gateway.catalog import UpstreamModel
from gateway.deadlines import Deadline
from gateway.validation import GenerationRequest

PASSED_HEADERS = ("retry-after", "x-request-id")  # all that is ever passed on of a provider's headers
CHUNK = 1 << 16  # bytes that are read at a time of an answer which declares no length, or less


@dataclass(slots=True)
class Answer:
    """A complete answer: status, the allow-listed headers, and the whole body, which `held` accounts for.

    A body that came in one piece stays where the client put it: to copy an image costs as much as to decode it.
    """

    status: int
    body: bytes | memoryview
    headers: dict[str, str] = field(default_factory=dict)
    held: Held | None = None


class UpstreamError(Exception):
    """There is no complete answer. `dispatched`: the provider may have got the request. `kind`: an error type."""

    def __init__(self, kind: str, dispatched: bool) -> None:
        super().__init__(kind)
        self.kind = kind
        self.dispatched = dispatched


class _Body:
    """The request's body, which the transport takes as a whole, once.

    That it is taken is the moment from which the outcome may be unknown. The transport takes it in a thread of its own,
    so this is an iterator of the interpreter's own making: it needs no Python code there, and whoever takes the body
    first has it.
    """

    def __init__(self, content: bytes) -> None:
        self.length = len(content)
        self.stream = iter((content,))

    def was_taken(self) -> bool:
        """Whether the transport took it. If not, it never will: asking takes it away."""
        return next(self.stream, None) is None


@lru_cache(maxsize=1024)
def _endpoint(base_url: str) -> str:
    """Where a provider draws images, as httpx reads and writes addresses. Raises httpx.InvalidURL."""
    return str(httpx.URL(f"{base_url}/images/generations"))


class Upstream:
    """The client of one process. `connect_timeout` and `deadline` in seconds.

    `answer_limit` is in bytes, for one answer; `answer_memory` for all that are held at once, at least as much.
    """

    def __init__(self, connect_timeout: float, deadline: float, answer_limit: int, answer_memory: int) -> None:
        self.deadline, self.answer_limit = deadline, answer_limit
        self.memory = AnswerMemory(answer_memory, answer_limit)
        self._client = (
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

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def generate(self, model: UpstreamModel, asked: GenerationRequest, request_id: str) -> Answer:
        """Ask `model` for images; whoever gets the answer releases what it holds.

        Raises UpstreamError when there is no complete answer in time.
        """
        fields = {"model": model.upstream_name, "prompt": asked.prompt, "n": asked.n, "size": asked.size}
        if model.answer_form:
            fields["response_format"] = model.answer_form
        if model.quality:
            fields["quality"] = model.quality
        body = _Body(msgspec.json.encode(fields))
        try:
            request = self._request(model, body, request_id)
        except Exception as exc:  # a base URL or key that no request can carry
            raise UpstreamError("upstream_failed", dispatched=False) from exc
        try:
            with Deadline(asyncio.get_running_loop(), self.deadline):
                return await self._exchange(request)
        except TimeoutError as exc:  # ours, or the client's
            raise UpstreamError("upstream_timeout", body.was_taken()) from exc
        except _TooLong as exc:
            raise UpstreamError("upstream_failed", True) from exc
        except (TransportError, DecodeError, OSError) as exc:
            raise UpstreamError("upstream_failed", body.was_taken()) from exc
        except Exception as exc:  # a transport written in another language may raise anything: it may have been sent
            raise UpstreamError("upstream_failed", True) from exc

    def _request(self, model: UpstreamModel, body: _Body, request_id: str) -> StreamRequest:
        headers = [
            ("Authorization", f"Bearer {model.key}"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(body.length)),
            ("Accept", "application/json"),
            ("X-Request-Id", request_id),
        ]
        return self._client.post(_endpoint(model.base_url)).headers(headers).body_stream(body.stream).build_streamed()

    async def _exchange(self, request: StreamRequest) -> Answer:
        async with request as response:
            held = Held(self.memory)
            try:
                body = await self._read(response, held)
            except BaseException:  # above all a deadline, which cancels
                held.release()
                raise
            headers = {name: value for name in PASSED_HEADERS if (value := _header(response, name))}
            return Answer(response.status, body, headers, held)

    async def _read(self, response: Response, held: Held) -> bytes | memoryview:
        """The body. One of a declared length is counted before it is read, then read in one piece."""
        reader, declared = response.body_reader, _declared_length(response)
        if declared > self.answer_limit:
            raise _TooLong
        if not held.take(declared):
            await held.wait(declared)
        chunks, size = [], 0
        while (chunk := await reader.read(max(declared, CHUNK))) is not None:
            size += len(chunk)
            if size > self.answer_limit:
                raise _TooLong
            if size > declared and not held.take(len(chunk)):
                await held.wait(len(chunk))
            chunks.append(chunk)
        return memoryview(chunks[0]) if len(chunks) == 1 else b"".join(chunks)


def _header(response: Response, name: str) -> str:
    """The header's value; "" when there is none, or one that isn't text: that is no reason to lose the answer."""
    try:
        return response.get_header(name) or ""
    except ValueError:
        return ""


def _declared_length(response: Response) -> int:
    """Bytes; 0 when there is no Content-Length. It is no proof: an answer in chunks may declare whatever it likes."""
    value = _header(response, "content-length")
    return int(value) if value.isdecimal() and len(value) < 16 else 0


class _TooLong(Exception):
    """The provider's answer is over the limit."""

"""The load: keep-alive connections that each send the next request as soon as the last one is answered."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import uvloop

from bench.framing import split_message


@dataclass
class Sample:
    """What a load saw: wall time in seconds, each call's latency in seconds, and how often each status came."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    failed: bytes = b""  # the body of the last answer that was no 200, for the person who has to find out why

    @property
    def per_second(self) -> float:
        """Answered requests a second."""
        return len(self.latencies) / self.seconds

    def latency_ms(self, share: float) -> float:
        """The latency in milliseconds that `share` (0 to 1) of the calls stayed within."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000


class _Load:
    """What the connections share: calls still to make, and what came of the others."""

    def __init__(self, request: bytes, calls: int) -> None:
        self.request, self.left, self.calls = request, calls, calls
        self.sample = Sample()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answered(self, latency: float, status: int, body: bytes) -> None:
        self.sample.latencies.append(latency)
        self.sample.statuses[status] += 1
        if status != 200:
            self.sample.failed = body
        if len(self.sample.latencies) == self.calls and not self.done.done():
            self.done.set_result(None)


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self.load = load
        self.received = b""
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        if self.load.left:
            self.load.left -= 1
            self.sent_at = time.perf_counter()
            self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        message = split_message(self.received)
        if message is not None:
            self.received = message.rest
            status = int(message.first_line.split(b" ", 2)[1])
            self.load.answered(time.perf_counter() - self.sent_at, status, message.body)
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.load.done.done():
            self.load.done.set_exception(ConnectionError("the server closed a connection"))


def make_request(url: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A POST of `body` as JSON, as it goes over the wire."""
    parts = urlsplit(url)
    fields = {
        "Host": parts.netloc,
        "User-Agent": "bench",
        "Accept": "*/*",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {parts.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def run(url: str, request: bytes, calls: int, connections: int, seconds: float = 300) -> Sample:
    """Send `request` `calls` times to the host of `url` over `connections`, each waiting for its answer.

    Raises ConnectionError when the server refuses or closes a connection, TimeoutError after `seconds`.
    """
    return uvloop.run(_run(urlsplit(url).port or 80, request, calls, connections, seconds))


async def _run(port: int, request: bytes, calls: int, connections: int, seconds: float) -> Sample:
    loop = asyncio.get_running_loop()
    load = _Load(request, calls)
    opened = [await loop.create_connection(lambda: _Connection(load), "127.0.0.1", port) for _ in range(connections)]
    begun = time.perf_counter()
    for _, connection in opened:
        connection.send()
    async with asyncio.timeout(seconds):
        await load.done
    load.sample.seconds = time.perf_counter() - begun
    for transport, _ in opened:
        transport.close()
    return load.sample

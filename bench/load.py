"""The load: keep-alive connections that each send the next request as soon as the last one is answered."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import uvloop

from bench.framing import split_message, wanted

PATIENCE = 120.0  # seconds for the answers that are still to come when the last request has been sent


@dataclass
class Sample:
    """What a load saw: wall time in seconds, each call's latency in seconds, and how often each status came."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    failed: bytes = b""  # the body of the last answer that was no 200, for the person who has to find out why

    @property
    def calls(self) -> int:
        """How many were answered."""
        return len(self.latencies)

    @property
    def per_second(self) -> float:
        """Answered requests a second."""
        return self.calls / self.seconds

    def latency_ms(self, share: float) -> float:
        """The latency in milliseconds that `share` (0 to 1) of the calls stayed within."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000


class _Load:
    """What the connections share: what to send and until when, and what came of it."""

    def __init__(self, requests: Iterator[bytes], calls: float, seconds: float) -> None:
        self.requests = requests
        self.left = calls
        self.begun = time.perf_counter()
        self.until = self.begun + seconds
        self.waiting = 0
        self.sample = Sample()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answered(self, latency: float, status: int, body: bytes) -> None:
        self.sample.latencies.append(latency)
        self.sample.statuses[status] += 1
        if status != 200:
            self.sample.failed = body

    def finish(self) -> None:
        if not self.done.done():
            self.sample.seconds = time.perf_counter() - self.begun
            self.done.set_result(None)


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.load: _Load
        self.received: bytes | bytearray = b""
        self.wanted = 0
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        load = self.load
        self.sent_at = time.perf_counter()
        if load.left > 0 and self.sent_at < load.until:
            load.left -= 1
            load.waiting += 1
            self.transport.write(next(load.requests))
        elif not load.waiting:
            load.finish()

    def data_received(self, data: bytes) -> None:
        if self.received:
            self.received += data
            if len(self.received) < self.wanted:
                return
            data = bytes(self.received)
        message = split_message(data)
        if message is None:
            self.received, self.wanted = bytearray(data), wanted(data)
            return
        self.received = b""
        self.load.waiting -= 1
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


def run(
    url: str, requests: Iterator[bytes], connections: int, *, calls: float = math.inf, seconds: float = math.inf
) -> Sample:
    """Send `requests`, which never end, to the host of `url`, for `seconds` or `calls` of them, whatever ends first.

    Each of the `connections` waits for its answer before it sends again. Raises ConnectionError when the server refuses
    or closes a connection, TimeoutError when answers don't come.
    """
    return uvloop.run(_run(urlsplit(url).port or 80, requests, connections, calls, seconds))


async def _run(port: int, requests: Iterator[bytes], connections: int, calls: float, seconds: float) -> Sample:
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(_Connection, "127.0.0.1", port) for _ in range(connections)]
    load = _Load(requests, calls, seconds)
    for _, connection in opened:
        connection.load = load
    for _, connection in opened:
        connection.send()
    async with asyncio.timeout(PATIENCE + (seconds if math.isfinite(seconds) else 300)):
        await load.done
    for transport, _ in opened:
        transport.close()
    return load.sample

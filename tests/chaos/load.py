"""Clients: what they call, again and again, and what they were told."""

import asyncio
import contextlib
import json
import random
import threading
import time
import uuid
from collections import deque
from typing import Any
from urllib.parse import urlsplit

from tests.chaos.attempts import Attempt
from tests.chaos.personas import FAULTS, Marks, Persona

PATH = "/wp-json/my-proxy/v1/generate-image"
PATIENCE = 6.0  # seconds for one attempt
TRIES = 12  # of one idempotency key
PAUSE = 0.2  # seconds between calls of a client, on average


class Connection:
    """One kept connection of a client to one server; opened anew after anything goes wrong."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes, headers: dict[str, str], attempt: Attempt) -> None:
        """Send one request and write what comes back into `attempt`."""
        lines = [f"POST {PATH} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        request = "\r\n".join([*lines, "", ""]).encode() + body
        try:
            async with asyncio.timeout(PATIENCE):
                await self._exchange(request, attempt)
        except TimeoutError:
            attempt.type = "timeout"
        except (OSError, asyncio.IncompleteReadError, ValueError):
            attempt.type = "broken"
        finally:
            attempt.ended = time.time()
            if not attempt.whole:
                self.close()

    def close(self) -> None:
        """Let go of the connection."""
        if self._streams:
            self._streams[1].transport.abort()
            self._streams = None

    async def open(self) -> bool:
        """Whether there is a connection; a server that is away takes none."""
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            with contextlib.suppress(OSError):
                self._streams = await asyncio.open_connection(*self._address)
        return self._streams is not None

    async def _exchange(self, request: bytes, attempt: Attempt) -> None:
        if not await self.open() or self._streams is None:
            raise ConnectionRefusedError
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        attempt.status, attempt.request_id = int(head[0].split()[1]), headers.get("x-request-id", "")
        attempt.replayed = headers.get("idempotent-replayed") == "true"
        attempt.may_be_charged = headers.get("x-should-retry") == "false" and attempt.status >= 500
        body = await reader.readexactly(int(headers["content-length"]))
        attempt.whole = True
        if headers.get("connection", "").lower() == "close":
            self.close()
        _read(json.loads(body), attempt)


def _read(content: dict[str, Any], attempt: Attempt) -> None:
    if attempt.status == 200:
        attempt.tokens, attempt.images = content["usage"]["total_tokens"], len(content["data"])
    else:
        attempt.type = content["error"]["type"]


class Load:
    """Clients on an event loop in a thread of their own, until they are stopped."""

    def __init__(self, urls: list[str], everyone: list[Persona], seed: int, clients: int) -> None:
        self.urls, self.personas, self.seed = urls, everyone, seed
        self.attempts: list[Attempt] = []
        self.crashes: deque[str] = deque()  # X-Crash headers that the next calls are to carry
        self.revoked: dict[int, float] = {}  # token id -> when its revocation had answered
        self._marks = Marks(random.Random(f"{seed} marks"))
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(clients)), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the calls under way end, and return."""
        self._stopping = True
        self._thread.join(PATIENCE * 3)
        assert not self._thread.is_alive(), "the clients did not end"

    def answered(self) -> int:
        return sum(attempt.status == 200 for attempt in list(self.attempts))

    async def _run(self, clients: int) -> None:
        await asyncio.gather(*(self._client(number) for number in range(clients)))

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self.seed} client {number}")
        connections = [Connection(url) for url in self.urls]
        while not self._stopping:
            await self._call(chance, connections)
            await asyncio.sleep(chance.expovariate(1 / PAUSE))
        for connection in connections:
            connection.close()

    async def _call(self, chance: random.Random, connections: list[Connection]) -> None:
        (persona,) = chance.choices(self.personas, [persona.weight for persona in self.personas])
        (fault,) = chance.choices(list(FAULTS), list(FAULTS.values()))
        token, secret = chance.choice(persona.tokens)
        mark, n = self._marks.take(persona.delay), chance.choice((1, 1, 2))
        key = uuid.UUID(int=chance.getrandbits(128)).hex if chance.random() < persona.keys else ""
        headers = {"Content-Type": "application/json", "X-Proxy-Token": secret}
        if key:
            headers["Idempotency-Key"] = key
        if self.crashes and persona.name in {"free", "keys"}:
            with contextlib.suppress(IndexError):
                headers["X-Crash"], fault = self.crashes.popleft(), ""
        prompt = f"a gem of {persona.name} [sandbox {mark} {fault}]"
        body = json.dumps({"prompt": prompt, "size": "256x256", "n": n}).encode()
        for _ in range(TRIES if key else 1):
            attempt = Attempt(persona.name, persona.tenant.pk, token.pk, mark, fault, n, key, time.time())
            await (await _balanced(chance, connections)).post(body, headers, attempt)
            self.attempts.append(attempt)
            crash = headers.pop("X-Crash", "")
            if crash and attempt.whole and attempt.status != 200:
                self.crashes.append(crash)  # it ended before it reached its point
            if not _again(attempt) or self._stopping:
                break
            await asyncio.sleep(chance.uniform(0.2, 0.8))


async def _balanced(chance: random.Random, connections: list[Connection]) -> Connection:
    """One that is open, as a load balancer chooses; any when every server is away."""
    for connection in chance.sample(connections, len(connections)):
        if await connection.open():
            return connection
    return connections[0]


def _again(attempt: Attempt) -> bool:
    """Whether a careful client tries once more with the same key: it doesn't know, or was told to come back."""
    if not attempt.whole or attempt.status in {409, 503}:
        return True
    return attempt.status == 500 and not attempt.may_be_charged

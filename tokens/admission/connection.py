"""One connection to the admission store with automatic pipelining, for the request path.

Every command that one turn of the event loop makes leaves in one write, and replies are parsed by hiredis: a tenth
of the CPU of a pooled client. A lost connection fails what was under way at once and is opened again in the
background; while there is none, calls fail at once instead of waiting.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import hiredis

from config.redis import Address
from tokens.admission.scripts import Script

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds between attempts to connect
STUCK_SECONDS = 2.0  # without any reply: a stall of the disk ends sooner, and costs only the calls that waited for it
CONNECT_SECONDS = 5.0  # for one attempt, with what `on_connect` does

logger = logging.getLogger(__name__)


class StoreUnavailable(Exception):
    """The admission store didn't answer: not connected, connection lost, or too slow.

    `sent` tells whether the command may have been carried out.
    """

    def __init__(self, reason: str, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class StoreError(Exception):
    """The store answered with an error, such as OOM or WRONGTYPE; `code` is its first word."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.partition(" ")[0]


class _Protocol(asyncio.Protocol):
    """Commands out, replies in, in order."""

    def __init__(self) -> None:
        self.reader = hiredis.Reader()
        self.waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self.outgoing: list[bytes] = []
        self.loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            future = self.waiting.popleft()[1]
            if not future.done():
                future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        for _, future in self.waiting:
            if not future.done():
                future.set_exception(StoreUnavailable("the connection to the admission store was lost", sent=True))
        self.waiting.clear()
        self.closed.set()

    def flush(self) -> None:
        if self.transport is not None:
            self.transport.write(b"".join(self.outgoing))
        self.outgoing.clear()

    def send(self, command: tuple[Any, ...], timeout: float) -> asyncio.Future[Any]:
        if self.transport is None or self.transport.is_closing():
            raise StoreUnavailable("not connected to the admission store", sent=False)
        now = self.loop.time()
        if self.waiting and self.waiting[0][0] < now:  # it stalls: one that is refused at once needn't be undone
            raise StoreUnavailable("the admission store stalls", sent=False)
        packed = hiredis.pack_command(command)
        future: asyncio.Future[Any] = self.loop.create_future()
        if not self.waiting:  # there is nobody to share a write with, so it needn't wait for the loop's next turn
            self.transport.write(packed)
        else:
            if not self.outgoing:
                self.loop.call_soon(self.flush)
            self.outgoing.append(packed)
        self.waiting.append((now + timeout, future))
        return future

    def fail_overdue(self, now: float) -> None:
        """Fail the calls that waited too long; their replies, when they come, are dropped."""
        for deadline, future in self.waiting:
            if deadline > now:
                return
            if not future.done():
                future.set_exception(StoreUnavailable("the admission store didn't answer in time", sent=True))

    def stuck(self, now: float) -> bool:
        """Whether the oldest call has been overdue for so long that the server may be gone."""
        return bool(self.waiting) and self.waiting[0][0] + STUCK_SECONDS < now


class StoreConnection:
    """The connection of one process's event loop. Make one per loop, after any fork.

    `on_connect` runs on each new connection before calls are accepted; what it raises closes it again. `run_id` is for
    it to set: the server's, empty while it isn't known. A call made with it reaches that server or none.
    """

    def __init__(self, address: Address, timeout: float, on_connect: Callable[[], Awaitable[None]]) -> None:
        self.address, self.timeout = address, timeout
        self.run_id = ""
        self._on_connect = on_connect
        self._protocol: _Protocol | None = None
        self._ready = False
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether calls are accepted now."""
        return self._ready and self._protocol is not None and self._protocol.transport is not None

    def start(self) -> None:
        """Begin connecting, and keep connected until `close`."""
        self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    async def close(self) -> None:
        """Stop; what is under way fails."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._drop()

    async def call(self, *command: Any) -> Any:
        """One command (str, bytes, int arguments); its reply, strings as bytes.

        Raises StoreUnavailable when there is no answer within the time-out, StoreError for an error reply.
        """
        if not self._ready:
            raise StoreUnavailable("not connected to the admission store", sent=False)
        return await self._send(command)

    async def run(self, script: Script, *keys_and_arguments: Any) -> Any:
        """A script by its address; `keys_and_arguments` begin with the number of keys."""
        try:
            return await self.call("EVALSHA", script.sha, *keys_and_arguments)
        except StoreError as exc:
            if exc.code != "NOSCRIPT":
                raise
        return await self.call("EVAL", script.text, *keys_and_arguments)

    async def setup_call(self, *command: Any) -> Any:
        """Like `call`, for `on_connect`, before calls are accepted."""
        return await self._send(command)

    async def _send(self, command: tuple[Any, ...]) -> Any:
        if self._protocol is None:
            raise StoreUnavailable("not connected to the admission store", sent=False)
        reply = await self._protocol.send(command, self.timeout)
        if isinstance(reply, hiredis.ReplyError):
            raise StoreError(str(reply))
        return reply

    async def _keep_connected(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._connect()
                pause = FIRST_PAUSE
                await self._watch()
            except (OSError, StoreUnavailable, StoreError, TimeoutError):
                pass
            except Exception:  # otherwise one surprise would end connecting for good
                logger.exception("connecting to the admission store failed")
            self._drop()
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _connect(self) -> None:
        loop, address = asyncio.get_running_loop(), self.address
        if address.path:
            _, protocol = await loop.create_unix_connection(_Protocol, address.path)
        else:
            tls = ssl.create_default_context() if address.tls else None
            _, protocol = await loop.create_connection(_Protocol, address.host, address.port, ssl=tls)
        self._protocol = protocol
        if address.password:
            credentials = (address.username, address.password) if address.username else (address.password,)
            await self._send(("AUTH", *credentials))
        if address.database:
            await self._send(("SELECT", address.database))
        await self._on_connect()
        self._ready = True

    async def _watch(self) -> None:
        """Fail overdue calls until the connection is lost, or has been silent for so long that it must be."""
        protocol = self._protocol
        while protocol is not None and not protocol.stuck(protocol.loop.time()):
            protocol.fail_overdue(protocol.loop.time())
            try:  # not wait_for, which loses a cancellation that comes together with what it waits for
                async with asyncio.timeout(self.timeout / 4):
                    await protocol.closed.wait()
                return
            except TimeoutError:
                continue

    def _drop(self) -> None:
        self._ready, self.run_id = False, ""
        protocol, self._protocol = self._protocol, None
        if protocol is not None and protocol.transport is not None:
            protocol.transport.abort()
            protocol.connection_lost(None)

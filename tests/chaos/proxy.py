"""A proxy for streams, TCP or unix socket, that does to connections what a bad network does."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

CHUNK = 256 * 1024

Address = Path | int  # a unix socket, or a port of 127.0.0.1
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Link:
    """One proxied way: `listen` leads to `target`. The fields may be set from any thread at any time.

    `refuse`: new connections are reset at once. `hole`: no byte passes, in no direction, until it is false again.
    `delay`: seconds that each piece waits. `cut`: so many of the next answers are broken off in their middle.
    """

    def __init__(self, name: str, listen: Address, target: Address) -> None:
        self.name, self.listen, self.target = name, listen, target
        self.refuse = self.hole = False
        self.delay = 0.0
        self.cut = 0
        self._connections: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self._connections.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            if self.refuse:
                return
            answers, there = await _connect(self.target)
            self._connections.add(there)
            await _first(self._pump(reader, there), self._pump(answers, writer, answers=True))
        except OSError:
            pass
        finally:
            for end in filter(None, (writer, there)):
                self._connections.discard(end)
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool = False) -> None:
        while data := await reader.read(CHUNK):
            if self.delay:
                await asyncio.sleep(self.delay)
            while self.hole:
                await asyncio.sleep(0.02)
            if answers and self.cut > 0:
                self.cut -= 1
                writer.write(data[: len(data) // 2])
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(writer.drain(), 0.1)
                return
            writer.write(data)
            await writer.drain()

    def drop(self) -> None:
        """Reset every connection; on the proxy's own thread."""
        for writer in list(self._connections):
            writer.transport.abort()

    def heal(self) -> None:
        """Be a good network again."""
        self.refuse = self.hole = False
        self.delay, self.cut = 0.0, 0


async def _connect(target: Address) -> Streams:
    if isinstance(target, Path):
        return await asyncio.open_unix_connection(str(target))
    return await asyncio.open_connection("127.0.0.1", target)


async def _first(*ways: Awaitable[None]) -> None:
    """Both directions until either ends: a half-closed connection serves none of these protocols."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    _, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, OSError | asyncio.CancelledError):
            raise result


class Proxy:
    """Links on an event loop in a thread of their own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._links: list[Link] = []
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def add(self, link: Link) -> Link:
        """Begin to listen."""
        if isinstance(link.listen, Path):
            server = self._run(asyncio.start_unix_server(link.serve, path=str(link.listen)))
        else:
            server = self._run(asyncio.start_server(link.serve, "127.0.0.1", link.listen))
        self._servers.append(server)
        self._links.append(link)
        return link

    def drop(self, link: Link) -> None:
        """Reset a link's connections."""
        self.call(link.drop)

    def call(self, function: Callable[[], Any]) -> None:
        """Run something on the links' thread."""

        async def run() -> None:
            function()

        self._run(run())

    def close(self) -> None:
        """Reset what is left and end the thread."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for link in self._links:
            link.heal()
            link.drop()
        if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(tasks, timeout=2)

    def _run(self, work: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(10)

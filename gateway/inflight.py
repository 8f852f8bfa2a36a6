"""The calls in flight of a process. Those whose client has gone are carried to their end, but only so many at a time.

Waiting for a client to leave costs a task a request, so nobody waits until there are as many calls in flight as may
have lost their client; only then each of them is watched.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Call = asyncio.Task[Any]


class InFlight:
    """The calls in flight of one process, and which of them run for nobody; up to `most` of these may."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: dict[Call, Receive | None] = {}  # None: watched already, or never asked for by a client
        self.left: set[Call] = set()
        self._watches: dict[Call, asyncio.Future[Any]] = {}

    @property
    def too_many(self) -> bool:
        """Whether no more calls should be begun."""
        return len(self.left) >= self.most

    def add(self, call: Call, receive: Receive | None) -> None:
        """A call begins; `receive` is the ASGI one of its request, whose body was read."""
        self.calls[call] = receive
        call.add_done_callback(self._ended)

    def look(self) -> None:
        """Watch every call that isn't watched yet, if so many could have lost their clients; to be done regularly."""
        if len(self.calls) < self.most:
            return
        for call, receive in self.calls.items():
            if receive is not None:
                self.calls[call] = None
                watch = self._watches[call] = asyncio.ensure_future(receive())
                watch.add_done_callback(partial(self._gone, call))

    def _gone(self, call: Call, watch: asyncio.Future[Any]) -> None:
        # After the whole body nothing but a disconnect is received; a server that fails to say so counts as one.
        if watch.cancelled() or call not in self.calls:
            return
        if watch.exception() is not None or watch.result()["type"] == "http.disconnect":
            self.left.add(call)

    def _ended(self, call: Call) -> None:
        self.calls.pop(call, None)
        self.left.discard(call)
        watch = self._watches.pop(call, None)
        if watch is not None:
            watch.cancel()

"""Straight into the ledger: where a call's usage goes while the admission store is out of reach.

Endings that wait together are one transaction, in a thread of its own with a connection of its own, so that neither the
event loop nor anything else waits for PostgreSQL. One batch is under way at a time; a server that hangs therefore costs
one thread, and whoever comes meanwhile is told at once that nothing can be booked.
"""

import asyncio
import contextlib
import threading
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from tokens.admission.settlement import Ending
from usage import unsettled

BOOK_SECONDS = 3.0  # for an ending, from when it is given to when it is committed
CONNECT_SECONDS = 2
STATEMENT_MILLISECONDS = 2000
BATCH = 500
LIMITS = "SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false)"

Waiting = tuple[Ending, "asyncio.Future[None]"]


class NotBooked(Exception):
    """PostgreSQL didn't take it, or not in time: it may be in the books or not. Booking it again is safe."""


class Booking:
    """The way of one process's event loop into the ledger."""

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._begun: float | None = None  # when the batch that is under way was

    async def book(self, ending: Ending) -> None:
        """Commit how a call ended, and that the store must still learn it. Raises NotBooked, after 3 s at most."""
        loop = asyncio.get_running_loop()
        if self._begun is not None and loop.time() > self._begun + BOOK_SECONDS:
            raise NotBooked("PostgreSQL hangs")
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((ending, future))
        if self._begun is None:
            loop.call_soon(self._start, loop)  # not at once: what ends in the same turn goes along
        try:
            async with asyncio.timeout(BOOK_SECONDS):
                await future
        except TimeoutError:
            raise NotBooked("PostgreSQL didn't answer in time") from None

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = [entry for entry in self._waiting if not entry[1].done()]  # the others have gone to the spool
        batch, self._waiting = waiting[:BATCH], waiting[BATCH:]
        if self._begun is not None or not batch:
            self._waiting = waiting
            return
        self._begun = loop.time()
        # A daemon, otherwise a server that hangs would keep this process from ending.
        try:
            threading.Thread(target=self._write, args=(loop, batch), name="ledger", daemon=True).start()
        except RuntimeError as exc:  # this machine starts no more of them
            loop.call_soon(self._finish, loop, batch, str(exc))

    def _write(self, loop: asyncio.AbstractEventLoop, batch: list[Waiting]) -> None:
        reason = ""
        try:
            _record([ending for ending, _ in batch])
        except Exception as exc:  # whatever it is, the spool comes next
            reason = type(exc).__name__
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._finish, loop, batch, reason)

    def _finish(self, loop: asyncio.AbstractEventLoop, batch: list[Waiting], reason: str) -> None:
        self._begun = None
        for _, future in batch:
            if future.done():
                continue
            if reason:
                future.set_exception(NotBooked(reason))
            else:
                future.set_result(None)
        self._start(loop)


def _record(endings: list[Ending]) -> None:
    """Record in this thread, which ends afterwards and takes its connection with it."""
    connection = connections.create_connection(DEFAULT_DB_ALIAS)
    connection.settings_dict = _impatient(connection.settings_dict)
    connections[DEFAULT_DB_ALIAS] = connection  # of this thread alone
    try:
        with connection.cursor() as cursor:
            cursor.execute(LIMITS, [str(STATEMENT_MILLISECONDS)] * 2)
        unsettled.record(endings)
    finally:
        connection.close()


def _impatient(described: dict[str, Any]) -> dict[str, Any]:
    """A database's settings with short time-outs, for a server that doesn't answer as for one that is gone."""
    waits = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": CONNECT_SECONDS * 1000}
    return {**described, "OPTIONS": {**described["OPTIONS"], **waits}}

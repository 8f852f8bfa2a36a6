"""A small HTTP/1.1 server on asyncio and h11, able to do what a decent server refuses: break a connection on purpose.

An ASGI server answers 500 for an application that falls silent; a caller's "the provider hung up" path would never run.
"""

import asyncio
import contextlib
import logging

import h11

from sandbox.answers import Answer, Delivery, error
from sandbox.images import Provider

GRACE = 5.0  # seconds that calls in flight get once the server is asked to stop

_LARGEST_BODY = 1 << 20  # bytes of a request
_HUGE, _HUGE_CHUNK = 100 << 20, 1 << 20  # bytes
_DRIP_PAUSE, _DRIP_END = 0.5, 600.0  # seconds

logger = logging.getLogger(__name__)


class _TooLarge(Exception):
    """A request's body passed the cap."""


class Server:
    """Serves a provider to any number of connections, each of which may carry many calls."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._stopping = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end; the callback of asyncio's `start_server` and `start_unix_server`."""
        task = asyncio.current_task()
        if task is None or self._stopping:
            writer.close()
            return
        connection = _Connection(self._provider, reader, writer)
        self._connections[task] = connection
        try:
            await connection.run()
        except (OSError, h11.LocalProtocolError):
            pass  # the caller went away; a provider takes no notice
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            del self._connections[task]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def stop(self) -> None:
        """Close idle connections at once, wait up to GRACE seconds for calls in flight, then break those off."""
        self._stopping = True
        for task, connection in self._connections.items():
            connection.last = True
            if not connection.busy:
                task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=GRACE)
        late = dict(self._connections)
        for task, connection in late.items():
            connection.abort()  # a caller that stopped reading would hold up a polite close for ever
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1)


class _Connection:
    """One connection: `busy` while a call is in flight on it, `last` when no further call may begin."""

    def __init__(self, provider: Provider, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._provider, self._reader, self._writer = provider, reader, writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
        self.busy = self.last = False

    async def run(self) -> None:
        """Answer call after call until either side has had enough."""
        while True:
            try:
                request = await self._event()
                if not isinstance(request, h11.Request):
                    return
                self.busy = True
                answer = await self._answer(request)
            except _TooLarge:
                self.last, answer = True, error(413, "The body of the request is too large.")
            except h11.RemoteProtocolError as exc:
                self.last, answer = True, error(exc.error_status_hint, "This is not HTTP/1.1.")
            if not await self._deliver(answer):
                return
            self.busy = False
            if self.last or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    def abort(self) -> None:
        """Break the connection off, whatever is still to be sent."""
        self._writer.transport.abort()

    async def _event(self) -> object:
        """The next h11 event, or its PAUSED."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._reader.read(64 * 1024))
        return event

    async def _answer(self, request: h11.Request) -> Answer:
        body = bytearray()
        while isinstance(part := await self._event(), h11.Data):
            body += part.data
            if len(body) > _LARGEST_BODY:
                raise _TooLarge
        method, path = request.method.decode("ascii"), request.target.decode("latin-1").partition("?")[0]
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
        try:
            return await self._provider.answer(method, path, headers, bytes(body))
        except Exception:
            logger.exception("a call failed")
            return error(500, "The sandbox itself failed; its log says why.")

    async def _deliver(self, answer: Answer) -> bool:
        """Put an answer on the wire; False when the connection is to be closed at once."""
        if answer.delivery is Delivery.NOTHING:
            return False
        headers = [("content-type", answer.content_type), *answer.headers.items()]
        if answer.delivery is not Delivery.HUGE:
            headers.append(("content-length", str(len(answer.body))))
        if self.last:
            headers.append(("connection", "close"))
        await self._send(h11.Response(status_code=answer.status, headers=headers))
        if answer.delivery is Delivery.MIDWAY:
            await self._send(h11.Data(data=answer.body[: len(answer.body) // 2]))
            return False
        if answer.delivery is Delivery.DRIP:
            return await self._drip(answer.body)
        if answer.delivery is Delivery.HUGE:
            await self._send_huge(answer.body)
        else:
            await self._send(h11.Data(data=answer.body))
        await self._send(h11.EndOfMessage())
        return True

    async def _drip(self, body: bytes) -> bool:
        for k in range(min(len(body), int(_DRIP_END / _DRIP_PAUSE))):
            await self._send(h11.Data(data=body[k : k + 1]))
            await asyncio.sleep(_DRIP_PAUSE)
        return False

    async def _send_huge(self, body: bytes) -> None:
        """The answer with 100 MB of blanks before its last brace: valid JSON, for a caller that would read it all."""
        await self._send(h11.Data(data=body[:-1]))
        blanks = b" " * _HUGE_CHUNK
        for _ in range(_HUGE // _HUGE_CHUNK):
            await self._send(h11.Data(data=blanks))
        await self._send(h11.Data(data=body[-1:]))

    async def _send(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()

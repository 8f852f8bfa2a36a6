"""The bare pass-through: an ASGI function that hands each body to the provider and its answer back, and nothing else.

What a gateway costs at least with this server and this HTTP client. `BENCH_UPSTREAM` is the provider's URL.
"""

import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from pyreqwest.client import Client, ClientBuilder

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class PassThrough:
    """An ASGI application; its client belongs to the server's event loop."""

    client: Client  # from the server's start-up on

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, or follow the server's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        request = self.client.post(os.environ["BENCH_UPSTREAM"]).body_bytes(body)
        answer = await request.header("content-type", "application/json").build().send()
        content = bytes(await answer.bytes())
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        limit = timedelta(seconds=60)
        self.client = ClientBuilder().no_proxy().http1_only().max_connections(None).timeout(limit).build()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.client.close()
        await send({"type": "lifespan.shutdown.complete"})


application = PassThrough()

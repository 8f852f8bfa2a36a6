"""An instant provider: every POST gets the same answer of the OpenAI Images API. ``python -m bench.provider PORT``.

It parses no more than it must to keep connections in step, so that its own cost hardly shows.
"""

import asyncio
import sys
from typing import cast

import uvloop

from bench.framing import split_message

TOKENS = 1500  # charged for each call
_BODY = (
    b'{"created":1763800000,"data":[{"url":"https://images.example/lighthouse.png"}],"output_format":"png",'
    b'"usage":{"input_tokens":20,"output_tokens":1480,"total_tokens":%d}}' % TOKENS
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class InstantProvider(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with nothing received."""
        self.transport = cast(asyncio.Transport, transport)
        self.received = b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self.received += data
        while message := split_message(self.received):
            self.received = message.rest
            self.transport.write(ANSWER)


async def serve(port: int) -> None:
    """Listen on 127.0.0.1 until the process is stopped."""
    server = await asyncio.get_running_loop().create_server(InstantProvider, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))

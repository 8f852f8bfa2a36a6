"""A provider that costs next to nothing: ``python -m bench.provider PORT [--delay S] [--image-bytes N]``.

Every POST gets an answer of the OpenAI Images API: a URL, or as many images of that size in base64 as `n` asks for. It
parses no more than it must to keep connections in step, so that its own cost hardly shows.
"""

import argparse
import asyncio
import base64
import os
import re
from functools import cache, partial
from typing import cast

import uvloop

from bench.framing import split_message

TOKENS = 1500  # charged for each call
_ASKED = re.compile(rb'"n" *: *(\d+)')
_USAGE = b'"output_format":"png","usage":{"input_tokens":20,"output_tokens":1480,"total_tokens":%d}}' % TOKENS
_URL = b'{"url":"https://images.example/lighthouse.png"}'


def answer(data: bytes) -> bytes:
    """A 200 whose `data` is this list's content."""
    body = b'{"created":1763800000,"data":[%s],%s' % (data, _USAGE)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class InstantProvider(asyncio.Protocol):
    """One connection. `delay` in seconds; `image_bytes` is the size of an image's file, 0: its URL is the answer."""

    def __init__(self, delay: float, image_bytes: int) -> None:
        self._delay, self._image_bytes = delay, image_bytes
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._received += data
        while message := split_message(self._received):
            self._received = message.rest
            found = _ASKED.search(message.body) if self._image_bytes else None
            whole = _images(self._image_bytes, int(found[1]) if found else 1) if self._image_bytes else _INSTANT
            if self._delay:
                asyncio.get_running_loop().call_later(self._delay, self._transport.write, whole)
            else:
                self._transport.write(whole)


_INSTANT = answer(_URL)


@cache
def _images(size: int, count: int) -> bytes:
    content = b"\x89PNG\r\n\x1a\n" + os.urandom(size - 8)  # noise, as a picture's compressed bytes are
    return answer(b",".join([b'{"b64_json":"%s"}' % base64.b64encode(content)] * count))


async def serve(port: int, delay: float, image_bytes: int) -> None:
    """Listen on 127.0.0.1 until the process is stopped."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(InstantProvider, delay, image_bytes), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    """Serve what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.provider", description="A provider that costs nothing.")
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="before each answer")
    parser.add_argument("--image-bytes", type=int, default=0, metavar="N", help="of an image, in base64; 0: a URL")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.delay, options.image_bytes))


if __name__ == "__main__":
    main()

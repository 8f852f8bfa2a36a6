"""Where an HTTP/1.1 message ends, if it carries Content-Length or has no body: all that provider and load need."""

import re
from typing import NamedTuple

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Message(NamedTuple):
    """A complete message and what follows it; `first_line` is the request or status line."""

    first_line: bytes
    body: bytes
    rest: bytes


def split_message(received: bytes) -> Message | None:
    """The first message in `received`; None while it isn't complete. A chunked body counts as none."""
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    found = _LENGTH.search(received, 0, head_end + 2)
    begin = head_end + 4
    end = begin + int(found[1]) if found else begin
    if len(received) < end:
        return None
    return Message(received[: received.index(b"\r\n")], received[begin:end], received[end:])

"""Where an HTTP/1.1 message ends: all that provider and load need to know of the protocol."""

import re
from typing import NamedTuple

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class Message(NamedTuple):
    """A complete message and what follows it; `first_line` is the request or status line."""

    first_line: bytes
    body: bytes
    rest: bytes


def split_message(received: bytes) -> Message | None:
    """The first message in `received`; None while it isn't complete.

    A chunked body is left as it came and must be the last thing that was received: nobody here pipelines.
    """
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    found = _LENGTH.search(received, 0, head_end + 2)
    begin = head_end + 4
    if found is None and _CHUNKED.search(received, 0, head_end + 2):
        end = len(received) if received.endswith(_LAST_CHUNK) else len(received) + 1
    else:
        end = begin + int(found[1]) if found else begin
    if len(received) < end:
        return None
    return Message(received[: received.index(b"\r\n")], received[begin:end], received[end:])


def wanted(received: bytes) -> int:
    """How many bytes to wait for until it is worth to call `split_message` again; 0 where the head doesn't say."""
    head_end = received.find(b"\r\n\r\n")
    found = _LENGTH.search(received, 0, head_end + 2) if head_end >= 0 else None
    return head_end + 4 + int(found[1]) if found else 0

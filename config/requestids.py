"""Request ids: UUID version 7 (RFC 9562, section 5.7), so that ids sort by time and the ledger is cut by month."""

import os
import time


def make_request_id(milliseconds: int | None = None) -> str:
    """A new id in the usual 36-character form; 74 random bits after the Unix time in milliseconds."""
    moment = time.time_ns() // 1_000_000 if milliseconds is None else milliseconds
    tail = os.urandom(10)
    text = f"{moment:012x}7{int.from_bytes(tail[:2]) & 0xFFF:03x}{0x80 | tail[2] & 0x3F:02x}{tail[3:].hex()}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

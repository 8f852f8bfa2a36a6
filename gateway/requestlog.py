"""One JSON line a request on standard error, beside the lines of config.logs and with the same first members.

Every request writes one, so it goes round the logging module: encoded by msgspec, handed over by a single
``write(2)``, which keeps the lines of several processes whole. `Fields` is all that can be logged: there is no place
for a prompt, a token or a key.
"""

import datetime as dt
import logging
import os
from typing import Required, TypedDict, Unpack

import msgspec

logger = logging.getLogger(__name__)
encoder = msgspec.json.Encoder()

STANDARD_ERROR = 2
LONGEST_CLIENT_ID = 200  # characters of the client's own request id; it may send what it likes


class Fields(TypedDict, total=False):
    """What a line says of a request, see docs/operations.md. None and "" are left out of the line."""

    request_id: Required[str]  # ours, a UUIDv7
    client_request_id: str  # the client's own X-Request-Id
    route: Required[str]  # the path's name, such as generate-image; never the path, which a client chooses
    method: Required[str]
    status: Required[int]
    type: str  # the error's, "" for a success
    tenant: int | None  # id
    token: int | None  # id
    address: str  # the client's
    ms: Required[float]  # from the request's head to the answer's last byte
    upstream_ms: float | None  # spent waiting for the provider
    model: str  # name
    n: int | None  # images asked for
    tokens: int | None  # charged


def write(**fields: Unpack[Fields]) -> None:
    """Write a request's line, unless ``LOG_LEVEL`` is above INFO. Never raises: a full or closed log loses the line."""
    if not logger.isEnabledFor(logging.INFO):
        return
    line: dict[str, object] = {
        "event": "request",
        "level": "info",
        "logger": __name__,
        "timestamp": dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z"),
    }
    for name, value in fields.items():
        if isinstance(value, float):
            line[name] = round(value, 2)
        elif value is not None and value != "":
            line[name] = value
    if "client_request_id" in line:
        line["client_request_id"] = fields["client_request_id"][:LONGEST_CLIENT_ID]
    try:
        os.write(STANDARD_ERROR, encoder.encode(line) + b"\n")
    except (OSError, UnicodeEncodeError):  # a lone surrogate in the client's header can't be written as UTF-8
        return

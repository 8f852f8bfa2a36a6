"""What the sandbox answers, and how it puts that on the wire."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Delivery(Enum):
    """How the server sends an answer."""

    WHOLE = "whole"
    NOTHING = "nothing"  # the connection closes without a byte
    MIDWAY = "midway"  # the connection closes after half of the body
    HUGE = "huge"  # the body is stretched far beyond what a caller should accept
    DRIP = "drip"  # one byte at a time


@dataclass(frozen=True)
class Answer:
    """One answer: status, headers (names in lower case) and body, and how it is to be delivered."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    delivery: Delivery = Delivery.WHOLE


class Refusal(Exception):
    """Stops the work on a request; `answer` is what the caller gets instead."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"refused with {answer.status}")
        self.answer = answer


def as_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, json.dumps(content, separators=(",", ":")).encode(), headers=headers or {})


def error(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """An error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""
    kinds = {429: "rate_limit_error", 401: "authentication_error", 403: "permission_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return as_json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)

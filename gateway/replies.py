"""What the API answers with: less than Django's response, which copies, checks and encodes what is known to be fine."""

from typing import Any

import msgspec
from django.http import HttpResponse

_encoder = msgspec.json.Encoder()


class Reply:
    """An answer: its `status`, its whole `body`, and its `headers` by name, each name in the one spelling we use."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.status, self.body, self.headers = status, body, headers


def json_reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """An answer with `content` as compact UTF-8 JSON."""
    return Reply(status, _encoder.encode(content), {"Content-Type": "application/json", **(headers or {})})


def reply_of(response: HttpResponse) -> Reply:
    """The same answer as one of Django's, from a view that isn't called often."""
    return Reply(response.status_code, response.content, dict(response.items()))

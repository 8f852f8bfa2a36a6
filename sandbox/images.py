"""The Images API: checks a request, draws, keeps the record, and answers as its directive asks."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sandbox import usage
from sandbox.answers import Answer, Delivery, Refusal, as_json, error
from sandbox.directives import Directive, DirectiveError, parse
from sandbox.drawing import draw
from sandbox.gallery import Gallery
from sandbox.record import Record
from sandbox.settings import Settings

MODEL = "sandbox-image-1"

_LONGEST_PROMPT = 32_000  # characters
_GARBAGE = b"<html><body>the kiln is cold, the stones are gone</body></html>"
_DELIVERIES = {
    "after_draw": Delivery.NOTHING,
    "midway": Delivery.MIDWAY,
    "huge": Delivery.HUGE,
    "drip": Delivery.DRIP,
}


@dataclass(frozen=True)
class Call:
    """One request to draw, checked."""

    model: str
    prompt: str
    size: str  # a key of usage.IMAGE_TOKENS
    n: int
    quality: str
    as_url: bool
    directive: Directive
    request_id: str | None


class Provider:
    """Answers requests by method and path; the server brings them and takes the answers away."""

    def __init__(self, settings: Settings) -> None:
        """Open the record and the gallery below `settings.data`. Raises OSError."""
        self._settings = settings
        self._record = Record(settings.data)
        self._gallery = Gallery(settings.data / "images")
        # Drawing is CPU work; on the event loop it would hold up every other call, and the delays.
        self._painters = ThreadPoolExecutor(max_workers=4, thread_name_prefix="painter")

    async def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """The answer to one request. `headers` by name in lower case."""
        try:
            if path.startswith("/images/"):
                return self._picture(method, path.removeprefix("/images/"))
            allowed = {"/v1/images/generations": "POST", "/v1/models": "GET"}.get(path)
            if allowed is None:
                return error(404, f"Invalid URL ({method} {path})")
            self._authenticate(headers)
            if method != allowed:
                return error(405, f"Not allowed to {method} on {path}", headers={"allow": allowed})
            if path == "/v1/models":
                card = {"id": MODEL, "object": "model", "created": 1767225600, "owned_by": "sandbox"}
                return as_json({"object": "list", "data": [card]})
            return await self._generate(read_call(headers, body))
        except Refusal as refusal:
            return refusal.answer

    def close(self) -> None:
        """Let no further picture be begun."""
        self._painters.shutdown(wait=False, cancel_futures=True)

    def _authenticate(self, headers: Mapping[str, str]) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode() if scheme.lower() == "bearer" else b""
        if not hmac.compare_digest(given, self._settings.key.encode()):
            raise Refusal(error(401, "Incorrect API key provided.", code="invalid_api_key"))

    def _picture(self, method: str, name: str) -> Answer:
        if method != "GET":
            return error(405, "A picture can only be fetched.", headers={"allow": "GET"})
        png = self._gallery.find(name)
        if png is None:
            return error(404, "No such picture; pictures are kept for an hour.")
        return Answer(200, png, content_type="image/png")

    async def _generate(self, call: Call) -> Answer:
        directive = call.directive
        await asyncio.sleep(directive.delay)
        if directive.drop == "unread":
            return Answer(200, b"", delivery=Delivery.NOTHING)
        if directive.status is not None:
            return _asked_error(directive.status)
        return await asyncio.get_running_loop().run_in_executor(self._painters, self._carry_out, call)

    def _carry_out(self, call: Call) -> Answer:
        """Draw and record; the record is on disk before this returns, so before the first byte of the answer."""
        pictures = [self._present(draw(call.prompt, k, _pixels(call.size)), call) for k in range(call.n)]
        total = usage.spent(call.size, call.n, call.prompt, call.directive)
        reported = usage.report(total, call.prompt, call.directive)
        answered = reported["total_tokens"] if reported else None
        self._record.append(
            request_id=call.request_id,
            model=call.model,
            size=call.size,
            n=call.n,
            total_tokens=answered if isinstance(answered, int) else None,
            directive=call.directive.words,
        )
        if call.directive.body == "garbage":
            return Answer(200, _GARBAGE)
        content = {
            "created": int(time.time()),
            "data": pictures,
            "background": "opaque",
            "output_format": "png",
            "quality": call.quality,
            "size": call.size,
        }
        if reported is not None:
            content["usage"] = reported
        delivery = _DELIVERIES.get(call.directive.drop or call.directive.body or "", Delivery.WHOLE)
        return Answer(200, json.dumps(content, separators=(",", ":")).encode(), delivery=delivery)

    def _present(self, png: bytes, call: Call) -> dict[str, str]:
        if call.as_url:
            return {"url": f"{self._settings.public_url}/images/{self._gallery.keep(png)}"}
        return {"b64_json": base64.b64encode(png).decode("ascii")}


def read_call(headers: Mapping[str, str], body: bytes) -> Call:
    """Check the body of an image request. Raises Refusal with a 400 that names the field."""
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise Refusal(error(400, "We could not parse the JSON body of your request."))
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > _LONGEST_PROMPT:
        raise _wrong("prompt", f"a text of 1 to {_LONGEST_PROMPT} characters")
    n = fields.get("n")
    n = 1 if n is None else n
    if type(n) is not int or not 1 <= n <= 10:
        raise _wrong("n", "a whole number from 1 to 10")
    if fields.get("stream"):
        raise _wrong("stream", "false: the sandbox does not stream")
    size = _one_of(fields, "size", "auto", (*usage.IMAGE_TOKENS, "auto"))
    try:
        directive = parse(prompt)
    except DirectiveError as exc:
        raise Refusal(error(400, str(exc), param="prompt", code="invalid_directive")) from exc
    return Call(
        model=_text(fields, "model", MODEL),
        prompt=prompt,
        size="1024x1024" if size == "auto" else size,
        n=n,
        quality=_text(fields, "quality", "auto"),
        as_url=_one_of(fields, "response_format", "b64_json", ("url", "b64_json")) == "url",
        directive=directive,
        request_id=headers.get("x-request-id"),
    )


def _text(fields: dict[str, Any], name: str, default: str) -> str:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise _wrong(name, "a text of 1 to 200 characters")
    return value


def _one_of(fields: dict[str, Any], name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = _text(fields, name, default)
    if value not in allowed:
        raise _wrong(name, f"one of {', '.join(allowed)}")
    return value


def _wrong(name: str, rule: str) -> Refusal:
    return Refusal(error(400, f"Invalid value for '{name}': it must be {rule}.", param=name, code="invalid_value"))


def _asked_error(status: int) -> Answer:
    """The error that a directive asked for."""
    if status == 400:
        return error(status, "Your request was rejected by the safety system.", code="moderation_blocked")
    if status == 429:
        message = "Rate limit reached for images per minute."
        return error(status, message, code="rate_limit_exceeded", headers={"retry-after": "7"})
    return error(status, f"The sandbox was asked to answer {status}.")


def _pixels(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    return int(width), int(height)

"""What a provider's complete answer means: images and usage, or which way the call failed.

The table, for the OpenAI Images API:

    status                     call        client gets
    200 with images            exact       200
    400 404 413 415 422        void        400 refused_by_provider
    401 402 403                void        500 upstream_failed, and an alarm for the operator
    429                        void        503 unavailable with the provider's Retry-After
    500 503 with its own JSON  void        500 upstream_failed
    anything else              unresolved  500 outcome_unknown
"""

from dataclasses import dataclass
from typing import Any, TypeGuard

import msgspec

from gateway.errors import ApiError, RefusedByProvider, Unavailable, UpstreamFailed
from gateway.upstream import Answer

REFUSED = frozenset({400, 404, 413, 415, 422})
OPERATORS_FAULT = frozenset({401, 402, 403})
LONGEST_RETRY_AFTER = 3600  # seconds
ABSURD = 10  # times the estimate: more than that is not usage
UNKNOWN_OUTCOME = "The remote AI service did not complete the call; whether it was carried out is not known."


class _Image(msgspec.Struct):
    url: Any = None
    b64_json: msgspec.Raw = msgspec.Raw(b"null")


class _Answer(msgspec.Struct):
    data: list[_Image]
    created: Any = None
    output_format: Any = None
    usage: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Answer)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost, as charged, and how we know: reported, estimated (what it said is absurd) or missing."""

    charged: int
    reported: int | None
    input: int | None
    output: int | None
    provenance: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """A success: for each image its base64 text (`encoded`, parts of the answer's body) or its `url`, and the usage."""

    encoded: list[memoryview]
    urls: list[str]
    created: int | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """A failure: `kind` void or unresolved, what the client is told, and the reason for the books.

    `down`: the provider itself didn't answer, only something in front of it.
    """

    kind: str
    error: ApiError
    reason: str
    alarm: bool = False
    down: bool = False


def _integer(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def read_usage(raw: bytes, estimate: int) -> Usage:
    """The usage object of an answer that delivered images; `estimate` is the call's upper bound in tokens.

    `total_tokens` is never summed from parts: some providers report 0 + 0 with a real total. A total that is missing
    or absurd (negative, not an integer, 0, over ten times the bound) is charged at the estimate and marked, and its
    parts are unknown: reports would sum them up.
    """
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.get("total_tokens") is None:
        return Usage(estimate, None, None, None, "missing")
    reported = _integer(fields["total_tokens"])
    if not reported or reported > ABSURD * estimate:
        return Usage(estimate, reported, None, None, "estimated")
    parts = _integer(fields.get("input_tokens")), _integer(fields.get("output_tokens"))
    return Usage(reported, reported, *parts, "reported")


def _is_link(url: Any) -> TypeGuard[str]:
    return isinstance(url, str) and url.startswith(("https://", "http://")) and url.isprintable() and len(url) < 8192


def _delivered(answer: Answer, n: int, estimate: int) -> Delivered | None:
    try:
        content = _decoder.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    encoded, urls = [], []
    for image in content.data[:n]:
        raw = memoryview(image.b64_json)
        if raw[0] == ord('"') and len(raw) > 2:
            encoded.append(raw[1:-1])
        elif _is_link(image.url):
            urls.append(image.url)
    if not encoded and not urls:
        return None
    created = content.created if type(content.created) is int and 0 < content.created < 2**40 else None
    return Delivered(encoded, urls, created, read_usage(bytes(content.usage), estimate))


def _has_error_object(body: bytes | memoryview) -> bool:
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("error"), dict)


def _retry_after(answer: Answer) -> int:
    value = answer.headers.get("retry-after", "")[:9]  # Python reads no number of thousands of digits
    return min(max(int(value), 1), LONGEST_RETRY_AFTER) if value.isascii() and value.isdigit() else 5


def judge(answer: Answer, n: int, estimate: int) -> Delivered | Failed:
    """Judge a complete answer to a call for `n` images with an upper bound of `estimate` tokens."""
    status = answer.status
    if status == 200:
        delivered = _delivered(answer, n, estimate)
        if delivered is not None:
            return delivered
        error: ApiError = UpstreamFailed("The remote AI service answered without an image.", "outcome_unknown", True)
        return Failed("unresolved", error, "no_image")
    if status in REFUSED:
        return Failed("void", RefusedByProvider(_refusal(answer)), f"refused_{status}")
    if status in OPERATORS_FAULT:
        error = UpstreamFailed("The remote AI service can't be used at the moment.", "upstream_failed", False)
        return Failed("void", error, f"provider_{status}", alarm=True)
    if status == 429:
        error = Unavailable("The remote AI service is out of capacity.", _retry_after(answer))
        return Failed("void", error, "provider_429")
    if status in {500, 503} and _has_error_object(answer.body):
        error = UpstreamFailed("The remote AI service failed.", "upstream_failed", False)
        return Failed("void", error, f"provider_{status}")
    down = status in {502, 503, 504} and not _has_error_object(answer.body)
    error = UpstreamFailed(UNKNOWN_OUTCOME, "outcome_unknown", True)
    return Failed("unresolved", error, f"provider_{status}", down=down)


def _refusal(answer: Answer) -> str:
    """Why the provider refused, from its error code alone: its own text may name its key or account."""
    try:
        code = msgspec.json.decode(answer.body)["error"]["code"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        code = None
    if isinstance(code, str) and code in {"moderation_blocked", "content_policy_violation"}:
        return "The remote AI service refused this prompt: its content policy doesn't allow it."
    return "The remote AI service refused this request."

"""Answers that no provider should give, byte by byte, and what each must come to for the client and in the books."""

import base64
import gzip
import json
from typing import Any, NamedTuple

MARK = "words-of-the-provider-7f3a"  # what a client must never read
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()
LINK = "https://images.example/1.png"


class Case(NamedTuple):
    """Raw bytes that a provider sends before it closes, and what must become of the call.

    `reason` and `provenance` are the ledger row's; None where the transport or the server's library decides.
    """

    raw: bytes
    status: int
    type: str
    kind: str
    reason: str | None = None
    provenance: str | None = None


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """An answer; `length` lies about its body."""
    # Otherwise the next case may be sent over a connection that the provider is about to close.
    head = [f"HTTP/1.1 {status}", "Connection: close", f"Content-Length: {len(body) if length is None else length}"]
    head += headers
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def images(data: Any, **more: Any) -> bytes:
    """The JSON of a success; `more` replaces or adds members."""
    return json.dumps({"created": 1773223961, "data": data, "usage": {"total_tokens": 700}, **more}).encode()


def exact(raw: bytes, provenance: str = "reported") -> Case:
    return Case(raw, 200, "", "exact", "", provenance)


def unknown(raw: bytes, reason: str | None = "no_image") -> Case:
    return Case(raw, 500, "outcome_unknown", "unresolved", reason, "estimated")


def refused(raw: bytes, status: int) -> Case:
    return Case(raw, 400, "refused_by_provider", "void", f"refused_{status}")


def failed(raw: bytes, reason: str) -> Case:
    return Case(raw, 500, "upstream_failed", "void", reason)


def moved(status: str) -> Case:
    return unknown(http(b"", f"Location: https://{MARK}.example", status=status), f"provider_{status[:3]}")


def busy(wait: str) -> Case:
    raw = http(ERROR, f"Retry-After: {wait}", status="429 Slow")
    return Case(raw, 503, "unavailable", "void", "provider_429")


def usage(text: str) -> bytes:
    return http(b'{"data": [{"url": "%s"}], "usage": %s}' % (LINK.encode(), text.encode()))


def picture(content: Any) -> bytes:
    return http(images([{"b64_json": content}]))


def link(url: Any) -> bytes:
    return http(images([{"url": url}]))


def chunked(*lines: bytes, length: bytes = b"") -> bytes:
    """An answer in chunks; `length` is what it declares all the same."""
    declared = b"Content-Length: %s\r\n" % length if length else b""
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n%s\r\n" % declared
    return head + b"\r\n".join(lines)


GOOD = images([{"url": LINK}])
SIZE = f"{len(GOOD):x}".encode()
ERROR = json.dumps({"error": {"message": MARK, "code": "x"}}).encode()
OUR_NAMES = (
    "X-Request-Id: theirs",
    f"Set-Cookie: a={MARK}",
    f'RateLimit: "{MARK}";r=0',
    f'RateLimit-Policy: "{MARK}";q=1',
    "X-RateLimit-Remaining-Images: 0",
    "x-should-retry: true",
    "Retry-After: 1",
    f"Access-Control-Allow-Origin: https://{MARK}.example",
    f"Idempotent-Replayed: {MARK}",
    f"X-Ignored-Fields: {MARK}",
    f"Location: https://{MARK}.example",
    f"X-Client-Request-Id: {MARK}",
    f"OpenAI-Organization: {MARK}",
    f"Content-Security-Policy: {MARK}",
)

USAGES = {
    "negative": ("estimated", '{"total_tokens": -5}'),
    "fraction": ("estimated", '{"total_tokens": 700.5}'),
    "whole-float": ("estimated", '{"total_tokens": 700.0}'),
    "exponent": ("estimated", '{"total_tokens": 7e2}'),
    "text": ("estimated", '{"total_tokens": "700"}'),
    "truth": ("estimated", '{"total_tokens": true}'),
    "nested": ("estimated", '{"total_tokens": {"total_tokens": 700}}'),
    "list": ("estimated", '{"total_tokens": [700]}'),
    "more-than-64-bits": ("estimated", '{"total_tokens": 18446744073709552316}'),
    "no-object": ("missing", "700"),
    "twice": ("reported", '{"total_tokens": -1, "total_tokens": 700}'),
    "odd-parts": ("reported", '{"total_tokens": 700, "input_tokens": "x", "output_tokens": -1}'),
    "deep": ("reported", '{"total_tokens": 700, "x": ' + "[" * 200 + "]" * 200 + "}"),
}
NO_IMAGES: dict[str, Any] = {
    "data-null": None,
    "data-object": {"0": {"url": LINK}},
    "data-text": LINK,
    "data-number": 4,
    "data-texts": [LINK],
    "data-lists": [[{"url": LINK}]],
    "data-with-null": [None, {"url": LINK}],
    "data-many-empty": [{}] * 50_000,
}
NO_PICTURES: dict[str, Any] = {
    "cut": PNG[:-3],
    "odd-characters": "!" + PNG[1:],
    "url-alphabet": PNG[:40] + "-_" + PNG[42:],
    "data-url": f"data:image/png;base64,{PNG}",
    "surrounded": f" {PNG} ",
    "svg": base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>").decode(),
    "html": base64.b64encode(b"<!doctype html><script>alert(1)</script>").decode(),
    "gif": base64.b64encode(b"GIF89a" + bytes(64)).decode(),
    "pdf": base64.b64encode(b"%PDF-1.7" + bytes(64)).decode(),
    "png-later": base64.b64encode(b" \x89PNG\r\n\x1a\n" + bytes(64)).decode(),
    "one-character": "A",
    "wide": "é" * 40,
    "number": 7,
    "list": [PNG],
    "object": {"b64_json": PNG},
}
NO_LINKS: dict[str, Any] = {
    "script": "javascript:alert(1)",
    "data": "data:text/html,<script>alert(1)</script>",
    "file": "file:///etc/passwd",
    "ftp": "ftp://images.example/1.png",
    "no-scheme": "//images.example/1.png",
    "path": "/images/1.png",
    "blank-before": f" {LINK}",
    "line-break": "https://images.example/\r\nSet-Cookie: a=b",
    "right-to-left": "https://images.example/‮gnp.1",
    "long": "https://images.example/" + "a" * 9000,
    "number": 5,
    "list": [LINK],
    "upper": "JAVASCRIPT:alert(1)",
}
STATUSES = ("201 Created", "202 Accepted", "203 Odd", "206 Partial Content", "299 Odd", "300 Choices", "409 Conflict")
REDIRECTS = ("301 Moved", "302 Found", "303 See Other", "304 Not Modified", "308 Permanent")
NO_JSON: dict[str, bytes] = {
    "cut": GOOD[:-9],
    "twice": GOOD + GOOD,
    "byte-order-mark": b"\xef\xbb\xbf" + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "latin-1": GOOD.replace(b"images.example", b"\xe9.example"),
    "half-a-surrogate": GOOD.replace(b"images.example", b"\\ud800.example"),
    "nul": GOOD + b"\0",
    "no-object": b'[{"url": "https://images.example/1.png"}]',
    "number": b"1e999999",
    "nan": images([{"url": LINK}], usage={"total_tokens": float("nan")}),
    "infinite": images([{"url": LINK}], created=float("inf")),
    "single-quotes": GOOD.replace(b'"', b"'"),
    "events": b"data: " + GOOD + b"\n\n",
    "deep": b'{"data": ' + b'[{"url":' * 60_000,
    "nothing": b"",
    "gzip": gzip.compress(GOOD),
    "zip-bomb": gzip.compress(bytes(40 << 20)),
}

CASES: dict[str, Case] = {
    # Successes that are odd: what was delivered counts
    **{f"usage-{name}": exact(usage(text), provenance) for name, (provenance, text) in USAGES.items()},
    "more-images-than-asked": exact(http(images([{"url": f"{LINK}?{number}"} for number in range(9)]))),
    "picture-and-link": exact(http(images([{"b64_json": PNG, "url": "javascript:alert(1)"}]))),
    "picture-of-null-and-link": exact(http(images([{"b64_json": None, "url": LINK}]))),
    "odd-members": exact(http(images([{"url": LINK}], output_format="<svg>", created="now", error={"message": MARK}))),
    "headers-of-our-names": exact(http(GOOD, *OUR_NAMES)),
    "headers-twice": exact(http(GOOD, *OUR_NAMES, *OUR_NAMES)),
    "request-id-of-other-letters": exact(http(GOOD, "X-Request-Id: \xff\xfe\xe9")),
    "request-id-of-20-KB": exact(http(GOOD, "X-Request-Id: " + "x" * 20_000)),
    "called-html": exact(http(GOOD, "Content-Type: text/html")),
    "called-nothing-known": exact(http(GOOD, "Content-Type: ;;;")),
    "called-gzip-and-plain": exact(http(GOOD, "Content-Encoding: gzip")),
    "trailers": exact(chunked(SIZE, GOOD, b"0", f"Set-Cookie: {MARK}".encode(), b"X-Request-Id: theirs", b"", b"")),
    "chunk-extensions": exact(chunked(SIZE + b";a=b;c", GOOD, b"0", b"", b"")),
    "chunks-of-less-than-declared": exact(chunked(SIZE, GOOD, b"0", b"", b"", length=b"100000")),
    "chunks-of-more-than-declared": exact(chunked(SIZE, GOOD, b"0", b"", b"", length=b"1")),
    "chunks-and-a-length-of-letters": exact(chunked(SIZE, GOOD, b"0", b"", b"", length=b"many")),
    "continue-first": exact(b"HTTP/1.1 100 Continue\r\n\r\n" + http(GOOD)),
    "hints-first": exact(b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + http(GOOD)),
    "until-it-closes": exact(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD),
    "http-1.0": exact(b"HTTP/1.0 200 OK\r\n\r\n" + GOOD),
    "more-than-its-length": exact(http(GOOD + b"HTTP/1.1 200 OK\r\n", length=len(GOOD))),
    # 200 without an image
    **{f"body-{name}": unknown(http(body)) for name, body in NO_JSON.items()},
    "body-gzip-that-says-so": unknown(http(NO_JSON["gzip"], "Content-Encoding: gzip")),
    "body-bomb-that-says-so": unknown(http(NO_JSON["zip-bomb"], "Content-Encoding: gzip")),
    **{name: unknown(http(images(data))) for name, data in NO_IMAGES.items()},
    "data-missing": unknown(http(b'{"created": 1, "usage": {"total_tokens": 700}}')),
    "an-error-with-200": unknown(http(ERROR)),
    **{f"picture-{name}": unknown(picture(content)) for name, content in NO_PICTURES.items()},
    "one-good-one-bad": unknown(http(images([{"b64_json": PNG}, {"b64_json": "PGh0bWw+"}]))),
    **{f"link-{name}": unknown(link(url)) for name, url in NO_LINKS.items()},
    # Other statuses, even with an image: nobody knows what they mean
    **{f"status-{text[:3]}": unknown(http(GOOD, status=text), f"provider_{text[:3]}") for text in STATUSES},
    **{f"status-{text[:3]}": moved(text) for text in REDIRECTS},
    "status-999": unknown(http(GOOD, status="999 Odd"), "provider_999"),
    "status-205": unknown(http(b"", status="205 Reset"), "provider_205"),
    "status-500-text": unknown(http(MARK.encode(), status="500 Oops"), "provider_500"),
    "status-500-list": unknown(http(b'[{"error": {}}]', status="500 Oops"), "provider_500"),
    "status-503-deep": unknown(http(b'{"error": ' + b"[" * 90_000, status="503 Busy"), "provider_503"),
    "status-500-error": failed(http(ERROR, *OUR_NAMES, status="500 Oops"), "provider_500"),
    "status-401-html": failed(http(MARK.encode(), *OUR_NAMES, status="401 No"), "provider_401"),
    **{
        f"refusal-{name}": refused(http(body, *OUR_NAMES, status="400 Bad"), 400)
        for name, body in {
            "html": b"<html>" + MARK.encode(),
            "nothing": b"",
            "error-text": json.dumps({"error": MARK}).encode(),
            "error-list": json.dumps({"error": [MARK]}).encode(),
            "code-list": json.dumps({"error": {"code": [MARK]}}).encode(),
            "code-object": json.dumps({"error": {"code": {MARK: 1}}}).encode(),
            "code-number": json.dumps({"error": {"code": 400, "message": MARK}}).encode(),
            "deep": b'{"error": ' + b"[" * 90_000,
            "latin-1": b'{"error": {"code": "\xe9"}}',
        }.items()
    },
    **{
        f"wait-{name}": busy(value)
        for name, value in {
            "negative": "-1",
            "fraction": "1.5",
            "nothing": "",
            "text": MARK,
            "5000-digits": "9" * 5000,
            "zero": "0",
            "other-digits": "\xb2",
        }.items()
    },
    # What is hardly HTTP
    "switches": unknown(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + GOOD, None),
    "hints-without-end": unknown(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 300, None),
    "closes-after-the-head": unknown(http(b"", length=500), "upstream_failed"),
    "closes-within-the-head": unknown(b"HTTP/1.1 200 OK\r\nContent-Le", "upstream_failed"),
    "shorter-than-its-length": unknown(http(GOOD, length=len(GOOD) + 1), "upstream_failed"),
    "terabyte-declared": unknown(http(GOOD, length=10**12), "upstream_failed"),
    "chunks-and-a-terabyte-declared": unknown(chunked(SIZE, GOOD, length=b"1" + b"0" * 12), "upstream_failed"),
    "negative-length": unknown(http(GOOD, length=-1), "upstream_failed"),
    "two-lengths": unknown(http(GOOD, "Content-Length: 3"), "upstream_failed"),
    "length-of-letters": unknown(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + GOOD, "upstream_failed"),
    "chunk-of-letters": unknown(chunked(b"zz", GOOD, b"0", b"", b""), "upstream_failed"),
    "chunk-of-2^64": unknown(chunked(b"f" * 17, GOOD, b"0", b"", b""), "upstream_failed"),
    "chunk-negative": unknown(chunked(b"-1", GOOD, b"0", b"", b""), "upstream_failed"),
    "chunks-without-end": unknown(chunked(SIZE, GOOD, b""), "upstream_failed"),
    "status-of-four-digits": unknown(http(GOOD, status="2000 OK"), "upstream_failed"),
    "status-of-letters": unknown(http(GOOD, status="OK"), "upstream_failed"),
    "http-9": unknown(http(GOOD).replace(b"HTTP/1.1", b"HTTP/9.9"), "upstream_failed"),
    "http-2": unknown(b"\0\0\x12\x04\0\0\0\0\0" + bytes(64), "upstream_failed"),
    "head-of-a-megabyte": unknown(http(GOOD, "X-Large: " + "x" * 1_000_000), "upstream_failed"),
    "2000-headers": unknown(http(GOOD, *[f"X-{number}: {MARK}" for number in range(2000)]), "upstream_failed"),
    "nul-in-a-header": unknown(http(GOOD, "X-Nul: a\0b"), "upstream_failed"),
    "header-without-a-colon": unknown(http(GOOD, MARK), "upstream_failed"),
}

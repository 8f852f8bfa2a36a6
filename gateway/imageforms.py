"""Which bytes are images: decoding what providers send, and recognising the three forms that are served."""

import msgspec
import pybase64

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


Encoded = bytes | memoryview  # base64 text


class NotAnImage(Exception):
    """What the provider sent is not base64 of a PNG, JPEG or WebP file."""


def form_of(content: bytes) -> str | None:
    """What the first bytes prove: png, jpeg, webp, or None."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return None


def decode(encoded: Encoded) -> bytes:
    r"""Decode strict base64 as it stands between the quotes of a JSON string.

    JSON's escapes (``\/``, ``\n``) and line breaks are taken out if there are any; any other character outside the
    base64 alphabet, and missing or more padding, raise NotAnImage.
    """
    try:
        return pybase64.b64decode(encoded, validate=True)
    except ValueError:  # what hardly any provider sends: only then it's worth looking for
        return _decode_text(bytes(encoded))


def _decode_text(encoded: bytes) -> bytes:
    try:
        if b"\\" in encoded:
            encoded = msgspec.json.decode(b'"' + encoded + b'"', type=str).encode("ascii")
        return pybase64.b64decode(encoded.translate(None, b"\r\n"), validate=True)
    except ValueError as exc:  # a decoding error of msgspec, of ASCII or of base64
        raise NotAnImage("The provider's image is not valid base64.") from exc

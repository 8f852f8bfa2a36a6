"""Signatures of webhooks by Standard Webhooks (github.com/standard-webhooks/standard-webhooks, its specification).

A secret is ``whsec_`` and base64 of 24 to 64 random bytes. What is signed is ``id.timestamp.payload``, by HMAC-SHA-256
under those bytes; the header holds ``v1,`` and base64 of it.
"""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode

PREFIX = "whsec_"
SECRET_BYTES = 32


def make_secret() -> str:
    """A new secret, from the operating system's random source."""
    return PREFIX + b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signature(secret: str, message_id: str, timestamp: int, payload: bytes) -> str:
    """The value of ``webhook-signature``."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), payload))
    return "v1," + b64encode(hmac.digest(b64decode(secret.removeprefix(PREFIX)), signed, hashlib.sha256)).decode()


def headers(secret: str, message_id: str, timestamp: int, payload: bytes) -> dict[str, str]:
    """The three headers of a message; `timestamp` is when this attempt is made, in epoch seconds."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature(secret, message_id, timestamp, payload),
    }

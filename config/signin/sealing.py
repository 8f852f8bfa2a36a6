"""Authenticators' secrets at rest: AES-256-GCM under a key derived from ``ENCRYPTION_KEYS``, bound to the person.

A sealed secret is 64 characters of URL-safe base64: 12 bytes of nonce, 20 of secret, 16 of tag. It fits the column of
django-otp, which is too short for Fernet. The first of the keys seals, all open; `is_current` tells what to seal anew.
"""

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

NONCE_BYTES = 12


class Unreadable(Exception):
    """None of ``ENCRYPTION_KEYS`` opens an authenticator's secret, or it is another person's."""


def seal(secret: bytes, user_id: int) -> str:
    """Encrypt a secret for the person with that id, with the first key."""
    nonce = os.urandom(NONCE_BYTES)
    sealed = _cipher(settings.ENCRYPTION_KEYS[0]).encrypt(nonce, secret, _owner(user_id))
    return urlsafe_b64encode(nonce + sealed).decode()


def unseal(sealed: str, user_id: int) -> bytes:
    """Decrypt what `seal` returned for the same person. Raises Unreadable."""
    for key in settings.ENCRYPTION_KEYS:
        secret = _try(key, sealed, user_id)
        if secret is not None:
            return secret
    raise Unreadable


def is_current(sealed: str, user_id: int) -> bool:
    """Whether the first key opens it."""
    return _try(settings.ENCRYPTION_KEYS[0], sealed, user_id) is not None


def _try(key: str, sealed: str, user_id: int) -> bytes | None:
    try:
        raw = urlsafe_b64decode(sealed)
        return _cipher(key).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], _owner(user_id))
    except (InvalidTag, ValueError):
        return None


def _cipher(key: str) -> AESGCM:
    # A key of its own, so that nothing encrypted with the Fernet key elsewhere says anything about this.
    derived = HKDF(SHA256(), length=32, salt=None, info=b"signin.authenticator").derive(urlsafe_b64decode(key))
    return AESGCM(derived)


def _owner(user_id: int) -> bytes:
    return f"user {user_id}".encode()

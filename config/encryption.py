"""Encryption at rest of secrets that must be read again, such as providers' keys and webhooks' secrets.

Fernet (AES-128-CBC with HMAC-SHA-256) from the cryptography package.

``ENCRYPTION_KEYS`` is a list of keys as ``Fernet.generate_key()`` makes them. The first encrypts, all decrypt: put a
new one in front to rotate, and take the old one away once no stored key needs it any more.
"""

from functools import cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured


class WrongKey(ImproperlyConfigured):
    """None of ``ENCRYPTION_KEYS`` opens what was stored."""


def encrypt(text: str) -> bytes:
    """Encrypt `text` with the first key. The result is URL-safe ASCII and differs from call to call.

    Raises ImproperlyConfigured when ``ENCRYPTION_KEYS`` holds something that is no key.
    """
    return _cipher(tuple(settings.ENCRYPTION_KEYS)).encrypt(text.encode())


def decrypt(encrypted: bytes) -> str:
    """Decrypt what `encrypt` returned, with whichever key opens it.

    Raises WrongKey, an ImproperlyConfigured, when none does or the bytes were changed.
    """
    try:
        return _cipher(tuple(settings.ENCRYPTION_KEYS)).decrypt(encrypted).decode()
    except InvalidToken as exc:
        raise WrongKey(
            "A stored secret can't be opened with ENCRYPTION_KEYS: add the key that it was encrypted with,"
            " or enter the secret again."
        ) from exc


@cache
def _cipher(keys: tuple[str, ...]) -> MultiFernet:
    try:
        return MultiFernet([Fernet(key) for key in keys])
    except ValueError as exc:
        raise ImproperlyConfigured(
            "ENCRYPTION_KEYS must list keys of 32 bytes in URL-safe base64, such as"
            ' python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())" prints.'
        ) from exc

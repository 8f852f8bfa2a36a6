"""Making, recognising and digesting the secrets that clients present.

A secret of ours is ``gem_`` + 40 base62 characters (238 bits) + 6 base62 characters of the CRC-32 of all before, so a
typo is found without a look-up and scanners can recognise a leak. Only an HMAC-SHA-256 of it under a versioned
server pepper is stored: a stolen database or dump gives nobody a working secret.
"""

import hashlib
import hmac
import secrets
import zlib
from collections.abc import Mapping

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "gem_"
API_PREFIX = "gemf_"  # of keys of the management API (tokens.apikeys), which open no call
RANDOM_CHARACTERS = 40
CHECK_CHARACTERS = 6
LENGTH = len(PREFIX) + RANDOM_CHARACTERS + CHECK_CHARACTERS
SHOWN_CHARACTERS = 10  # of a secret, in lists: `gem_` and six more say which one it is and reveal 36 of 238 bits
LEAST_IMPORTED_LENGTH = 20
MOST_LENGTH = 255


def checksum(text: str) -> str:
    """CRC-32 of ASCII `text` as six base62 characters, most significant first."""
    number = zlib.crc32(text.encode("ascii"))
    characters = []
    for _ in range(CHECK_CHARACTERS):
        number, rest = divmod(number, 62)
        characters.append(ALPHABET[rest])
    return "".join(reversed(characters))


def make_secret(prefix: str = PREFIX) -> str:
    """A new secret, 50 characters with our prefix, from the operating system's random source."""
    body = prefix + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))
    return body + checksum(body)


def derive_secret(key: bytes, text: bytes) -> str:
    """The secret of a token that follows from `text` under `key`: as good as a random one while the key is not known.

    512 bits of HMAC become 40 base62 characters (238 bits), so no character is likelier than another.
    """
    number = int.from_bytes(hmac.digest(key, text, hashlib.sha512))
    characters = []
    for _ in range(RANDOM_CHARACTERS):
        number, rest = divmod(number, 62)
        characters.append(ALPHABET[rest])
    body = PREFIX + "".join(characters)
    return body + checksum(body)


def is_plausible(secret: str) -> bool:
    """Whether `secret` can be one that we know, decided without a look-up.

    A `gem_` secret must have our length and checksum; an imported one, which never starts with `gem_`, must have
    20 to 255 visible ASCII characters.
    """
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        return False
    if secret.startswith(PREFIX):
        return len(secret) == LENGTH and hmac.compare_digest(
            checksum(secret[:-CHECK_CHARACTERS]), secret[-CHECK_CHARACTERS:]
        )
    return LEAST_IMPORTED_LENGTH <= len(secret) <= MOST_LENGTH


def digest(secret: str, pepper: bytes) -> str:
    """HMAC-SHA-256 of an ASCII `secret` under one pepper, 64 hexadecimal characters."""
    return hmac.digest(pepper, secret.encode("ascii"), hashlib.sha256).hex()


def digests(secret: str, peppers: Mapping[int, bytes]) -> list[str]:
    """The digests of `secret` under every accepted pepper, newest version first."""
    return [digest(secret, peppers[version]) for version in sorted(peppers, reverse=True)]

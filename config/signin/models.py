"""The second factor's devices: django-otp's own, whose secrets can't be read from a copy of the database."""

import os
from base64 import b32encode
from typing import Any, ClassVar

from django.conf import settings
from django.utils.crypto import salted_hmac
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp.models import TOTPDevice

from config.signin import sealing

SECRET_BYTES = 20  # what RFC 4226, section 4, recommends for HMAC-SHA-1
DIGEST_BYTES = 10  # 80 bits: 16 characters of base32, the width of django-otp's column


MOST_COUNTED = 10  # wrong codes in a row; the wait doubles with each, to 512 seconds


class Patient:
    """A device that is never closed for longer than minutes: otherwise a thief could lock its owner out for days."""

    throttling_failure_count: int

    def throttle_increment(self, commit: bool = True) -> None:
        """Count a wrong code."""
        super().throttle_increment(commit=False)  # type: ignore[misc]
        self.throttling_failure_count = min(self.throttling_failure_count, MOST_COUNTED)
        if commit:
            self.save()  # type: ignore[attr-defined]


class Authenticator(Patient, TOTPDevice):
    """An authenticator app (TOTP, RFC 6238): 6 digits, 30 seconds, one step of drift, each code once."""

    key: str

    class Meta:
        proxy = True

    @classmethod
    def make(cls, user: Any) -> "Authenticator":
        """A new one, not yet confirmed and not yet saved."""
        sealed = sealing.seal(os.urandom(SECRET_BYTES), user.pk)
        return cls(user=user, name="authenticator", confirmed=False, key=sealed)

    @property
    def bin_key(self) -> bytes:
        """The secret. Raises sealing.Unreadable."""
        return sealing.unseal(self.key, self.user_id)

    def verify_token(self, token: str) -> bool:
        """Whether the code is right, unused and not throttled; seals the secret anew when ENCRYPTION_KEYS changed."""
        right = bool(super().verify_token(token))
        if right and not sealing.is_current(self.key, self.user_id):
            self.key = sealing.seal(self.bin_key, self.user_id)
            self.save(update_fields=["key"])
        return right

    def secret_text(self) -> str:
        """The secret in base32, in groups of four, to be typed."""
        text = b32encode(self.bin_key).decode()
        return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


class RecoveryCodes(Patient, StaticDevice):
    """Codes on paper, each good once. What is stored are keyed digests under ``SECRET_KEY``, bound to the person."""

    NAME: ClassVar[str] = "recovery codes"

    class Meta:
        proxy = True

    def digest(self, code: str) -> str:
        """What is stored of a code: 16 characters of base32."""
        digest = salted_hmac("signin.recovery", f"{self.user_id}:{code}", settings.SECRET_KEY, algorithm="sha256")
        return b32encode(digest.digest()[:DIGEST_BYTES]).decode()

    def verify_token(self, token: str) -> bool:
        """Whether it is one of the codes; it is used up by this."""
        return bool(super().verify_token(self.digest(token)))

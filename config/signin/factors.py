"""The second factor of a person: the verbs, and who must have one."""

import datetime as dt
import logging
import secrets
import time
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.dispatch import Signal
from django.utils import timezone
from django_otp import verify_token
from django_otp.oath import TOTP
from django_otp.plugins.otp_static.models import StaticToken

from config.signin.models import Authenticator, RecoveryCodes
from config.signin.sealing import Unreadable

logger = logging.getLogger(__name__)

told = Signal()  # sent with `user`, and `what` was done to which `part`, in the transaction that does it, if any

RECOVERY_CODES = 10
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that look alike; 31 to the power of 10 are 49 bits
HALF = 5
STEP_SECONDS = 30
STEPS_LOOKED_AT = 120  # an hour each way: a wrong time zone set by hand is as common as a slow clock


class Checked(NamedTuple):
    """What became of a code: the device that took it, else why not, in a sentence."""

    device: Authenticator | RecoveryCodes | None
    why: str = ""


def is_required(user: Any) -> bool:
    """Whether this person must have a second factor: ``SECOND_FACTOR_REQUIRED`` names the roles."""
    roles = {"platform": user.is_superuser, "finance": getattr(user, "is_finance", False)}
    return any(roles[role] for role in settings.SECOND_FACTOR_REQUIRED)


def authenticator_of(user: Any) -> Authenticator | None:
    """The person's authenticator app, if they have set one up. One query."""
    found: Authenticator | None = Authenticator.objects.filter(user=user, confirmed=True).order_by("-pk").first()
    return found


def recovery_of(user: Any) -> RecoveryCodes | None:
    """The person's recovery codes, if they have any."""
    found: RecoveryCodes | None = RecoveryCodes.objects.filter(user=user, confirmed=True).first()
    return found


def pending(user: Any) -> Authenticator:
    """The authenticator that this person is about to set up: the one begun before, else a new one."""
    with transaction.atomic():
        _lock(user)
        begun: Authenticator | None = Authenticator.objects.filter(user=user, confirmed=False).first()
        if begun is None or not _is_readable(begun):
            Authenticator.objects.filter(user=user, confirmed=False).delete()
            begun = Authenticator.make(user)
            begun.save()
    return begun


def confirm(user: Any, code: str) -> tuple[Checked, list[str]]:
    """Make the pending authenticator the person's second factor when `code` is its current one.

    Whatever they had before is gone then, and with it every other session.

    Returns:
        What became of the code and, when it was right, new recovery codes: the only time that they can be read.
    """
    begun = pending(user)
    wait = _seconds_to_wait(begun)
    if wait:
        return Checked(None, _patience(wait)), []
    if not verify_token(user, begun.persistent_id, _plain(code)):
        return Checked(None, _clock_error(begun, _plain(code)) or _wrong()), []
    with transaction.atomic():
        _lock(user)
        Authenticator.objects.filter(user=user).exclude(pk=begun.pk).delete()
        Authenticator.objects.filter(pk=begun.pk).update(confirmed=True)
        told.send(Authenticator, user=user, what="set up", part="second factor")
        codes = new_recovery_codes(user)
    begun.refresh_from_db()
    logger.info("second factor set up", extra={"user": user.pk})
    return Checked(begun), codes


def check(user: Any, code: str) -> Checked:
    """Try a code of the person's authenticator or, when it isn't six digits, one of their recovery codes."""
    plain = _plain(code)
    is_recovery = not (plain.isdecimal() and len(plain) == 6)
    device = recovery_of(user) if is_recovery else authenticator_of(user)
    if device is None:
        return Checked(None, _wrong())
    wait = _seconds_to_wait(device)
    if wait:
        return Checked(None, _patience(wait))
    try:
        taken = verify_token(user, device.persistent_id, plain)
    except Unreadable:
        logger.error("an authenticator's secret can't be opened with ENCRYPTION_KEYS", extra={"user": user.pk})
        return Checked(None, "Your authenticator can't be checked any more: use a recovery code, then set it up anew.")
    if taken and is_recovery:
        logger.warning("a recovery code was used", extra={"user": user.pk})
        told.send(RecoveryCodes, user=user, what="used", part="a recovery code")
    if taken:
        return Checked(device)
    return Checked(None, "That is none of your unused codes." if is_recovery else _wrong())


def new_recovery_codes(user: Any) -> list[str]:
    """Ten new recovery codes in place of whatever is left of the old ones; only digests of them are kept."""
    with transaction.atomic():
        _lock(user)
        RecoveryCodes.objects.filter(user=user).delete()
        device = RecoveryCodes.objects.create(user=user, name=RecoveryCodes.NAME)
        codes = [_random_code() for _ in range(RECOVERY_CODES)]
        StaticToken.objects.bulk_create(StaticToken(device=device, token=device.digest(_plain(code))) for code in codes)
        told.send(RecoveryCodes, user=user, what="made", part="new recovery codes")
    return codes


def codes_left(user: Any) -> int:
    """How many recovery codes haven't been used."""
    return int(StaticToken.objects.filter(device__user=user).count())


def remove(user: Any) -> bool:
    """Take the second factor away; whether there was one. Every session that relied on it ends."""
    with transaction.atomic():
        _lock(user)
        removed, _ = Authenticator.objects.filter(user=user).delete()
        RecoveryCodes.objects.filter(user=user).delete()
        if removed:
            told.send(Authenticator, user=user, what="removed", part="second factor")
    if removed:
        logger.warning("second factor removed", extra={"user": user.pk})
    return bool(removed)


def _lock(user: Any) -> None:
    """One change of a person's factor at a time."""
    get_user_model()._base_manager.select_for_update().get(pk=user.pk)


def _is_readable(device: Authenticator) -> bool:
    try:
        return bool(device.bin_key)
    except Unreadable:
        return False


def _plain(code: str) -> str:
    """A code as it is checked: people write spaces and dashes, and capitals."""
    return "".join(character for character in code.lower() if character.isalnum())[:32]


def _random_code() -> str:
    half = ("".join(secrets.choice(LETTERS) for _ in range(HALF)) for _ in range(2))
    return "-".join(half)


def _seconds_to_wait(device: Authenticator | RecoveryCodes) -> int:
    allowed, details = device.verify_is_allowed()
    if allowed or not details:
        return 0
    until: dt.datetime = details["locked_until"]
    return max(1, round((until - timezone.now()).total_seconds()))


def _patience(seconds: int) -> str:
    return f"After a wrong code the next one waits: it is looked at in {seconds} second{'' if seconds == 1 else 's'}."


def _wrong() -> str:
    clock = timezone.now().strftime("%H:%M:%S")
    return (
        "That code isn't right, or it was used already. Wait for the next one. If none works, let your phone set its"
        f" time automatically: codes depend on it, and it is {clock} UTC here."
    )


def _clock_error(device: Authenticator, code: str) -> str:
    """Why a code of a new authenticator is wrong when its phone's clock is; "" when that isn't why.

    Only for one that isn't in use: told of a code in use, a thief would know when it will work.
    """
    if not (code.isdecimal() and len(code) == 6):
        return ""
    totp = TOTP(device.bin_key, STEP_SECONDS)
    totp.time = time.time()
    for steps in range(2, STEPS_LOOKED_AT + 1):
        for drift in (-steps, steps):
            totp.drift = drift
            if totp.token() == int(code):
                minutes = max(1, round(steps * STEP_SECONDS / 60))
                way = "behind" if drift < 0 else "ahead"
                return (
                    f"That code is right for a clock that is about {minutes} minute{'' if minutes == 1 else 's'} {way}"
                    " of ours. Let your phone set its time automatically, then enter the next code."
                )
    return ""

"""What a session of the admin is worth: since when, how far it got, and why it ends."""

import time
from typing import Any

from django.conf import settings
from django.contrib.auth.signals import user_logged_in
from django.dispatch import receiver
from django.http import HttpRequest
from django_otp import DEVICE_ID_SESSION_KEY

from config.signin.factors import authenticator_of
from config.signin.models import Authenticator, RecoveryCodes

STARTED, SEEN, FACTOR, CONFIRMED = "signin_started", "signin_seen", "signin_factor", "signin_confirmed"
NOTED_EVERY = 60  # seconds; otherwise every request would write the session
SECOND_STEP_WITHIN = 600  # seconds from the password to the code
FRESH_FOR = 600  # seconds for which a code counts when the factor itself is to be changed


@receiver(user_logged_in)
def begin(sender: Any, request: HttpRequest, user: Any, **_kwargs: Any) -> None:
    """Mark a session that a password has just opened; its key is new already."""
    device = authenticator_of(user)
    now = int(time.time())
    request.session.update({STARTED: now, SEEN: now, FACTOR: device.pk if device else 0})
    request.session.pop(DEVICE_ID_SESSION_KEY, None)
    request.session.pop(CONFIRMED, None)


def why_ended(request: HttpRequest, device: Authenticator | None) -> str:
    """Why this session is over, in a sentence; "" while it isn't. Notes once a minute that it is in use."""
    session, now = request.session, time.time()
    if session.get(FACTOR) != (device.pk if device else 0):
        return "Your second factor has changed, so you are signed out everywhere. Please sign in again."
    if now - session.get(STARTED, 0) > settings.SESSION_COOKIE_AGE:
        return "You signed in half a day ago. Please sign in again."
    if now - session.get(SEEN, 0) > settings.SESSION_IDLE_MINUTES * 60:
        return "You were away for a while, so you are signed out. Please sign in again."
    if device and not has_second_step(request, device) and now - session[STARTED] > SECOND_STEP_WITHIN:
        return "The code didn't come in time. Please sign in again."
    if now - session[SEEN] > NOTED_EVERY:
        session[SEEN] = int(now)
    return ""


def has_second_step(request: HttpRequest, device: Authenticator) -> bool:
    """Whether a code was accepted in this session, and the person's factor is still the same."""
    return DEVICE_ID_SESSION_KEY in request.session and request.session.get(FACTOR) == device.pk


def take_second_step(request: HttpRequest, user: Any, device: Authenticator | RecoveryCodes) -> None:
    """Note that the person has shown their second factor, under a new session key."""
    request.session.cycle_key()
    owner = authenticator_of(user)
    request.session.update(
        {DEVICE_ID_SESSION_KEY: device.persistent_id, FACTOR: owner.pk if owner else 0, CONFIRMED: int(time.time())}
    )


def forget_second_step(request: HttpRequest) -> None:
    """Carry on without a second factor: the person has just removed it here."""
    request.session.cycle_key()
    request.session.pop(DEVICE_ID_SESSION_KEY, None)
    request.session.pop(CONFIRMED, None)
    request.session[FACTOR] = 0


def is_fresh(request: HttpRequest) -> bool:
    """Whether a code was entered in the last ten minutes, as changing the factor asks for."""
    return time.time() - float(request.session.get(CONFIRMED, 0)) <= FRESH_FOR

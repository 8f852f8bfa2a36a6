"""Passwords that people choose themselves, by a link that is mailed to them: when they are invited, or have forgotten.

A link is Django's: signed over the password and the last sign-in, so it works once, and the newest password ends all.
A second factor is asked for as ever.
"""

import datetime as dt
import logging
import smtplib
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.core.mail import send_mail
from django.urls import reverse
from django.utils.encoding import force_bytes
from django.utils.http import base36_to_int, urlsafe_base64_encode

from config.signin.factors import told

logger = logging.getLogger(__name__)

INVITED_FOR = dt.timedelta(days=7)  # not longer than PASSWORD_RESET_TIMEOUT
FORGOTTEN_FOR = dt.timedelta(hours=1)

INVITATION = """\
You may sign in to {site} at {place}, as {person}.

Choose your password within {days} days, by this link. It works once:

{link}

If you didn't expect this, do nothing: nobody can sign in as you without it.
"""
FORGOTTEN = """\
A new password was asked for, for {person} at {place}. Choose it within an hour, by this link. It works once:

{link}

If that wasn't you, do nothing: your password stays as it is.
"""


class NotSent(Exception):
    """Why no link was mailed, in a sentence."""


class Links(PasswordResetTokenGenerator):
    """Makes and checks links. Who has a password has an hour; who is invited and has none yet, a week."""

    key_salt = "config.signin.passwords"

    def check_token(self, user: Any, token: str | None) -> bool:
        """Whether the link is this person's, unused, and not too old."""
        if not token or not super().check_token(user, token):
            return False
        age = dt.timedelta(seconds=self._num_seconds(self._now()) - base36_to_int(token.partition("-")[0]))
        return age <= (FORGOTTEN_FOR if user.has_usable_password() else INVITED_FOR)


links = Links()


def why_not(user: Any) -> str:
    """Why this person can't be mailed a link, in a sentence; "" when they can."""
    if not settings.EMAIL_URL:
        return "The gateway has no mail server: its operator sets EMAIL_URL."
    if not user.is_active:
        return f"{user} is not active, and can't sign in."
    if not user.is_staff:
        return f"{user} has no role, so there is nothing to sign in to. Give them one first."
    if user.last_login is not None and not user.has_usable_password():
        return f"The password of {user} was ended. A platform administrator can set another."
    return ""


def invite(user: Any) -> None:
    """Mail a person the link to choose a password by. Raises NotSent. Talks to the mail server: in no transaction."""
    if reason := why_not(user):
        raise NotSent(reason)
    _send(user)
    told.send(type(user), user=user, what="mailed a password link to", part="")


def help_who_forgot(address: str, asked_from: str) -> bool:
    """Mail whoever signs in with this address a link, if there is such a person; whether one was sent.

    `asked_from` is the network address that it was asked from, for the audit trail.
    """
    user = get_user_model()._base_manager.filter(email=address).first()
    if user is None or why_not(user):
        return False
    try:
        _send(user)
    except NotSent as exc:
        logger.warning("a link for a new password was not mailed", extra={"user": user.pk, "reason": str(exc)})
        return False
    reason = f"asked for from {asked_from}"
    told.send(type(user), user=user, what="mailed a password link to", part="", reason=reason)
    return True


def link_to_choose(user: Any) -> str:
    """A new link. It begins with ``PUBLIC_URL``: what a request says its host is, anybody may have written."""
    uid = urlsafe_base64_encode(force_bytes(user.pk))
    path = reverse("password_choose", kwargs={"uidb64": uid, "token": links.make_token(user)})
    return f"{settings.PUBLIC_URL}{path}"


def _send(user: Any) -> None:
    invited = not user.has_usable_password()
    site = settings.UNFOLD["SITE_TITLE"]
    words = {"site": site, "place": f"{settings.PUBLIC_URL}/admin/", "person": user.get_username()}
    text = (INVITATION if invited else FORGOTTEN).format(**words, days=INVITED_FOR.days, link=link_to_choose(user))
    subject = f"You are invited to {site}" if invited else f"{site}: choose a new password"
    try:
        send_mail(subject, text, settings.DEFAULT_FROM_EMAIL, [user.get_username()])
    except (OSError, smtplib.SMTPException) as exc:  # their text may repeat what the server said
        raise NotSent(f"The mail server did not take it ({type(exc).__name__}).") from exc

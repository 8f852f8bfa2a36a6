"""Who is acting in a request of the admin, and sign-ins in the audit trail."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from django.conf import settings
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse

from config import addresses
from config.signin import factors
from tokens import actors, audit
from tokens.actors import Actor, Way
from tokens.audit import Subject, Verb
from tokens.models import User

NOBODY = "nobody signed in"


def actor_middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: whatever a request of the admin changes, its person has changed. Comes after authentication."""

    def respond(request: HttpRequest) -> HttpResponse:
        with actors.found_by(partial(actor_of, request)):
            return get_response(request)

    return respond


def actor_of(request: HttpRequest) -> Actor:
    """Who has signed in, and from where: the address behind our own proxies, and what the client calls itself."""
    user, meta = request.user, request.META
    address = addresses.parse(
        addresses.client_address(
            meta.get("REMOTE_ADDR", ""), meta.get("HTTP_X_FORWARDED_FOR"), settings.TRUSTED_PROXIES
        )
    )
    return Actor(
        str(user) if user.is_authenticated else NOBODY,
        Way.ADMIN.value,
        user.pk if user.is_authenticated else None,
        str(address or ""),
        meta.get("HTTP_USER_AGENT", "")[: audit.AGENT_CHARACTERS],
        user.is_authenticated and (user.is_superuser or user.is_finance),
    )


@receiver(user_logged_in)
def note_sign_in(user: Any, **_kwargs: Any) -> None:
    """Somebody has signed in."""
    _note_own(Verb.SIGNED_IN, user)


@receiver(user_logged_out)
def note_sign_out(user: Any, **_kwargs: Any) -> None:
    """Somebody has signed out."""
    if user is not None:
        _note_own(Verb.SIGNED_OUT, user)


@receiver(user_login_failed)
def note_failed_sign_in(credentials: dict[str, Any], **_kwargs: Any) -> None:
    """Somebody has tried to. What they typed as their name is kept only if it is an address: it may be a password."""
    typed = str(credentials.get("username") or "").strip().lower()
    user = User.objects.filter(email=typed).first() if "\0" not in typed else None
    try:
        validate_email(typed)
        name = typed
    except ValidationError:
        name = "somebody whose name is no address"
    subject = Subject("tokens.user", str(user.pk) if user else "", name)
    audit.note(Verb.SIGN_IN_FAILED, subject)


@receiver(factors.told)
def note_sign_in_help(user: Any, what: str, part: str, reason: str = "", **_kwargs: Any) -> None:
    """Somebody has set up or removed a person's second factor, used a recovery code, or had a password link mailed."""
    audit.note(what, user, part=part, reason=reason)


def _note_own(verb: str, user: User) -> None:
    actor = msgspec.structs.replace(actors.current(), name=str(user), user=user.pk)
    audit.note(verb, user, actor=actor)

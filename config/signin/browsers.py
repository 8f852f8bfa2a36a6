"""Browsers in which somebody has signed in before; they are known by a signed cookie, for one name each.

Guesses at a name are counted together, wherever they come from: otherwise each address would bring more of them. But
then whoever guesses on purpose would shut its owner out, so a browser of the owner's counts for itself (OWASP's
"device cookies").
"""

import secrets

from django.conf import settings
from django.http import HttpRequest, HttpResponse

KEPT = 180 * 24 * 3600  # seconds from the last sign-in


def known(request: HttpRequest, name: str) -> str:
    """The id of this browser if `name` has signed in with it before; "" if not."""
    return str(request.get_signed_cookie(_cookie(), "", salt=_salt(name), max_age=KEPT))


def remember(request: HttpRequest, response: HttpResponse, name: str) -> None:
    """Know this browser for `name` from now on, which has just given the right password."""
    response.set_signed_cookie(
        _cookie(),
        known(request, name) or secrets.token_urlsafe(12),
        salt=_salt(name),
        max_age=KEPT,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )


def _cookie() -> str:
    return "__Host-browser" if settings.SESSION_COOKIE_SECURE else "browser"


def _salt(name: str) -> str:
    return f"signin.browser:{name}"

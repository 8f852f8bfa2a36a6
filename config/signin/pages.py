"""What the pages of sign-in share: the admin's frame, the way back, and how often somebody may try."""

import unicodedata
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme

from config.addresses import client_address, subscriber
from config.signin import browsers
from config.throttling import count_try, forget

NAMES, ADDRESSES, STEPS = "sign-in name", "sign-in address", "sign-in second step"
BROWSERS = "sign-in known browser"
LINKS = "password link"
LINK_RATE = "3/h"  # mails with a link to one address


def show(request: HttpRequest, template: str, status: int = 200, **context: Any) -> TemplateResponse:
    """A page in the admin's design. It may hold secrets, so nothing keeps a copy of it."""
    page = TemplateResponse(
        request, f"signin/{template}.html", {**admin.site.each_context(request), **context}, status=status
    )
    page["Cache-Control"] = "no-store"
    return page


def destination(request: HttpRequest) -> str:
    """Where the person was going, as far as that is a page of ours."""
    wanted = request.POST.get("next") or request.GET.get("next") or ""
    ours = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
    return wanted if ours else reverse("admin:index")


def address_of(request: HttpRequest) -> str:
    """The client's address, behind however many proxies of ours."""
    peer, forwarded = request.META.get("REMOTE_ADDR") or "", request.META.get("HTTP_X_FORWARDED_FOR")
    return client_address(peer, forwarded, settings.TRUSTED_PROXIES)


def normal_name(name: str) -> str:
    """A name as signing in reads it, so that no other spelling of it brings more tries."""
    return unicodedata.normalize("NFKC", name).strip().lower()


def count_password(request: HttpRequest, name: str) -> int:
    """Count a try of a password; seconds to wait, 0 when it may be looked at.

    A browser in which that name has signed in before has tries of its own, before it takes one of everybody's.
    """
    name, wait = normal_name(name), count_address(request)
    if wait:
        return wait
    browser = browsers.known(request, name)
    if browser and not count_try(request, BROWSERS, f"{name}\n{browser}", settings.SIGN_IN_RATE, forgettable=True):
        return 0
    return count_try(request, NAMES, name, settings.SIGN_IN_RATE, forgettable=True)


def password_was_right(request: HttpRequest, response: HttpResponse, name: str) -> None:
    """Let the name, or this browser if it is known, try again as if for the first time, and know it from now on."""
    name = normal_name(name)
    browser = browsers.known(request, name)
    start_anew(*(BROWSERS, f"{name}\n{browser}") if browser else (NAMES, name))
    browsers.remember(request, response, name)


def count_address(request: HttpRequest) -> int:
    """Count a try by whoever is at that address; seconds to wait, 0 when it may be looked at."""
    key = subscriber(address_of(request))
    return count_try(request, ADDRESSES, key, settings.SIGN_IN_RATE_OF_AN_ADDRESS, forgettable=True)


def count_code(request: HttpRequest) -> int:
    """Count a try of a code by whoever is signed in; seconds to wait, 0 when it may be looked at."""
    return count_try(request, STEPS, str(request.user.pk), settings.SIGN_IN_RATE, forgettable=True)


def count_link(request: HttpRequest, name: str) -> int:
    """Count a mail with a password link to `name`, known or not; seconds to wait, 0 when it may be sent."""
    return count_try(request, LINKS, normal_name(name), LINK_RATE, forgettable=True)


def start_anew(group: str, key: str) -> None:
    """Let a name, an address or a person try again as if for the first time."""
    with suppress(Exception):  # the cache is down, in whatever words its client says so: its windows end by themselves
        forget(group, key)


def too_many(request: HttpRequest, seconds: int, what: str = "tried to sign in") -> HttpResponse:
    """429: the same page, whether there is such a person or not. `what` somebody did too often."""
    minutes = -(-seconds // 60)
    answer = show(request, "too_many", 429, title="Too many tries", minutes=minutes, what=what)
    answer["Retry-After"] = str(seconds)
    return answer

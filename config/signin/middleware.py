"""The gate between the password and the pages."""

from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth import logout
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import resolve_url
from django.urls import Resolver404, resolve, reverse
from django.utils.deprecation import MiddlewareMixin

from config.signin import factors, sessions

ALWAYS = ("admin:login", "admin:logout")
FOR_ANYBODY = frozenset({"password_forgotten", "password_choose"})  # a link must not end as the `next` of another page


class SignInMiddleware(MiddlewareMixin):
    """Ends sessions that are over, and lets nobody past whose second factor is still to be shown or set up.

    Every path that isn't named here is closed until then, whatever it is.
    """

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        """Answer in the page's stead when the session isn't good enough for it."""
        if not request.user.is_authenticated:
            return None
        device = factors.authenticator_of(request.user)
        why = sessions.why_ended(request, device)
        if why:
            logout(request)
            if _is_for_anybody(request):
                return None
            messages.info(request, why)
            return _send_to(resolve_url("admin:login"), request)
        if request.path in {reverse(name) for name in ALWAYS}:
            return None
        step = ""
        if device is not None and not sessions.has_second_step(request, device):
            step = "second_factor_verify"
        elif device is None and factors.is_required(request.user):
            step = "second_factor_enrol"
        if not step or request.path == reverse(step) or _is_for_anybody(request):
            return None
        return _send_to(reverse(step), request)


def _is_for_anybody(request: HttpRequest) -> bool:
    """Whether the page is for people who can't sign in, whatever session of whomever their browser has."""
    try:
        return resolve(request.path_info).url_name in FOR_ANYBODY
    except Resolver404:
        return False


def _send_to(page: str, request: HttpRequest) -> HttpResponse:
    """A redirect that remembers where the person was going, as far as they were only going to look."""
    if request.path == page:
        return HttpResponseRedirect(page)
    query = urlencode({"next": request.get_full_path()}) if request.method == "GET" else ""
    return HttpResponseRedirect(f"{page}?{query}" if query else page)

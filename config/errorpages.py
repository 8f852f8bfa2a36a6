"""What people see when a page fails: one plain sentence, never a trace."""

import sys

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import reverse

RETRY_SECONDS = 10


def server_error(request: HttpRequest) -> HttpResponse:
    """The page for an error that nothing caught: 503 while PostgreSQL is out of reach, else 500."""
    database = isinstance(sys.exc_info()[1], (OperationalError, InterfaceError))
    title = "The database is out of reach" if database else "Something went wrong"
    text = (
        "The admin needs it and works again when it is back. Calls of client apps go on meanwhile."
        if database
        else "The error is in the log. Going back and trying once more may help."
    )
    page = render_to_string("error.html", {"title": title, "text": text})
    response = HttpResponse(page, status=503 if database else 500)
    if database:
        response["Retry-After"] = str(RETRY_SECONDS)
    return response


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """The page for an address or a form that no page of ours makes."""
    text = "The address or the form isn't one that our pages make. Go back and try once more."
    context = {"title": "This can't be read", "text": text}
    return HttpResponse(render_to_string("error.html", context), status=400)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """The page for a path that doesn't exist."""
    text = "The address may be mistyped, or what was here is gone."
    context = {"title": "There is nothing here", "text": text, "way_on": reverse("admin:index")}
    return HttpResponse(render_to_string("error.html", context), status=404)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """The page for what a person's role doesn't open."""
    text = "Your role doesn't open this page. If you need it, ask an administrator."
    context = {"title": "This isn't for you", "text": text, "way_on": reverse("admin:index")}
    return HttpResponse(render_to_string("error.html", context), status=403)


def forgery(request: HttpRequest, reason: str = "") -> HttpResponse:
    """The page for a form that isn't known to be ours: mostly one that stood open while its sender signed in anew."""
    context = {
        "title": "This form is out of date",
        "text": "Go back, load the page again, and send it once more. Nothing was changed.",
    }
    return HttpResponse(render_to_string("error.html", context), status=403)

"""What people see when a page fails: one plain sentence, never a trace."""

import sys

from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

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


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """The page for a path that doesn't exist."""
    context = {"title": "There is nothing here", "text": "The address may be mistyped. The admin is at /admin/."}
    return HttpResponse(render_to_string("error.html", context), status=404)

"""Secrets that are shown once, in the answer to the POST that made them, which no cache may keep."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from unfold.admin import ModelAdmin

HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


def show_once(page: ModelAdmin, request: HttpRequest, original: Any, secret: str, **texts: str) -> HttpResponse:
    """The page with a new secret; loading it again shows `back` instead of making another one.

    `texts`: title, text and back; `uses` and `uses_title` for an example of its use.
    """
    context = {
        **page.admin_site.each_context(request),
        "opts": page.opts,
        "original": original,
        "secret": secret,
        **texts,
    }
    return TemplateResponse(request, "admin/shownonce.html", context, headers=HEADERS)

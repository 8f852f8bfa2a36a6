"""Asking for a reason before several rows of a list are dealt with."""

from typing import Any

from django.http import HttpRequest
from django.template.response import TemplateResponse
from unfold.admin import ModelAdmin

from usage.admin.resolvingforms import ReasonForm

SELECTION = ("action", "select_across", "index", "_selected_action")  # what Django's list posts with an action


def ask_for_many(model_admin: ModelAdmin, request: HttpRequest, **texts: Any) -> str | TemplateResponse:
    """The reason that was given for an action on selected rows; until there is one, the page that asks for it.

    That page posts the selection once more. `texts`: title, text, submit_text and back, the address of the list.
    """
    form = ReasonForm(request.POST if "reason" in request.POST else None)
    if form.is_valid():
        return str(form.cleaned_data["reason"])
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "original": None,
        "form": form,
        "kept": [(name, value) for name in SELECTION for value in request.POST.getlist(name)],
        **texts,
    }
    return TemplateResponse(request, "admin/confirm.html", context)

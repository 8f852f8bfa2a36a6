"""What an administrator does about another person's sign-in."""

from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from config.signin import factors
from config.signin.pages import NAMES, STEPS, normal_name, show, start_anew


@admin.site.admin_view
@require_http_methods(["GET", "POST"])
def reset(request: HttpRequest, id: str) -> HttpResponse:
    """Take a person's second factor away, because phone and recovery codes are lost. For platform administrators."""
    if not request.user.is_superuser:
        raise PermissionDenied
    person = get_object_or_404(get_user_model(), pk=int(id) if id.isdecimal() else 0)
    page = reverse("admin:tokens_user_change", args=[person.pk])
    if person == request.user:  # whoever holds this session hasn't shown that they hold the factor, too
        messages.error(request, "Your own second factor is changed on your own page, with a code.")
        return redirect("second_factor")
    if request.method == "POST":
        had_one = factors.remove(person)
        start_anew(NAMES, normal_name(person.get_username()))
        start_anew(STEPS, str(person.pk))
        text = f"{person} has no second factor now and is signed out everywhere." if had_one else f"{person} had none."
        messages.success(request, text)
        return redirect(page)
    return show(
        request,
        "confirm",
        title=f"Reset the second factor of {person}",
        text=(
            "Make sure that it is really them who ask: from then on their password alone signs them in, until they set"
            " up another one. Their authenticator and recovery codes stop working, and all their sessions end."
        ),
        submit_text="Reset it",
        danger=True,
        back=page,
    )

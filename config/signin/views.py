"""The pages of sign-in: password, second step, and each person's own second factor."""

from collections.abc import Callable
from functools import wraps

import segno
from django.contrib import admin, messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from config.signin import factors, sessions
from config.signin.forms import CodeForm
from config.signin.models import RecoveryCodes
from config.signin.pages import (
    STEPS,
    count_code,
    count_password,
    destination,
    password_was_right,
    show,
    start_anew,
    too_many,
)

View = Callable[[HttpRequest], HttpResponse]


@sensitive_post_parameters()
def sign_in(request: HttpRequest) -> HttpResponse:
    """The admin's own page for name and password, with a bound on guessing."""
    name = request.POST.get("username", "")
    if request.method == "POST":
        wait = count_password(request, name)
        if wait:
            return too_many(request, wait)
    answer = admin.site.login(request)
    if request.method == "POST" and request.user.is_authenticated and answer.status_code == 302:
        password_was_right(request, answer, name)
    return answer


def _second_step(view: View) -> View:
    """For people who have signed in and, if they have a second factor, shown it in the last ten minutes."""

    @wraps(view)
    def checked(request: HttpRequest) -> HttpResponse:
        has_one = factors.authenticator_of(request.user) is not None
        if has_one and not sessions.is_fresh(request):
            query = urlencode({"next": request.path})
            return HttpResponseRedirect(f"{reverse('second_factor_verify')}?{query}")
        return view(request)

    return login_required(checked)


@login_required
@sensitive_post_parameters()
@require_http_methods(["GET", "POST"])
def verify(request: HttpRequest) -> HttpResponse:
    """The second step: a code after the password, and again before the factor itself is changed."""
    if factors.authenticator_of(request.user) is None:
        return redirect("second_factor")
    form = CodeForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        wait = count_code(request)
        if wait:
            return too_many(request, wait)
        device, why = factors.check(request.user, form.cleaned_data["code"])
        if device is not None:
            start_anew(STEPS, str(request.user.pk))
            sessions.take_second_step(request, request.user, device)
            _warn_when_few_are_left(request, device)
            return HttpResponseRedirect(destination(request))
        form.add_error("code", why)
    return show(request, "verify", title="Second step", form=form, next=destination(request))


def _warn_when_few_are_left(request: HttpRequest, device: object) -> None:
    if isinstance(device, RecoveryCodes):
        left = factors.codes_left(request.user)
        verb = "is" if left == 1 else "are"
        messages.warning(
            request, f"You used a recovery code; {left} {verb} left. If your phone is lost, set up another."
        )


@_second_step
@sensitive_post_parameters()
@require_http_methods(["GET", "POST"])
def enrol(request: HttpRequest) -> HttpResponse:
    """Set up an authenticator app, the first or another: scan, enter a code, keep the recovery codes."""
    form = CodeForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        wait = count_code(request)
        if wait:
            return too_many(request, wait)
        (device, why), codes = factors.confirm(request.user, form.cleaned_data["code"])
        if device is not None:
            start_anew(STEPS, str(request.user.pk))
            sessions.take_second_step(request, request.user, device)
            return show(request, "codes", title="Your recovery codes", codes=codes, is_new=True)
        form.add_error("code", why)
    begun = factors.pending(request.user)
    picture = segno.make(begun.config_url, error="m", micro=False)
    return show(
        request,
        "enrol",
        title="Set up your second factor",
        form=form,
        # Attributes and a class in place of inline styles, which pages may not hold.
        qr=picture.svg_inline(border=2, dark="#000", light="#fff", svgclass="gw-qr", omitsize=True),
        secret=begun.secret_text(),
        required=factors.is_required(request.user),
        replaces=factors.authenticator_of(request.user) is not None,
    )


@login_required
@require_http_methods(["GET"])
def own(request: HttpRequest) -> HttpResponse:
    """A person's own second factor: what there is, and what can be done about it."""
    device = factors.authenticator_of(request.user)
    return show(
        request,
        "own",
        title="Second factor",
        device=device,
        codes_left=factors.codes_left(request.user) if device else 0,
        required=factors.is_required(request.user),
    )


@_second_step
@require_http_methods(["GET", "POST"])
def new_codes(request: HttpRequest) -> HttpResponse:
    """New recovery codes in place of the old ones."""
    if factors.authenticator_of(request.user) is None:
        return redirect("second_factor")
    if request.method == "POST":
        codes = factors.new_recovery_codes(request.user)
        return show(request, "codes", title="Your recovery codes", codes=codes, is_new=False)
    return show(
        request,
        "confirm",
        title="New recovery codes",
        text="You get ten new codes. Those that you have now stop working at once.",
        submit_text="Make new codes",
        left=factors.codes_left(request.user),
    )


@_second_step
@require_http_methods(["GET", "POST"])
def remove(request: HttpRequest) -> HttpResponse:
    """Take one's own second factor away, where none is required."""
    if factors.authenticator_of(request.user) is None:
        return redirect("second_factor")
    if factors.is_required(request.user):
        messages.error(request, "Your role needs a second factor: set up another one in its place.")
        return redirect("second_factor")
    if request.method == "POST":
        factors.remove(request.user)
        sessions.forget_second_step(request)
        messages.success(request, "Your second factor is removed. Your password alone signs you in.")
        return redirect("second_factor")
    return show(
        request,
        "confirm",
        title="Remove your second factor",
        text="From then on whoever has your password can sign in as you. Your other sessions end.",
        submit_text="Remove it",
        danger=True,
    )

"""The pages for a password that is forgotten, or that an invited person is yet to choose."""

import logging
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.contrib.auth.views import INTERNAL_RESET_SESSION_TOKEN, PasswordResetConfirmView
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import reverse_lazy
from django.views.decorators.http import require_http_methods
from kombu.exceptions import OperationalError

from config.signin import passwords
from config.signin.forms import AddressForm, PasswordForm
from config.signin.pages import NAMES, address_of, count_address, count_link, normal_name, show, start_anew, too_many
from config.signin.tasks import have_link_mailed

logger = logging.getLogger(__name__)


@require_http_methods(["GET", "POST"])
def forgotten(request: HttpRequest) -> HttpResponse:
    """Asks for the address, and answers the same whether somebody signs in with it or not."""
    form = AddressForm(request.POST or None)
    if request.method == "POST" and settings.EMAIL_URL and form.is_valid():
        address = normal_name(form.cleaned_data["email"])
        wait = count_address(request) or count_link(request, address)
        if wait:
            return too_many(request, wait, "asked for a new password")
        try:
            have_link_mailed(address, address_of(request))
        except OperationalError as exc:
            logger.error("links for new passwords can't be mailed: the broker is away", extra={"reason": str(exc)})
            form.add_error(None, "Mail can't be sent just now. Please try again in a few minutes.")
        else:
            return show(request, "asked", title="Look at your mail", address=address)
    status = 503 if form.non_field_errors() else 200
    return show(request, "forgotten", status, title="New password", form=form, has_mail=bool(settings.EMAIL_URL))


class Choose(PasswordResetConfirmView):
    """The page that a link leads to. Django's, which takes the link out of the address before it shows anything."""

    form_class = PasswordForm
    template_name = "signin/choose.html"
    token_generator = passwords.links
    success_url = reverse_lazy("admin:login")
    title = "Choose your password"

    def get_user(self, uidb64: str) -> Any:
        """Whose link it is, if they may sign in at all."""
        user = super().get_user(uidb64)
        return user if user is not None and user.is_active and user.is_staff else None

    def form_valid(self, form: Any) -> HttpResponse:
        """Set the password, by whichever of two requests with one link comes first."""
        with transaction.atomic():
            person = get_user_model()._base_manager.select_for_update().get(pk=form.user.pk)
            if not passwords.links.check_token(person, self.request.session.get(INTERNAL_RESET_SESSION_TOKEN)):
                self.validlink = False
                return self.render_to_response(self.get_context_data())
            form.user = person
            self.request.user = person  # whoever holds the link holds their mailbox: it is them, for the audit trail
            answer = super().form_valid(form)
        start_anew(NAMES, normal_name(person.get_username()))
        messages.success(self.request, "Your password is set. Sign in with it.")
        return answer

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """In the admin's frame."""
        context = {**admin.site.each_context(self.request), **super().get_context_data(**kwargs)}
        return context if context["validlink"] else {**context, "title": "This link has ended"}

"""Inviting people who have a role: a mail with a link by which they choose their password."""

from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.decorators import action

from config.signin import passwords
from config.signin.pages import count_link
from tokens import roles
from tokens.admin.scoping import row_id
from tokens.models import Membership, User


class Invites:
    """A page of people, or of a tenant's members, that can mail one of them a link to choose a password by."""

    def may_invite(self, row: Any) -> bool:
        """Whether there is anything to invite them to. Who has a password asks for a new one themselves."""
        person = _person(row)
        return person.is_active and person.is_staff and not person.has_usable_password()

    @action(description="Invite by e-mail", icon="mail", url_path="invite", permissions=["change"])
    def invite(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then mail the link."""
        number = row_id(object_id)
        row = self.get_queryset(request).filter(pk=number).first() if number is not None else None  # type: ignore[attr-defined]
        if row is None:
            raise Http404
        person, options = _person(row), row._meta
        if person.has_usable_password() and not roles.is_platform(request.user):
            raise PermissionDenied  # they aren't invited any more: a new password is between them and their mailbox
        back = reverse(f"admin:{options.app_label}_{options.model_name}_change", args=(row.pk,))
        why_not = passwords.why_not(person)
        if request.method == "POST" and not why_not:
            if count_link(request, person.email) and not roles.is_platform(request.user):
                messages.error(request, "They were mailed several links within the hour. Please try again later.")
            else:
                invite_and_say(request, person)
            return HttpResponseRedirect(back)
        new = person.has_usable_password()
        lasts = "for an hour; until then the old one stays." if new else "for a week."
        text = f"They get a mail at {person.email} with a link to choose their password by. It works once, {lasts}"
        context = {
            **self.admin_site.each_context(request),  # type: ignore[attr-defined]
            "opts": options,
            "original": row,
            "form": forms.Form(),
            "back": back,
            "title": f"Mail {person} a link for a new password?" if new else f"Invite {person}?",
            "text": why_not or text,
            "submit_text": "" if why_not else "Send it",
        }
        return TemplateResponse(request, "admin/confirm.html", context)


def invite_and_say(request: HttpRequest, person: User) -> None:
    """Mail the link, and tell whoever asked what came of it."""
    try:
        passwords.invite(person)
    except passwords.NotSent as exc:
        messages.error(request, f"{person} was not invited. {exc} Try again on their page.")
    else:
        messages.success(request, f"A link to choose a password by was mailed to {person}.")


def _person(row: Any) -> User:
    return row.user if isinstance(row, Membership) else row

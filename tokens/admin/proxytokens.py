"""Proxy tokens in the admin: issue, look at, rotate, revoke.

A secret is in one place only: the answer to the POST that made it, which no cache may keep.
"""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.timezone import now
from unfold.decorators import action, display
from unfold.enums import ActionVariant

from tokens import issuing, roles, stopping
from tokens.admin.bulkpages import ManyTokens
from tokens.admin.limits import LimitInline
from tokens.admin.pages import warn_if_waiting
from tokens.admin.scoping import TenantFilter, row_id
from tokens.admin.tokenfinding import FindsTokens
from tokens.admin.tokenforms import IssueForm, ModelChoices, RevokeForm, RotateForm
from tokens.admin.tokenstatus import (
    COLOURS,
    TEXTS,
    StatusFilter,
    last_used_at,
    last_used_in_words,
    live_secrets,
    status_of,
)
from tokens.cutover import CutOver, cut_over
from tokens.discretion import told
from tokens.models import Membership, ProxyToken, TokenStatus

ROTATION = "The token gets a new secret, shown once. It stays the same token: limits, use and books go on."
OVER = "It has expired, so the new secret works only once you have given it a later end."


@admin.register(ProxyToken)
class ProxyTokenAdmin(FindsTokens, ManyTokens):
    """Proxy tokens."""

    tenant_field = "tenant_id"
    form = ModelChoices
    list_display = ("name", "state", "first_characters", "tenant", "email", "last_used", "expires_at")
    list_display_links = ("name",)
    list_filter = (StatusFilter, ("tenant", TenantFilter))
    list_filter_submit = True
    sortable_by = ("name", "expires_at")
    autocomplete_fields = ("tenant",)
    add_fieldsets = (
        (
            None,
            {
                "fields": (
                    ("tenant", "email"),
                    ("name", "model"),
                    ("lifetime", "expires"),
                    "networks",
                    "usual_limits",
                )
            },
        ),
    )
    fieldsets = ((None, {"fields": (("name", "model"), "expires_at", "networks")}),)
    inlines = (LimitInline,)
    actions_list = (*FindsTokens.actions_list, *ManyTokens.actions_list)
    actions_detail = ("cut_over", "rotate", "end_grace", "revoke")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """A new token is issued to whom an address names."""
        if obj is None:
            kwargs["form"] = IssueForm
        return super().get_form(request, obj, change, **kwargs)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ProxyToken]:
        """With all that its status is made of."""
        queryset: QuerySet[ProxyToken] = super().get_queryset(request)
        return queryset.select_related("tenant", "member__user").prefetch_related("secrets")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> ProxyToken | None:
        """With who issued and who revoked it, as the person may know it."""
        token: Any = super().get_object(request, object_id, from_field)
        if token is not None:
            token.issuer, token.revoker = (
                told(name, token.tenant_id, request.user) for name in (token.created_by, token.revoked_by)
            )
        return token  # type: ignore[no-any-return]

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Whose it will be, for those who come from a tenant's or a member's page."""
        initial: dict[str, Any] = super().get_changeform_initial_data(request)
        member = row_id(initial.pop("member", ""))
        own = roles.narrow(Membership.objects.all(), request.user, "tokens.add_proxytoken", "tenant_id")
        found = own.select_related("user").filter(pk=member).first() if member is not None else None
        return initial if found is None else {**initial, "tenant": found.tenant_id, "email": found.user.email}

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Revoked is final."""
        allowed: bool = super().has_change_permission(request, obj)
        return allowed and not (isinstance(obj, ProxyToken) and obj.status == TokenStatus.REVOKED)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what can be done with it now."""
        token = self.rows(request, object_id).first()
        if token is None:
            return []
        hidden = set() if len(live_secrets(token, now())) > 1 else {"end-grace"}
        hidden |= set() if any(secret.accepted_until for secret in token.secrets.all()) else {"cut-over"}
        hidden |= {"rotate", "end-grace", "revoke"} if token.status == TokenStatus.REVOKED else set()
        return [one for one in super().get_actions_detail(request, object_id) if one.path not in hidden]

    def summary(self, scope: Any) -> dict[str, Any]:
        """What is known of the token and its secrets, beside its use."""
        state = status_of(scope)
        return {
            **super().summary(scope),
            "token": scope,
            "state": TEXTS[state],
            "state_colour": COLOURS[state],
            "secrets": scope.secrets.all()[:5],
            "at": now(),
        }

    # Issuing

    def add_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """The form for a new token: one at a time, since its secret is shown next."""
        kwargs["extra_context"] = {
            **(kwargs.get("extra_context") or {}),
            "title": "Issue a token",
            "show_save_and_continue": False,
            "show_save_and_add_another": False,
        }
        response: HttpResponse = super().add_view(request, *args, **kwargs)
        return response

    def save_model(self, request: HttpRequest, obj: ProxyToken, form: Any, change: bool) -> None:
        """Save; a new one is issued by the verb that the command line uses."""
        if change:
            super().save_model(request, obj, form, change)
            return
        data = form.cleaned_data
        token, secret = issuing.issue_token(
            issuing.add_member(data["tenant"], data["email"]),
            data["name"],
            expires_at=data["expires_at"],
            networks=data["networks"],
            model=data["model"],
            created_by=str(request.user),
            usual_limits=False,  # those that are added below count instead: see save_related
        )
        obj.__dict__.update(token.__dict__)
        request.usual_limits = data["usual_limits"]  # type: ignore[attr-defined]
        request.fresh_secret = secret  # type: ignore[attr-defined]  # for response_add, in this request only

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Save the limits; a new token starts with those of the plan, where it was given no others."""
        super().save_related(request, form, formsets, change)
        if not change and request.usual_limits:  # type: ignore[attr-defined]
            issuing.start_with_plan(form.instance)

    def response_add(self, request: HttpRequest, obj: ProxyToken, post_url_continue: str | None = None) -> HttpResponse:
        """Show the secret, this once."""
        return self.show_secret(request, obj, request.fresh_secret, "Token issued")  # type: ignore[attr-defined]

    def show_secret(self, request: HttpRequest, token: ProxyToken, secret: str, title: str) -> HttpResponse:
        """The page with a new secret; loading it again shows the token's page instead of making another one."""
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.model._meta,
            "original": token,
            "secret": secret,
            "public_url": settings.PUBLIC_URL,
            "back": self.page_url(token.pk),
        }
        headers = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        return TemplateResponse(request, "admin/tokens/proxytoken/secret.html", context, headers=headers)

    # What can be done with one

    @action(description="Rotate", icon="autorenew", url_path="rotate", permissions=["change"])
    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for the grace, then show the new secret."""
        token = self.find(request, object_id)

        def carry_out(form: forms.Form) -> HttpResponse:
            secret = issuing.rotate(token, form.cleaned_data["grace"])
            warn_if_waiting(request, token)
            return self.show_secret(request, token, secret, "New secret")

        return self.confirm(
            request,
            token,
            carry_out,
            RotateForm,
            title=f"Rotate {token.name}",
            text=f"{ROTATION} {OVER}" if token.expires_at and token.expires_at <= now() else ROTATION,
            submit_text="Make a new secret",
        )

    @action(description="Cut-over", icon="compare_arrows", url_path="cut-over", permissions=["view"])
    def cut_over(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Whether the old secret is still used, by whom, and what breaks when its grace ends."""
        token = self.find(request, object_id)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Cut-over of {token.name}",
            "opts": self.opts,
            "original": token,
            "report": cut_over(token),
            "may_end": self.has_change_permission(request, token),
            "back": self.page_url(token.pk),
        }
        return TemplateResponse(request, "admin/tokens/proxytoken/cutover.html", context)

    @action(description="End grace", icon="timer_off", url_path="end-grace", permissions=["change"])
    def end_grace(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, saying who still uses the old secret, then end it."""
        token = self.find(request, object_id)

        def carry_out(_form: forms.Form) -> None:
            issuing.end_grace(token)
            self.message_user(request, "The old secret is no longer accepted.", messages.SUCCESS)

        return self.confirm(
            request,
            token,
            carry_out,
            title=f"End the grace of {token.name}?",
            text=_what_breaks(cut_over(token)),
            submit_text="End the old secret",
            danger=True,
        )

    @action(description="Revoke", icon="block", url_path="revoke", permissions=["change"], variant=ActionVariant.DANGER)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask for the reason, then revoke."""
        token = self.find(request, object_id)

        def carry_out(form: forms.Form) -> None:
            durable = stopping.revoke(token.pk, str(request.user), form.cleaned_data["reason"])
            text = f"{token.name} is revoked: its next call is refused."
            if not durable:
                text += " The database did not answer, and will have it when it is back."
            self.message_user(request, text, messages.SUCCESS)

        return self.confirm(
            request,
            token,
            carry_out,
            RevokeForm,
            title=f"Revoke {token.name}?",
            text="From its next call on it is refused, on every process. This is final: it can't be made active again.",
            facts=[("Last used", last_used_in_words(token))],
            submit_text="Revoke for good",
            danger=True,
        )

    # Columns

    @display(description="status", label=COLOURS)
    def state(self, token: ProxyToken) -> tuple[str, str]:
        """What matters most about it."""
        state = status_of(token)
        return state, TEXTS[state]

    @display(description="first characters")
    def first_characters(self, token: ProxyToken) -> str:
        """Of its current secret."""
        current = live_secrets(token, now())
        return str(current[0]) if current else "–"

    @display(description="member", ordering="member__user__email")
    def email(self, token: ProxyToken) -> str:
        """Whose it is."""
        return token.member.user.email

    @display(description="last used")
    def last_used(self, token: ProxyToken) -> Any:
        """As far as the books know, which follow by a second or two."""
        return last_used_at(token)


def _what_breaks(report: CutOver | None) -> str:
    text = "Clients that still use the old secret are refused from then on."
    return f"{report.verdict} {text}" if report is not None else text

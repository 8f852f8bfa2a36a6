"""Searching the list of tokens, and the page on which a secret that leaked is pasted.

A secret must not stand in an address: those are logged and remembered. So it is posted, looked up by its digest, and
nothing of it is kept. The list's own search box sends one to that page instead (findtoken.js), and ignores it.
"""

from typing import Any

from django import forms
from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.timezone import now
from django.views.decorators.debug import sensitive_post_parameters
from unfold.decorators import action
from unfold.widgets import UnfoldAdminTextareaWidget

from tokens import finding
from tokens.admin.pages import ScopeAdmin
from tokens.finding import Found
from tokens.models import ProxyToken, Secret
from tokens.roles import rights_of

MOST_CHARACTERS = 20_000
NOT_KEPT = {"Cache-Control": "no-store"}
NO_SECRETS_HERE = (
    "That is a whole secret, so it was not searched for: it would stay in this page's address, which browsers and logs "
    'remember. Use "Find a leaked token", and rotate or revoke the token if others may have seen the address.'
)


class FindForm(forms.Form):
    """What somebody has found."""

    pasted = forms.CharField(
        label="The token, or the text it was found in",
        max_length=MOST_CHARACTERS,
        strip=False,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4, "autocomplete": "off", "spellcheck": "false"}),
        help_text="A header, a line of a log or of code will do. It is compared by its digest and kept nowhere.",
    )


class FindsTokens(ScopeAdmin):
    """The searches of the list of tokens."""

    search_fields = ("name",)  # what is really searched, `matching` says
    search_help_text = "A part of its name, of its member's address or of its tenant, or a secret's first characters"
    actions_list: Any = ("find_leaked",)

    class Media:
        js = ("gateway/findtoken.js",)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[ProxyToken], search_term: str
    ) -> tuple[QuerySet[ProxyToken], bool]:
        """By what people remember of a token; each way has an index. Never by a whole secret."""
        term = " ".join(search_term.replace("\0", "").split())
        if not term:
            return queryset, False
        if finding.holds_secret(term):
            messages.warning(request, NO_SECRETS_HERE)
            return queryset.none(), False
        return queryset.filter(pk__in=finding.matching(term).values("pk")), False

    @action(description="Find a leaked token", icon="travel_explore", url_path="find", permissions=["view"])
    @method_decorator(sensitive_post_parameters("pasted"))
    def find_leaked(self, request: HttpRequest) -> HttpResponse:
        """Ask for the text, then say whose tokens are in it. Only tokens that the person may see are found."""
        form = FindForm(request.POST if "pasted" in request.POST else None)
        found: list[dict[str, Any]] | None = None
        if form.is_valid():
            found = self._found(request, finding.find_secrets(form.cleaned_data["pasted"]))
            form = FindForm()  # the text isn't sent back
        context = {
            **self.admin_site.each_context(request),
            "title": "Find a leaked token",
            "opts": self.opts,
            "form": form,
            "found": found,
            "back": reverse("admin:tokens_proxytoken_changelist"),
        }
        return TemplateResponse(request, "admin/tokens/proxytoken/find.html", context, headers=NOT_KEPT)

    def _found(self, request: HttpRequest, found: list[Found]) -> list[dict[str, Any]]:
        """Of each the name, whose it is, what it still opens, and where its page is."""
        listed = []
        for secret, key in found:
            if secret is not None and self.has_view_permission(request, secret.token):
                token = secret.token
                owner = f"{token.member.user.email}, {token.tenant}"
                may = self.has_change_permission(request, token)
                revoke = reverse("admin:tokens_proxytoken_revoke", args=(token.pk,)) if may else ""
                listed.append({"name": token.name, "kind": "Proxy token", "owner": owner, "state": _state(secret),
                               "works": _works(secret), "url": self.page_url(token.pk), "revoke": revoke})  # fmt: skip
            page = self.admin_site._registry.get(type(key)) if key is not None else None
            if key is not None and page is not None and page.has_view_permission(request, key):
                alive, backed = key.state == "active", key.backed  # type: ignore[attr-defined]
                may = alive and rights_of(request.user).may("tokens.change_apikey", key.tenant_id)
                url, revoke = (reverse(f"admin:tokens_apikey_{way}", args=(key.pk,)) for way in ("change", "revoke"))
                told = "accepted by the management API" if backed else "ended with its giver's rights"
                listed.append({"name": key.name, "kind": "API key", "owner": str(key.tenant or "all tenants"),
                               "state": told if alive else key.state, "works": alive and backed,
                               "returns": alive and not backed,  # with the giver's rights
                               "url": url, "revoke": revoke if may else ""})  # fmt: skip
        return listed


def _works(secret: Secret) -> bool:
    """Whether calls with it are admitted, as far as the token itself decides."""
    token, at = secret.token, now()
    live = secret.ended_at is None and (secret.accepted_until is None or secret.accepted_until > at)
    return live and token.status == "active" and (token.expires_at is None or token.expires_at > at)


def _state(secret: Secret) -> str:
    if secret.token.revoked_at is not None:
        return "revoked"
    if _works(secret):
        until = secret.accepted_until
        return (
            f"old secret, accepted until {until:%Y-%m-%d %H:%M} UTC"
            if until
            else "accepted: anybody who has it can call"
        )
    return "no longer accepted"

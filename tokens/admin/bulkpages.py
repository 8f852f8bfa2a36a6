"""Revoking, extending and limiting many tokens: ask, say what will happen, then do it piece by piece with a bar.

A piece is done in one request, and the page that shows how far it is asks for the next one. So no request takes long,
whoever closes the page stops it between two pieces, and each token is done as if it were the only one.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.decorators import action
from unfold.enums import ActionVariant

from tokens import bulk
from tokens.admin import bulkfacts
from tokens.admin.bulkfacts import Facts
from tokens.admin.bulkforms import TYPE_FROM, CountForm, ExtendManyForm, LimitsManyForm
from tokens.admin.pages import ScopeAdmin
from tokens.admin.scoping import row_id
from tokens.admin.tokenforms import RevokeForm
from tokens.bulk import Outcome
from tokens.models import ProxyToken, TokenStatus

MOST_AT_ONCE = 10_000
PIECE = 100  # about a second
CARRIED = ("through", "after", "done", "total", "left")  # from one page to the next
OWN_FIELDS = {*CARRIED, "stage", "typed", "csrfmiddlewaretoken"}


@dataclass(frozen=True)
class Verb:
    """Something that is done to many tokens. `preview` and `apply` get the ids and the form's data."""

    title: str  # such as "Revoke"
    ask: str
    warning: str
    button: str
    past: str  # such as "revoked"
    form: type[forms.Form]
    preview: Callable[[Sequence[int], dict[str, Any]], Facts]
    apply: Callable[[Sequence[int], dict[str, Any], str], Outcome]
    danger: bool = False


REVOKE = Verb(
    "Revoke",
    "Nothing happens yet: the next page says what will.",
    "Each is refused from its next call on, on every process. This is final and can't be undone: whoever still needs "
    "one must be issued another.",
    "Revoke for good",
    "revoked",
    RevokeForm,
    lambda ids, data: [*bulkfacts.of_revoking(ids), ("Reason", data["reason"])],
    lambda ids, data, by: bulk.revoke(ids, by, data["reason"]),
    danger=True,
)
EXTEND = Verb(
    "Extend",
    "Nothing happens yet: the next page says what will.",
    "Tokens are only ever extended, never cut short. To end one early, revoke it.",
    "Extend",
    "extended",
    ExtendManyForm,
    lambda ids, data: bulkfacts.of_extending(ids, data["expires_at"]),
    lambda ids, data, by: bulk.extend(ids, data["expires_at"]),
)
LIMIT = Verb(
    "Change the limits of",
    "These are each token's own limits; those of its member and its tenant hold besides. Nothing happens yet.",
    "They count from the next call on. A token that has used more than its new limit allows is refused with 429 until "
    "the period ends.",
    "Change limits",
    "given these limits",
    LimitsManyForm,
    lambda ids, data: bulkfacts.of_limits(ids, data["limits"], data["removed"]),
    lambda ids, data, by: bulk.change_limits(ids, data["limits"], data["removed"]),
)


class ManyTokens(ScopeAdmin):
    """The bulk actions of the list of tokens: on the selected ones, or on all that the filters let through."""

    actions = ("revoke_selected", "extend_selected", "limit_selected")
    actions_list: Any = (
        {"title": "All listed", "icon": "checklist", "items": ["extend_all", "limit_all", "revoke_all"]},
    )
    list_disable_select_all = True  # would have to count

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list; what is done to all that is listed keeps the list's filters."""
        response: HttpResponse = super().changelist_view(request, extra_context)
        query = request.GET.urlencode()
        for button in (getattr(response, "context_data", None) or {}).get("actions_list", ()):
            for item in button.get("items") or ():
                item["path"] += f"?{query}" if query else ""
        return response

    @action(description="Revoke selected tokens…", permissions=["change"])
    def revoke_selected(self, request: HttpRequest, queryset: QuerySet[ProxyToken]) -> HttpResponse:
        """On to the page that asks."""
        return self._on_to("revoke_all", queryset)

    @action(description="Extend selected tokens…", permissions=["change"])
    def extend_selected(self, request: HttpRequest, queryset: QuerySet[ProxyToken]) -> HttpResponse:
        """On to the page that asks."""
        return self._on_to("extend_all", queryset)

    @action(description="Change limits of selected tokens…", permissions=["change"])
    def limit_selected(self, request: HttpRequest, queryset: QuerySet[ProxyToken]) -> HttpResponse:
        """On to the page that asks."""
        return self._on_to("limit_all", queryset)

    def _on_to(self, name: str, queryset: QuerySet[ProxyToken]) -> HttpResponse:
        ids = ",".join(str(pk) for pk in queryset.order_by("pk").values_list("pk", flat=True))
        return HttpResponseRedirect(f"{reverse(f'admin:tokens_proxytoken_{name}')}?id__in={ids}")

    @action(
        description="Revoke…",
        icon="block",
        url_path="revoke-many",
        permissions=["change"],
        variant=ActionVariant.DANGER,
    )
    def revoke_all(self, request: HttpRequest) -> HttpResponse:
        """Every active token that the filters in the address let through."""
        return self._many(request, REVOKE)

    @action(description="Extend…", icon="more_time", url_path="extend-many", permissions=["change"])
    def extend_all(self, request: HttpRequest) -> HttpResponse:
        """The same, for longer."""
        return self._many(request, EXTEND)

    @action(description="Change limits…", icon="speed", url_path="limit-many", permissions=["change"])
    def limit_all(self, request: HttpRequest) -> HttpResponse:
        """The same, with other limits."""
        return self._many(request, LIMIT)

    def _many(self, request: HttpRequest, verb: Verb) -> HttpResponse:
        try:
            listed: QuerySet[ProxyToken] = self.get_changelist_instance(request).get_queryset(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect(f"{self._list_url()}?e=1")
        listed = self.limited(request, listed, "change").filter(status=TokenStatus.ACTIVE).order_by("pk")
        through = _number(request, "through")
        if through:
            listed = listed.filter(pk__lte=through)
        form = verb.form(request.POST or None)
        sure = request.POST.get("stage") in {"sure", "on"}
        if sure and through and form.is_valid() and request.POST["stage"] == "on":
            return self._piece(request, verb, listed, form)
        ids = list(listed.values_list("pk", flat=True)[: MOST_AT_ONCE + 1])
        more, ids = len(ids) > MOST_AT_ONCE, ids[:MOST_AT_ONCE]
        if not ids:
            text = "No active token is listed: there is nothing to do. Revoked ones stay as they are."
            return self._ask(request, forms.Form(), title="No token", text=text)
        if not form.is_valid():
            text = f"These are the oldest {MOST_AT_ONCE:,}; more match. Come again for the rest." if more else verb.ask
            title = f"{verb.title} {_tokens(len(ids))}"
            facts = bulkfacts.of_tokens(ids)
            return self._ask(request, form, title=title, text=text, facts=facts, submit_text="Continue")
        many = len(ids) >= TYPE_FROM
        typed = CountForm(len(ids), request.POST if sure else None) if many else forms.Form(request.POST)
        if sure and typed.is_valid():
            return self._piece(request, verb, listed.filter(pk__lte=ids[-1]), form, total=len(ids), through=ids[-1])
        return self._ask(
            request,
            typed,
            title=f"{verb.title} {_tokens(len(ids))}?",
            text=verb.warning,
            facts=[*bulkfacts.of_tokens(ids)[:2], *verb.preview(ids, form.cleaned_data)],
            kept=[*_answers(request), ("stage", "sure"), ("through", ids[-1])],
            submit_text=f"{verb.button}: {_tokens(len(ids))}",
            danger=verb.danger,
        )

    def _piece(
        self, request: HttpRequest, verb: Verb, listed: QuerySet[ProxyToken], form: forms.Form, **known: int
    ) -> HttpResponse:
        """Do the next tokens, then show how far it is."""
        carried = {name: known.get(name) or _number(request, name) for name in CARRIED if name != "left"}
        left = Counter(dict(_left(request)))
        ids = list(listed.filter(pk__gt=carried["after"]).values_list("pk", flat=True)[:PIECE])
        outcome = verb.apply(ids, form.cleaned_data, str(request.user))
        carried["done"] += outcome.done
        left += outcome.left
        if outcome.stopped or len(ids) < PIECE or outcome.last >= carried["through"]:
            self._tell(request, verb, carried["done"], left, outcome.stopped)
            return HttpResponseRedirect(self._list_url(request))
        carried["after"] = outcome.last
        seen = carried["done"] + left.total()
        kept = [*_answers(request), ("stage", "on"), *carried.items()]
        kept += [("left", f"{count} {text}") for text, count in left.items()]
        return self._ask(
            request,
            forms.Form(),
            template="admin/tokens/proxytoken/progress.html",
            title=f"{verb.title} {_tokens(carried['total'])}",
            seen=min(seen, carried["total"]),
            total=carried["total"],
            percent=f"{min(100.0, 100 * seen / max(1, carried['total'])):.1f}",
            kept=kept,
        )

    def _tell(self, request: HttpRequest, verb: Verb, done: int, left: Counter[str], stopped: str) -> None:
        if done:
            messages.success(request, f"{_tokens(done)} {'was' if done == 1 else 'were'} {verb.past}.")
        for text, count in left.most_common(5):
            messages.info(request, f"{_tokens(count)} {text}.")
        if stopped:
            messages.error(request, f"Ended early: {stopped} What was done stays done; do the rest once more.")

    def _ask(
        self, request: HttpRequest, form: forms.Form, template: str = "admin/confirm.html", **texts: Any
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": None,
            "form": form,
            "back": self._list_url(request),
            **texts,
        }
        return TemplateResponse(request, template, context)

    def _list_url(self, request: HttpRequest | None = None) -> str:
        """The list; with the filters of a request's address, but not the rows that were selected."""
        url = reverse("admin:tokens_proxytoken_changelist")
        query = request.GET.copy() if request is not None else None
        if query:
            query.pop("id__in", None)
        return f"{url}?{query.urlencode()}" if query else url


def _answers(request: HttpRequest) -> list[tuple[str, Any]]:
    """What was filled in on the page before."""
    return [(name, value) for name, value in request.POST.items() if name not in OWN_FIELDS]


def _left(request: HttpRequest) -> list[tuple[str, int]]:
    """The tokens that pages before left as they are: the reason, and how many."""
    found = (text.partition(" ") for text in request.POST.getlist("left")[:20])
    return [(why, row_id(count) or 0) for count, _, why in found]


def _number(request: HttpRequest, name: str) -> int:
    return row_id(request.POST.get(name, "")) or 0


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"

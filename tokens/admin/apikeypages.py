"""Keys of the management API in the admin: issued, looked at, revoked."""

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.timezone import now
from unfold.contrib.filters.admin import DropdownFilter
from unfold.decorators import action, display
from unfold.enums import ActionVariant
from unfold.paginator import InfinitePaginator
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminSelectWidget

from tokens import apikeys
from tokens.admin.scoping import OwnRows, TenantFilter, row_id
from tokens.admin.shownonce import show_once
from tokens.admin.tokenforms import LIFETIMES
from tokens.apikeyrow import ApiScope
from tokens.discretion import told
from tokens.errors import Refused
from tokens.management.base import parse_duration
from tokens.models import ApiKey
from tokens.roles import is_platform

ONLY_ONCE = "This is the only time that it is shown. Copy it now and keep it where secrets are kept; only a digest of "
ONLY_ONCE += "it is stored here."
FINAL = "From its next request on it is refused. This is final: it can't be made active again."


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg]
    """A key to be."""

    scopes = forms.MultipleChoiceField(
        label="It may",
        choices=ApiScope.choices,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="Finance's tools need the first one only. Give a key as little as it needs.",
    )

    lifetime = forms.ChoiceField(
        label="It lasts",
        required=False,
        choices=list(LIFETIMES.items()),
        initial="365d",
        widget=UnfoldAdminSelectWidget,
        help_text="A key that ends by itself limits what a leak can cost. It ends with your right to give it, too.",
    )

    class Meta:
        model = ApiKey
        fields = ("name", "tenant")


class StateFilter(DropdownFilter):
    """Keys that open something, or don't any more."""

    title = "status"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """What a key can be."""
        return [("active", "Active"), ("expired", "Expired"), ("revoked", "Revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        """Narrow the list."""
        of = {
            "active": apikeys.in_force() & apikeys.BACKED,
            "expired": Q(revoked_at=None, expires_at__lte=now()),
            "revoked": Q(revoked_at__isnull=False),
        }
        return queryset.filter(of.get(self.value() or "", Q()))


@admin.register(ApiKey)
class ApiKeyAdmin(OwnRows):
    """Keys of the management API. Whoever may do something here sees it; who administers a tenant gives its keys."""

    tenant_field = "tenant_id"
    form = ApiKeyForm
    list_display = ("name", "state", "first_characters", "opens", "shown_scopes", "last_used")
    list_display_links = ("name",)
    list_filter = (StateFilter, ("tenant", TenantFilter))
    list_filter_submit = True
    list_select_related = ("tenant",)
    list_per_page = 50
    paginator = InfinitePaginator
    show_full_result_count = False
    search_fields = ("name", "shown")
    search_help_text = "Name, or first characters"
    autocomplete_fields = ("tenant",)
    actions_detail = ("revoke",)
    add_fieldsets = ((None, {"fields": ("name", "tenant", "scopes", "lifetime")}),)
    shown_fields = (
        "name",
        "state_in_words",
        "first_characters",
        "opens",
        "shown_scopes",
        "created_at",
        "issuer",
        "expires_at",
        "last_used_at",
        "last_used_from",
        "revoked_at",
        "revoker",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiKey]:
        """With whether who gave it still could."""
        return apikeys.with_backing(super().get_queryset(request))

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> ApiKey | None:
        """With who issued and who revoked it, as the person may know it."""
        key: Any = super().get_object(request, object_id, from_field)
        if key is not None:
            key.told_names = [told(name, key.tenant_id, request.user) for name in (key.created_by, key.revoked_by)]
        return key  # type: ignore[no-any-return]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """The form for a new one; of one that is there, all that is known of it."""
        return self.add_fieldsets if obj is None else ((None, {"fields": self.shown_fields}),)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """A key is never changed: what it opens is what was agreed when it was given out."""
        return () if obj is None else self.shown_fields

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Only the platform's administrators give out keys for all tenants."""
        form = super().get_form(request, obj, change, **kwargs)
        if obj is None and "tenant" in form.base_fields and not is_platform(request.user):
            form.base_fields["tenant"].required = True
            form.base_fields["tenant"].help_text = "The tenant whose usage and tokens it opens."
        return form

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody: what was done with it refers to it. Revoking ends it."""
        return False

    def has_revoke_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        """Whoever may change keys of that tenant."""
        return super().has_change_permission(request, object_id)

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list; an empty one says what such a key is for."""
        listed = super().get_changelist_instance(request)
        listed.nothing = "" if request.GET else "No API keys yet. Finance's tools and automation need one each."
        return listed

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what can be done with it now."""
        key = self._find(request, object_id)
        found: list[Any] = super().get_actions_detail(request, object_id)
        return found if key is not None and key.revoked_at is None else []

    def add_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """The form for a new key: one at a time, since its secret is shown next."""
        kwargs["extra_context"] = {
            **(kwargs.get("extra_context") or {}),
            "title": "Issue an API key",
            "show_save_and_continue": False,
            "show_save_and_add_another": False,
        }
        response: HttpResponse = super().add_view(request, *args, **kwargs)
        return response

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Issue it."""
        data = form.cleaned_data
        expires_at = now() + parse_duration(data["lifetime"]) if data["lifetime"] else None
        person: Any = request.user
        key, secret = apikeys.issue(
            data["name"], data["scopes"], data["tenant"], str(person), giver=person, expires_at=expires_at
        )
        obj.__dict__.update(key.__dict__)
        request.fresh_secret = secret  # type: ignore[attr-defined]  # for response_add, in this request only

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """Show the secret, this once."""
        secret: str = request.fresh_secret  # type: ignore[attr-defined]
        today = now().date()
        path = f"usage?from={today.replace(day=1)}&to={today}" if ApiScope.USAGE_READ in obj.scopes else "tokens"
        curl = f"curl '{settings.PUBLIC_URL}/api/{path}' \\\n  -H 'Authorization: Bearer {secret}'\n"
        return show_once(
            self,
            request,
            obj,
            secret,
            title=f"{obj.name} is issued",
            text=ONLY_ONCE,
            uses_title="A first request",
            uses=curl,
            back=self._page(obj.pk),
        )

    @action(description="Revoke", icon="block", url_path="revoke", permissions=["revoke"], variant=ActionVariant.DANGER)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then revoke."""
        key = self._find(request, object_id)
        if key is None:
            raise Http404
        if request.method == "POST":
            try:
                apikeys.revoke(key, str(request.user))
                messages.success(request, f"{key.name} is revoked: its next request is refused.")
            except Refused as exc:
                messages.info(request, str(exc))
            return HttpResponseRedirect(self._page(key.pk))
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": key,
            "form": forms.Form(),
            "back": self._page(key.pk),
            "title": f"Revoke {key.name}?",
            "text": FINAL,
            "facts": [("Opens", self.opens(key)), ("Last used", _moment(key.last_used_at))],
            "submit_text": "Revoke for good",
            "danger": True,
        }
        return TemplateResponse(request, "admin/confirm.html", context)

    def _find(self, request: HttpRequest, object_id: Any) -> ApiKey | None:
        number = row_id(object_id)
        found: ApiKey | None = self.get_queryset(request).filter(pk=number).first() if number is not None else None
        return found

    def _page(self, pk: int) -> str:
        return str(reverse("admin:tokens_apikey_change", args=(pk,)))

    @display(
        description="status", label={"active": "success", "unused": "info", "expired": "warning", "revoked": "danger"}
    )
    def state(self, key: ApiKey) -> tuple[str, str]:
        """Whether it opens anything."""
        if key.state != "active":
            return key.state, key.state.capitalize()
        if not key.backed:  # type: ignore[attr-defined]
            return "revoked", "Ended with its giver's rights"
        return ("active", "Active") if key.last_used_at else ("unused", "Never used")

    @display(description="status")
    def state_in_words(self, key: ApiKey) -> str:
        """The same on its page, which knows no labels."""
        return str(self.state(key)[1])

    @display(description="created by")
    def issuer(self, key: Any) -> str:
        """Who gave it."""
        return key.told_names[0] or "–"

    @display(description="revoked by")
    def revoker(self, key: Any) -> str:
        """Who ended it."""
        return key.told_names[1] or "–"

    @display(description="first characters")
    def first_characters(self, key: ApiKey) -> str:
        """By which one is told from another."""
        return f"{key.shown}…"

    @display(description="opens", ordering="tenant__slug")
    def opens(self, key: ApiKey) -> str:
        """Whose usage and tokens."""
        return key.tenant.slug if key.tenant else "all tenants"

    @display(description="may")
    def shown_scopes(self, key: ApiKey) -> str:
        """What, in the words of the API."""
        return ", ".join(key.scopes)

    @display(description="last used (UTC)", ordering="last_used_at")
    def last_used(self, key: ApiKey) -> str:
        """When, to the minute."""
        return _moment(key.last_used_at)


def _moment(at: Any) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else "never"

"""Members in the admin: users in a tenant, added by their e-mail address."""

from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.hashers import make_password
from django.core.exceptions import ValidationError
from django.db.models import Count, QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import action, display
from unfold.enums import ActionVariant
from unfold.forms import PaginationInlineFormSet
from unfold.widgets import UnfoldAdminEmailInputWidget

from tokens import stopping
from tokens.admin.limits import LimitInline
from tokens.admin.pages import ScopeAdmin
from tokens.models import Membership, Status, User

STATUS_COLOURS = {Status.ACTIVE.value: "success", Status.SUSPENDED.value: "danger"}


def email_field() -> forms.EmailField:
    """Names a member, who is added if there is none with that address."""
    return forms.EmailField(
        label="E-mail address",
        widget=UnfoldAdminEmailInputWidget,
        help_text="A person or a service of the tenant. Who isn't a member yet becomes one, and can't sign in here.",
    )


class MemberForm(ModelForm):  # type: ignore[type-arg]
    """A new member, by e-mail address."""

    email = email_field()

    class Meta:
        model = Membership
        fields = ("tenant",)

    def clean_email(self) -> str:
        """The address as it is stored."""
        return str(self.cleaned_data["email"]).lower()

    def clean(self) -> dict[str, Any] | None:
        """Refuse who is a member already."""
        cleaned = super().clean()
        tenant = self.cleaned_data.get("tenant") or getattr(self.instance, "tenant", None)
        email = self.cleaned_data.get("email")
        if tenant is not None and tenant.pk and tenant.members.filter(user__email=email).exists():
            self.add_error("email", "This is a member already.")
        return cleaned

    def save(self, commit: bool = True) -> Membership:
        """Make the user, too, if there is none."""
        self.instance.user, _ = User.objects.get_or_create(
            email=self.cleaned_data["email"], defaults={"password": make_password(None)}
        )
        saved: Membership = super().save(commit)
        return saved


class MemberFormSet(PaginationInlineFormSet):
    """New members of one tenant, each once."""

    def clean(self) -> None:
        """Refuse an address that is given twice."""
        super().clean()
        emails = [form.cleaned_data["email"] for form in self.extra_forms if form.has_changed() and not form.errors]
        if len(emails) > len(set(emails)):
            raise ValidationError("An e-mail address is given twice.")


class MemberInline(TabularInline):
    """The members of a tenant, to look at; each has a page of its own."""

    model = Membership
    fields = ("user", "status", "created_at")
    readonly_fields = fields
    extra = 0
    per_page = 20
    show_change_link = True
    verbose_name_plural = "members"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        """With what their names are made of, otherwise each would ask for its own."""
        queryset: QuerySet[Membership] = super().get_queryset(request)
        return queryset.select_related("tenant", "user")

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """New ones are added in the rows below."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Each is changed on its own page."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """As on its own page."""
        return False


class NewMemberInline(TabularInline):
    """Rows for new members."""

    model = Membership
    form = MemberForm
    formset = MemberFormSet
    fields = ("email",)
    extra = 0
    verbose_name = "member"
    verbose_name_plural = "new members"
    can_delete = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        """None of those who are members already."""
        return Membership.objects.none()


@admin.register(Membership)
class MemberAdmin(ScopeAdmin):
    """A member with limits of its own and its tokens."""

    list_display = ("email", "tenant", "shown_status", "tokens", "created_at")
    list_filter = (("tenant", AutocompleteSelectFilter), ("status", ChoicesDropdownFilter))
    list_filter_submit = True
    list_select_related = ("tenant", "user")
    search_fields = ("user__email", "tenant__slug", "tenant__name")
    autocomplete_fields = ("tenant",)
    fieldsets = ((None, {"fields": (("user", "tenant"), ("status", "created_at"))}),)
    add_fieldsets = ((None, {"fields": ("tenant", "email")}),)
    inlines = (LimitInline,)
    actions_detail = ("issue", "suspend", "activate")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Who is new is named by an address."""
        if obj is None:
            kwargs["form"] = MemberForm
        return super().get_form(request, obj, change, **kwargs)

    def get_readonly_fields(self, request: HttpRequest, obj: object = None) -> tuple[str, ...]:
        """A member stays who it is, in its tenant."""
        return ("user", "tenant", "status", "created_at") if obj is not None else ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        """With the number of tokens."""
        queryset: QuerySet[Membership] = super().get_queryset(request)
        return queryset.annotate(token_count=Count("tokens"))

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what can be done with it now."""
        suspended = self.rows(request, object_id).filter(status=Status.SUSPENDED).exists()
        hidden = "suspend" if suspended else "activate"
        return [one for one in super().get_actions_detail(request, object_id) if one.path != hidden]

    @display(description="member", ordering="user__email")
    def email(self, member: Membership) -> str:
        """The member's address."""
        return member.user.email

    @display(description="status", label=STATUS_COLOURS, ordering="status")
    def shown_status(self, member: Membership) -> tuple[str, str]:
        """Active or suspended."""
        return member.status, member.get_status_display()

    @display(ordering="token_count")
    def tokens(self, member: Any) -> int:
        """How many tokens it has."""
        return int(member.token_count)

    @action(description="Issue token", icon="add", url_path="issue", variant=ActionVariant.PRIMARY)
    def issue(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """On to the form for a new token of this member."""
        member = self.find(request, object_id)
        return HttpResponseRedirect(f"{reverse('admin:tokens_proxytoken_add')}?member={member.pk}")

    @action(description="Suspend", icon="block", url_path="suspend", permissions=["change"])
    def suspend(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then suspend."""
        member = self.find(request, object_id)

        def carry_out(_form: forms.Form) -> None:
            stopping.suspend_member(member)
            self.log_change(request, member, "Suspended.")
            self.message_user(request, f"{member} is suspended: its tokens no longer work.")

        return self.confirm(
            request,
            member,
            carry_out,
            title=f"Suspend {member.user.email}?",
            text="Its tokens stop working at once. Activating it lets them work again.",
            submit_text="Suspend",
            danger=True,
        )

    @action(description="Activate", icon="check", url_path="activate", permissions=["change"])
    def activate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then activate."""
        member = self.find(request, object_id)

        def carry_out(_form: forms.Form) -> None:
            stopping.activate_member(member)
            self.log_change(request, member, "Activated.")
            self.message_user(request, f"{member} is active again.")

        return self.confirm(
            request,
            member,
            carry_out,
            title=f"Activate {member.user.email}?",
            text="Its tokens work again, unless they are revoked or expired.",
            submit_text="Activate",
        )

"""People in the admin: who signs in, with which roles, and users who only own tokens.

The roles of the platform are given here, those in a tenant on the page of the member.
"""

from functools import partial
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import BooleanRadioFilter, DropdownFilter
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldBooleanSwitchWidget

from config.signin.factors import authenticator_of, is_required
from tokens import roles
from tokens.admin.inviting import Invites, invite_and_say
from tokens.admin.members import member_link, role_in_a_word
from tokens.admin.scoping import OwnRows
from tokens.models import Membership, User

INVITE_LATER = (
    "Without a role there is nothing to sign in to. For a role in a tenant, add a member on the tenant's page and "
    "invite them on theirs."
)

admin.site.unregister(Group)  # nothing is granted by groups


class NewUserForm(UserCreationForm):
    """A person who chooses their password by a link, is given one here, or has none and can't sign in."""

    invite = forms.BooleanField(
        label="Invite by e-mail",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text="A mail leads them to a page where they choose their password, within a week. Leave it empty here.",
    )

    class Meta:
        model = User
        fields = ("email",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        choice = self.fields["usable_password"]
        choice.label, choice.help_text = "Who sets it", ""
        nobody = "Nobody: they can't sign in until they choose one by mail"
        choice.choices = choice.widget.choices = [("true", "I do, here"), ("false", nobody)]

    def clean_email(self) -> str:
        """As it is stored, so that one address is one person."""
        return str(self.cleaned_data["email"]).lower()

    def clean(self) -> dict[str, Any] | None:
        """Whoever is invited has a role, and no password yet."""
        if self.cleaned_data.get("invite"):
            self.cleaned_data |= {"usable_password": "false"}  # Django's form then asks for none
            if self.cleaned_data.get("password1"):
                self.add_error("invite", "Either they choose their password themselves, or you set one here.")
            elif not (self.cleaned_data.get("is_superuser") or self.cleaned_data.get("is_finance")):
                self.add_error("invite", INVITE_LATER)
            elif not settings.EMAIL_URL:
                self.add_error("invite", "The gateway has no mail server: its operator sets EMAIL_URL.")
        cleaned: dict[str, Any] | None = super().clean()
        return cleaned


class UserForm(UserChangeForm):
    """A person who is there already."""

    def clean_email(self) -> str:
        """As it is stored, so that one address is one person."""
        return str(self.cleaned_data["email"]).lower()


class MembershipInline(TabularInline):
    """The tenants that a person is a member of, to look at; each membership has a page of its own."""

    model = Membership
    fields = ("membership", "shown_role", "status")
    readonly_fields = fields
    extra = 0
    per_page = 20
    hide_title = True
    verbose_name_plural = "memberships"

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Members are added on the tenant's page."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Each is changed on its own page."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """As on its own page."""
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        """With what their names are made of."""
        queryset: QuerySet[Membership] = super().get_queryset(request)
        return queryset.select_related("tenant", "user")

    @display(description="tenant")
    def membership(self, member: Membership) -> SafeString:
        """The tenant, which leads to the page of the member, where the role is changed."""
        return member_link(member, member.tenant.name)

    @display(description="role")
    def shown_role(self, member: Membership) -> str:
        """What they may do there."""
        return role_in_a_word(member)


class RoleFilter(DropdownFilter):
    """By what people may do."""

    title = "role"
    parameter_name = "role"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Those that there are."""
        names = {"platform": "Platform administrators", "finance": "Finance", "tenant": "In a tenant", "none": "None"}
        return list(names.items())

    def queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> QuerySet[User]:
        """Narrow the list."""
        held = Membership.objects.filter(roles.HOLDS_ROLE, user=OuterRef("pk"))
        conditions = {
            "platform": Q(is_superuser=True),
            "finance": Q(is_finance=True),
            "tenant": Q(Exists(held)),
            "none": Q(is_staff=False),
        }
        condition = conditions.get(self.value() or "")
        return queryset if condition is None else queryset.filter(condition)


@admin.register(User)
class PersonAdmin(Invites, DjangoUserAdmin, OwnRows):  # type: ignore[misc,type-arg]
    """People, their passwords, and what they may do."""

    form = UserForm
    add_form = NewUserForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("email", "full_name", "shown_roles", "is_active", "last_login")
    list_filter = (RoleFilter, ("is_active", BooleanRadioFilter))
    list_filter_submit = True
    list_per_page = 50
    search_fields = ("email", "first_name", "last_name")
    ordering = ("email",)
    filter_horizontal = ()
    fieldsets = (
        (None, {"fields": ("email", "shown_password", ("first_name", "last_name"))}),
        ("Rights", {"fields": ("is_active", "is_superuser", "is_finance", "second_factor")}),
        ("Dates", {"fields": (("last_login", "date_joined"),)}),
    )
    add_fieldsets = (
        (None, {"fields": ("email", ("is_superuser", "is_finance"), "invite")}),
        ("Password", {"fields": ("usable_password", "password1", "password2")}),
    )
    inlines = (MembershipInline,)
    actions_detail = ("invite",)

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody: memberships and the books refer to people. Who isn't active can't sign in."""
        return False

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        """Save; a new person is invited once they are there for good."""
        super().save_model(request, obj, form, change)
        if not change and form.cleaned_data["invite"]:
            transaction.on_commit(partial(invite_and_say, request, obj))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Nobody takes their own rights away by accident."""
        dates = ("last_login", "date_joined", "second_factor", "shown_password")
        own = ("is_active", "is_superuser", "is_finance")
        return (*dates, *own) if obj is not None and obj == request.user else dates

    def get_inlines(self, request: HttpRequest, obj: Any) -> tuple[Any, ...]:
        """A new person is a member of no tenant."""
        return self.inlines if obj is not None else ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """With their memberships."""
        queryset: QuerySet[User] = super().get_queryset(request)
        return queryset.prefetch_related("memberships__tenant")

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Say in plain words what the roles are."""
        field: Any = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "is_superuser":
            field.label = "Platform administrator"
            field.help_text = "Sees and changes everything, of all tenants."
        elif db_field.name == "is_active":
            field.help_text = "Whoever isn't active can't sign in. Their proxy tokens go on working."
        return field

    @display(description="name", empty_value="–")
    def full_name(self, user: User) -> str | None:
        """First and last name."""
        return user.get_full_name() or None

    @display(description="password")
    def shown_password(self, user: User) -> str:
        """Whether they have one, and the way to give them another."""
        page = reverse("admin:auth_user_password_change", args=[user.pk])
        has = user.has_usable_password()
        words, way = ("set", "Change it") if has else ("none, so they can't sign in", "Set one")
        return format_html('{} · <a class="gw-link" href="{}">{}</a>', words, page, way)

    @display(description="second factor")
    def second_factor(self, user: User) -> str:
        """Whether they have one, and the way to take it away when phone and recovery codes are lost."""
        if authenticator_of(user) is None:
            return "required, and not set up yet" if is_required(user) else "none"
        page = reverse("second_factor_reset", args=[user.pk])
        return format_html('set up · <a class="gw-link" href="{}">Reset it</a>', page)

    @display(description="roles", empty_value="–")
    def shown_roles(self, user: User) -> str | None:
        """What they may do, of the platform first."""
        return ", ".join(roles.in_words(user)) or None

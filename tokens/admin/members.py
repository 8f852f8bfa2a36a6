"""Members in the admin: users in a tenant, added by their e-mail address; the role says what they may do here."""

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.auth.hashers import make_password
from django.core.exceptions import ValidationError
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import action, display
from unfold.enums import ActionVariant
from unfold.forms import PaginationInlineFormSet
from unfold.widgets import UnfoldAdminEmailInputWidget

from tokens import roles, stopping
from tokens.admin.inviting import Invites
from tokens.admin.limits import LimitInline
from tokens.admin.pages import ScopeAdmin
from tokens.admin.scoping import TenantFilter
from tokens.errors import Refused
from tokens.models import Membership, ProxyToken, Role, Status, User

STATUS_COLOURS = {Status.ACTIVE.value: "success", Status.SUSPENDED.value: "danger"}
ROLE_COLOURS = {Role.VIEWER.value: "default", Role.ADMINISTRATOR.value: "info"}


def email_field() -> forms.EmailField:
    """Names a member, who is added if there is none with that address."""
    return forms.EmailField(
        label="E-mail address",
        widget=UnfoldAdminEmailInputWidget,
        help_text="A person or a service of the tenant. Who isn't a member yet becomes one.",
    )


class MemberForm(ModelForm):  # type: ignore[type-arg]
    """A new member, by e-mail address."""

    email = email_field()

    class Meta:
        model = Membership
        fields = ("tenant", "role")

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


class RoleForm(ModelForm):  # type: ignore[type-arg]
    """A member who is there. `by`: the person who changes them, set by the page."""

    by: ClassVar[User | None] = None

    class Meta:
        model = Membership
        fields = ("role",)

    def clean_role(self) -> str:
        """Refuse, beside the field, what the person may not; until the page is saved that stays so."""
        role = str(self.cleaned_data["role"])
        if role != self.instance.role:
            try:
                roles.require_right_over(self.instance, self.by)
            except Refused as exc:
                raise ValidationError(str(exc)) from exc
        return role


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
    fields = ("email", "shown_role", "status", "created_at")
    readonly_fields = fields
    extra = 0
    per_page = 20
    hide_title = True
    verbose_name_plural = "members"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        """With what their names are made of, otherwise each would ask for its own."""
        queryset: QuerySet[Membership] = super().get_queryset(request)
        return queryset.select_related("tenant", "user")

    @display(description="e-mail address")
    def email(self, member: Membership) -> SafeString:
        """The member's address, which leads to the page of the member."""
        return member_link(member, member.user.email)

    @display(description="role")
    def shown_role(self, member: Membership) -> str:
        """What they may do here."""
        return role_in_a_word(member)

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
    fields = ("email", "role")
    extra = 0
    verbose_name = "member"
    verbose_name_plural = "new members"
    can_delete = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        """None of those who are members already."""
        return Membership.objects.none()

    def has_view_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """There is nothing to look at, only something to fill in."""
        return bool(self.has_add_permission(request, obj))


@admin.register(Membership)
class MemberAdmin(Invites, ScopeAdmin):
    """A member with limits of its own and its tokens."""

    tenant_field = "tenant_id"
    list_display = ("email", "tenant", "shown_role", "shown_status", "tokens", "created_at")
    list_filter = (("tenant", TenantFilter), ("role", ChoicesDropdownFilter), ("status", ChoicesDropdownFilter))
    list_filter_submit = True
    list_select_related = ("tenant", "user")
    search_fields = ("user__email", "tenant__slug", "tenant__name")
    autocomplete_fields = ("tenant",)
    fieldsets = ((None, {"fields": (("email", "tenant"), "role", ("status", "created_at"))}),)
    add_fieldsets = ((None, {"fields": ("tenant", "email", "role")}),)
    inlines = (LimitInline,)
    actions_detail = ("issue", "invite", "suspend", "activate")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Who is new is named by an address."""
        kwargs["form"] = MemberForm if obj is None else RoleForm
        form = super().get_form(request, obj, change, **kwargs)  # a class of this request's own
        if obj is not None:
            form.by = request.user
        return form

    def get_readonly_fields(self, request: HttpRequest, obj: object = None) -> tuple[str, ...]:
        """A member stays who it is, in its tenant; nobody takes their own rights away."""
        if obj is None:
            return ()
        fixed = ("email", "tenant", "status", "created_at")
        return (*fixed, "role") if isinstance(obj, Membership) and _own(request, obj) else fixed

    def get_queryset(self, request: HttpRequest) -> QuerySet[Membership]:
        """With the number of tokens."""
        counts = ProxyToken.objects.filter(member=OuterRef("pk")).order_by().values("member").annotate(n=Count("pk"))
        queryset: QuerySet[Membership] = super().get_queryset(request)
        return queryset.annotate(token_count=Coalesce(Subquery(counts.values("n")), 0))

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what can be done with it now."""
        member = self.rows(request, object_id).first()
        if member is None:
            return []
        hidden = {"activate" if member.status == Status.ACTIVE else "suspend"}
        hidden |= {"suspend"} if _own(request, member) else set()
        hidden |= set() if self.may_invite(member) else {"invite"}
        return [one for one in super().get_actions_detail(request, object_id) if one.path not in hidden]

    def save_model(self, request: HttpRequest, obj: Membership, form: Any, change: bool) -> None:
        """Save; the role of a member who is there already by the verb that asks whether one may."""
        if not change:
            super().save_model(request, obj, form, change)
        elif "role" in form.changed_data:
            roles.set_role(obj, form.cleaned_data["role"], request.user)  # type: ignore[arg-type]

    @display(description="member", ordering="user__email")
    def email(self, member: Membership) -> str:
        """The member's address."""
        return member.user.email

    @display(description="status", label=STATUS_COLOURS, ordering="status")
    def shown_status(self, member: Membership) -> tuple[str, str]:
        """Active or suspended."""
        return member.status, member.get_status_display()

    @display(description="role", label=ROLE_COLOURS, ordering="role")
    def shown_role(self, member: Membership) -> tuple[str, str]:
        """What they may do here."""
        return member.role, role_in_a_word(member)

    @display(ordering="token_count")
    def tokens(self, member: Any) -> int:
        """How many tokens it has."""
        return int(member.token_count)

    @action(
        description="Issue token", icon="add", url_path="issue", variant=ActionVariant.PRIMARY, permissions=["change"]
    )
    def issue(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """On to the form for a new token of this member."""
        member = self.find(request, object_id)
        return HttpResponseRedirect(f"{reverse('admin:tokens_proxytoken_add')}?member={member.pk}")

    @action(description="Suspend", icon="block", url_path="suspend", permissions=["change"])
    def suspend(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then suspend."""
        member = self.find(request, object_id)

        def carry_out(_form: forms.Form) -> None:
            stopping.suspend_member(member, request.user)  # type: ignore[arg-type]
            self.message_user(request, f"{member} is suspended: its tokens no longer work.")

        return self.confirm(
            request,
            member,
            carry_out,
            title=f"Suspend {member.user.email}?",
            text="Its tokens stop working at once, and who has a role can't sign in. Activating undoes both.",
            submit_text="Suspend",
            danger=True,
        )

    @action(description="Activate", icon="check", url_path="activate", permissions=["change"])
    def activate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then activate."""
        member = self.find(request, object_id)

        def carry_out(_form: forms.Form) -> None:
            stopping.activate_member(member)
            self.message_user(request, f"{member} is active again.")

        return self.confirm(
            request,
            member,
            carry_out,
            title=f"Activate {member.user.email}?",
            text="Its tokens work again, unless they are revoked or expired.",
            submit_text="Activate",
        )


def _own(request: HttpRequest, member: Membership) -> bool:
    """Whether these are the person's own rights; a platform administrator has others."""
    return member.user_id == request.user.pk and not roles.is_platform(request.user)


def member_link(member: Membership, text: str) -> SafeString:
    """A link to the page of a member."""
    address = reverse("admin:tokens_membership_change", args=(member.pk,))
    return format_html('<a class="gw-link" href="{}">{}</a>', address, text)


def role_in_a_word(member: Membership) -> str:
    """Such as "Viewer"; "–" of who only owns tokens."""
    return member.role.capitalize() or "–"

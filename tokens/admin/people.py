"""People in the admin: administrators, who sign in, and users who only own tokens."""

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from tokens.models import User

admin.site.unregister(Group)  # nothing is granted by groups


class NewUserForm(UserCreationForm):
    """A person with or without a password; without one they can't sign in."""

    class Meta:
        model = User
        fields = ("email",)

    def clean_email(self) -> str:
        """As it is stored, so that one address is one person."""
        return str(self.cleaned_data["email"]).lower()


class UserForm(UserChangeForm):
    """A person who is there already."""

    def clean_email(self) -> str:
        """As it is stored, so that one address is one person."""
        return str(self.cleaned_data["email"]).lower()


@admin.register(User)
class PersonAdmin(DjangoUserAdmin, ModelAdmin):  # type: ignore[type-arg]
    """People and their passwords."""

    form = UserForm
    add_form = NewUserForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("email", "full_name", "administrator", "is_active", "last_login")
    list_filter = ("is_superuser", "is_active")
    search_fields = ("email", "first_name", "last_name")
    ordering = ("email",)
    filter_horizontal = ()
    fieldsets = (
        (None, {"fields": ("email", "password", ("first_name", "last_name"))}),
        ("Rights", {"fields": ("is_active", "is_superuser")}),
        ("Dates", {"fields": (("last_login", "date_joined"),)}),
    )
    add_fieldsets = ((None, {"fields": ("email", "usable_password", "password1", "password2", "is_superuser")}),)

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Nobody: memberships and the books refer to people. Who isn't active can't sign in."""
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        """Nobody takes their own rights away by accident."""
        dates = ("last_login", "date_joined")
        return (*dates, "is_active", "is_superuser") if obj is not None and obj == request.user else dates

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Say in plain words what an administrator is."""
        field: Any = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "is_superuser":
            field.label, field.help_text = "Administrator", "Signs in here and may see and change everything."
        return field

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        """Only administrators enter here."""
        obj.is_staff = obj.is_superuser
        super().save_model(request, obj, form, change)

    @display(description="name")
    def full_name(self, user: User) -> str:
        """First and last name."""
        return user.get_full_name()

    @display(description="administrator", boolean=True, ordering="is_superuser")
    def administrator(self, user: User) -> bool:
        """Whether they may enter here."""
        return user.is_superuser

"""The forms of signing in, besides the admin's own."""

from typing import Any

from django import forms
from django.contrib.auth.forms import SetPasswordForm
from unfold.forms import AuthenticationForm
from unfold.widgets import UnfoldAdminEmailInputWidget, UnfoldAdminPasswordWidget, UnfoldAdminTextInputWidget


class SignInForm(AuthenticationForm):
    """Address and password. Whoever is refused isn't told which of them was wrong, nor that a role is missing."""

    error_messages = {
        **AuthenticationForm.error_messages,
        "invalid_login": "This address and password don't let anybody in. Check both; capitals count in a password.",
    }


class CodeForm(forms.Form):
    """A code of an authenticator app, or a recovery code."""

    code = forms.CharField(
        label="Code",
        max_length=40,
        widget=UnfoldAdminTextInputWidget(
            attrs={"autocomplete": "one-time-code", "autofocus": True, "autocapitalize": "off", "spellcheck": "false"}
        ),
        error_messages={"required": "Enter the code."},
    )


class AddressForm(forms.Form):
    """Who has forgotten their password."""

    email = forms.EmailField(
        label="E-mail address",
        max_length=254,
        widget=UnfoldAdminEmailInputWidget(attrs={"autocomplete": "username", "autofocus": True}),
        error_messages={"required": "Enter the address that you sign in with."},
    )


class PasswordForm(SetPasswordForm):  # type: ignore[type-arg]
    """A new password, twice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("new_password1", "new_password2"):
            self.fields[name].widget = UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"})
        self.fields["new_password1"].label, self.fields["new_password2"].label = "Password", "The same again"
        self.fields["new_password2"].help_text = ""

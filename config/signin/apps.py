"""The sign-in app's registration."""

from importlib import import_module

from django.apps import AppConfig


class SignInConfig(AppConfig):
    """Django's entry for config.signin."""

    name = "config.signin"
    label = "signin"
    verbose_name = "Sign-in"

    def ready(self) -> None:
        """Connect the receiver that marks a new session; it needs the models, so not before they are loaded."""
        import_module("config.signin.sessions")

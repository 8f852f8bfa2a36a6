"""The tokens app's registration."""

from importlib import import_module

from django.apps import AppConfig


class TokensConfig(AppConfig):
    """Django's entry for tokens."""

    name = "tokens"

    def ready(self) -> None:
        """Connect the receiver that publishes changes; it needs the models, so not before they are loaded."""
        import_module("tokens.directory")

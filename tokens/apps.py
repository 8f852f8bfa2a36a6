"""The tokens app's registration."""

from importlib import import_module

from django.apps import AppConfig


class TokensConfig(AppConfig):
    """Django's entry for tokens."""

    name = "tokens"

    def ready(self) -> None:
        """Connect the receivers of changes; they need the models, so not before those are loaded."""
        import_module("tokens.directory")
        import_module("tokens.requestactors")
        import_module("tokens.roles")

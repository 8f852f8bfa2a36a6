"""The gateway app's registration."""

from importlib import import_module

from django.apps import AppConfig

from config.checks import register_checks


class GatewayConfig(AppConfig):
    """Django's entry for gateway."""

    name = "gateway"

    def ready(self) -> None:
        """Connect the signal receivers, which can only be imported now that all models are loaded; add the checks."""
        import_module("gateway.signals")
        register_checks()

"""The usage app's registration."""

from django.apps import AppConfig


class UsageConfig(AppConfig):
    """Django's entry for usage."""

    name = "usage"

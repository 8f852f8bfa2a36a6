"""The Celery application. Tasks live in each app's ``tasks`` module; their schedule is in the settings."""

import os
import sys
from typing import Any

from celery import Celery
from celery.signals import worker_init
from django.core.exceptions import ImproperlyConfigured

from config import checks

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("gateway")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_init.connect
def refuse_unsafe(**_details: Any) -> None:
    """Stop a worker's start on settings or stores that can't keep the promises."""
    try:
        checks.refuse_unsafe()
    except ImproperlyConfigured as refusal:
        sys.exit(f"The worker doesn't start. {refusal}")

"""The Celery application. Tasks live in each app's ``tasks`` module; their schedule is in the settings."""

import gc
import os
import sys
from typing import Any

from celery import Celery
from celery.signals import task_postrun, worker_before_create_process, worker_init
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from config import checks, workerhealth, workerwatch

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("gateway")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@app.task(name=workerwatch.PROBE)
def probe() -> None:
    """Do nothing: that it was done tells the watchdog that tasks are taken."""


@worker_before_create_process.connect
def share_memory(**_details: Any) -> None:
    """Keep the collector's hands off what a worker's processes share, else each soon has a copy: 25 MB of it."""
    gc.collect()
    gc.freeze()


@worker_init.connect
def refuse_unsafe(sender: Any, **_details: Any) -> None:
    """Stop a worker's start on settings or stores that can't keep the promises; else watch over it from here on."""
    try:
        checks.refuse_unsafe()
    except ImproperlyConfigured as refusal:
        sys.exit(f"The worker doesn't start. {refusal}")
    pulse = workerhealth.Pulse()
    periodic = {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()}

    @task_postrun.connect(weak=False)
    def beat(task: Any, **_details: Any) -> None:
        pulse.beat(periodic=task.name in periodic)

    workerhealth.serve(pulse)
    workerwatch.Watchdog(app, sender, pulse).start()

"""A worker without a watchdog: once stuck it stays so."""

from config import workerwatch
from config.celery import app

workerwatch.Watchdog.start = lambda self: None

__all__ = ["app"]

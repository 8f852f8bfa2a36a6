"""Logs: one JSON object a line on standard error, times in UTC, nothing secret.

The request line of the API is written by gateway.requestlog; everything else (Django, Celery, our own warnings)
passes through here, so that one parser reads all.
"""

import logging
import logging.config
import re
from typing import Any

import structlog
from django.core.exceptions import ImproperlyConfigured

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# With an error Django logs the path, in which such a link is whole, and not used yet.
PASSWORD_LINK = re.compile(r"(/password/choose/[^/\s]+/)[^/\s\"'<>\\]+")


def configure(options: dict[str, Any]) -> None:
    """Route the standard library's logging through structlog's JSON renderer. Called by Django at set-up.

    Raises:
        ImproperlyConfigured: ``LOG_LEVEL`` is none of `LEVELS`.
    """
    if options["level"] not in LEVELS:
        raise ImproperlyConfigured(f"LOG_LEVEL must be one of {', '.join(LEVELS)}, not {options['level']}.")
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": shared,
                    "processors": [
                        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                        structlog.processors.JSONRenderer(),
                        _hide_links,
                    ],
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"handlers": ["stderr"], "level": options["level"]},
            # Django's line for each 4xx answer and httpx's for each call would repeat the request line.
            "loggers": {
                "django.request": {"level": "ERROR"},
                "httpx": {"level": "WARNING"},
                # A trace for each request of whoever scans the internet; it is answered with 400.
                "django.security.DisallowedHost": {"level": "CRITICAL"},
                # Three lines for each of several tasks a second would bury everything else.
                "celery.app.trace": {"level": "WARNING"},
                "celery.worker.strategy": {"level": "WARNING"},
                "celery.beat": {"level": "WARNING"},
            },
        }
    )


def _hide_links(_logger: Any, _method: str, line: str) -> str:
    return PASSWORD_LINK.sub(r"\1(hidden)", line)

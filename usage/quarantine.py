"""Putting aside the events that can't be booked, whole, so that a person can."""

import hashlib
import json
import logging
from collections.abc import Mapping

import msgspec

from usage.events import UsageEvent
from usage.models import QuarantinedEvent

logger = logging.getLogger(__name__)


def quarantine_entry(fields: Mapping[bytes, bytes], error: Exception) -> None:
    """Keep a stream entry that could not be read."""
    _keep({_text(name): _text(value) for name, value in fields.items()}, type(error).__name__, str(error))


def quarantine_event(event: UsageEvent, error: str, message: str) -> None:
    """Keep an event that the database refused, or that says something it must not. `error` is a short name."""
    _keep(msgspec.to_builtins(event), error, message)


def _keep(raw: dict[str, object], error: str, message: str) -> None:
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    entry = QuarantinedEvent(raw=raw, digest=digest, error=error, message=message)
    QuarantinedEvent.objects.bulk_create([entry], ignore_conflicts=True)
    logger.error("A usage event was quarantined: %s", error, extra={"quarantined": digest})


def _text(value: bytes) -> str:
    """Any bytes as text that PostgreSQL's jsonb takes, which refuses NUL."""
    return value.decode("utf-8", "replace").replace("\0", "\ufffd")

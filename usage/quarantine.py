"""Putting aside the events that can't be booked, whole, so that a person can have them booked (usage.retrying)."""

import base64
import hashlib
import json
import logging
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from usage.events import UsageEvent
from usage.models import QuarantinedEvent

logger = logging.getLogger(__name__)

USED_TWICE = "SequenceUsedTwice"  # the error of an event that is booked all the same
BINARY = "base64"


class _Call(msgspec.Struct):
    tenant: int


def quarantine_entry(fields: Mapping[bytes, bytes], error: Exception) -> None:
    """Keep a stream entry that could not be read."""
    _keep({_text(name): _value(value) for name, value in fields.items()}, type(error).__name__, str(error))


def quarantine_event(event: UsageEvent, error: str, message: str) -> None:
    """Keep an event that the database refused, or that says something it must not. `error` is a short name."""
    _keep(msgspec.to_builtins(event), error, message)


def stream_entry(raw: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The stream entry that `quarantine_entry` kept as `raw`, byte by byte. Raises ValueError when it kept none."""
    fields = {}
    for name, value in raw.items():
        if isinstance(value, dict) and value.keys() == {BINARY}:
            fields[name.encode()] = base64.b64decode(value[BINARY], validate=True)
        elif isinstance(value, str):
            fields[name.encode()] = value.encode()
        else:
            raise ValueError(f"The field {name} is no text.")
    return fields


def whose(raw: Mapping[str, Any]) -> tuple[int | None, uuid.UUID | None]:
    """The tenant's id and the request id of an event that was kept as `raw`, each None where it can't be read."""
    tenant = raw.get("tenant")
    if isinstance(raw.get("call"), str):  # a stream entry has the tenant within its call
        try:
            tenant = msgspec.json.decode(raw["call"], type=_Call).tenant
        except msgspec.MsgspecError:
            tenant = None
    try:
        request_id = uuid.UUID(str(raw.get("request_id")))
    except ValueError:
        request_id = None
    return (tenant if type(tenant) is int else None), request_id


def _keep(raw: dict[str, object], error: str, message: str) -> None:
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    entry = QuarantinedEvent(raw=raw, digest=digest, error=error, message=message)
    QuarantinedEvent.objects.bulk_create(
        [entry],
        update_conflicts=True,
        unique_fields=["digest"],
        # One that was dealt with and comes once more is open again: what was done about it didn't last.
        update_fields=["error", "message", "resolved_at", "resolved_by", "resolution"],
    )
    logger.error("A usage event was quarantined: %s", error, extra={"quarantined": digest})


def _value(value: bytes) -> str | dict[str, str]:
    """Text as it is. What is no UTF-8, or has a NUL, which PostgreSQL's jsonb refuses, as base64: nothing is lost."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    return {BINARY: base64.b64encode(value).decode()} if "\0" in text else text


def _text(value: bytes) -> str:
    """A field's name as text that jsonb takes."""
    return value.decode("utf-8", "replace").replace("\0", "\ufffd")

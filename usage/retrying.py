"""Quarantined events a second time: booked after all, once code or data were put right, or set aside with a reason."""

from collections.abc import Mapping
from typing import Any

import msgspec
from django.db import DataError, IntegrityError, transaction
from django.utils.timezone import now

from tokens import audit
from tokens.audit import Verb
from tokens.errors import Refused
from tokens.models import User
from usage import ledger
from usage.events import BadEventError, UsageEvent, parse
from usage.models import QuarantinedEvent
from usage.quarantine import USED_TWICE, stream_entry

BOOKED = "booked"


def retry(entry: QuarantinedEvent, by: User | str) -> None:
    """Read and book an event once more; any number of times, a call is charged once.

    Raises Refused, saying why, when it can't be booked now either: it stays open, with the newest error. Raises
    django.db.OperationalError when the database is out of reach.
    """
    _require_open(entry)
    if entry.error == USED_TWICE:
        raise Refused("Its usage is in the books; only its sequence number came twice. Set it aside, saying why.")
    try:
        ledger.write([read(entry.raw)])
    except (BadEventError, DataError, IntegrityError) as exc:
        error, message = type(exc).__name__, str(exc).partition("\n")[0]
        QuarantinedEvent.objects.filter(pk=entry.pk).update(error=error, message=message)
        raise Refused(f"It can't be booked now either: {message}") from exc
    _close(entry, BOOKED, by, Verb.BOOKED)


def set_aside(entry: QuarantinedEvent, reason: str, by: User | str) -> None:
    """Close an event that isn't to be booked. Raises Refused without a reason, and when it was dealt with already."""
    if not reason.strip():
        raise Refused("Say why: setting usage aside needs a reason.")
    _require_open(entry)
    _close(entry, f"set aside: {' '.join(reason.split())}", by, Verb.SET_ASIDE, reason)


def read(raw: Mapping[str, Any]) -> UsageEvent:
    """The event of a quarantined row: as it came through a stream, or as it had been read. Raises BadEventError."""
    try:
        if "charged" in raw:  # a stream entry has this within its result
            return msgspec.convert(raw, UsageEvent)
        return parse(stream_entry(raw))
    except BadEventError:
        raise
    except (msgspec.MsgspecError, ValueError) as exc:
        raise BadEventError(f"The event was not kept as it came: {exc}") from None


def _require_open(entry: QuarantinedEvent) -> None:
    if entry.resolved_at is not None:
        raise Refused(f"It was dealt with already: {entry.resolution}.")


def _close(entry: QuarantinedEvent, resolution: str, by: User | str, verb: str, reason: str = "") -> None:
    user = by if isinstance(by, User) else None
    with transaction.atomic():
        changed = QuarantinedEvent.objects.filter(pk=entry.pk, resolved_at=None).update(
            resolved_at=now(), resolved_by=user, resolution=resolution if user else f"{resolution} ({by})"
        )
        if not changed:
            raise Refused("Somebody else dealt with it meanwhile.")
        audit.note(verb, entry, reason=reason)

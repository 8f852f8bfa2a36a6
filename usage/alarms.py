"""Alarms: what a person must look at. Each is a row, a line in the log and a part of one mail.

An alarm is one kind and one subject. It is opened by whoever finds it, stays open as long as it is found, and closes by
itself. One that comes back within an hour is the same alarm again, so what comes and goes doesn't mail every minute.
Messages name tenants and counts, never a client's data.
"""

import logging
import smtplib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple

from django.conf import settings
from django.core.mail import send_mail
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import Q
from django.utils.timezone import now

from tokens import audit
from tokens.audit import Verb
from usage.models import Alarm

logger = logging.getLogger(__name__)
LOCK = 0x616C61726D73  # of PostgreSQL, while one process mails: "alarms"
SAME_WITHIN = timedelta(hours=1)
TOLD_WITHIN = timedelta(days=1)  # what is closed for so long isn't mailed any more
MOST_IN_A_MAIL = 50


class AlarmKind(StrEnum):
    """Every kind of alarm; docs/operations.md says what to do about each."""

    SEQUENCE_GAP = "sequence_gap"
    SEQUENCE_BEHIND = "sequence_behind"
    COUNTERS_DIFFER = "counters_differ"
    QUARANTINE = "quarantine"
    BACKLOG = "backlog"
    UNRESOLVED_OLD = "unresolved_old"
    UNSETTLED_OLD = "unsettled_old"
    SPOOL = "spool"
    STORE_FENCED = "store_fenced"
    STORE_DOWN = "store_down"
    STORE_FULL = "store_full"
    BOUND_EXCEEDED = "bound_exceeded"


class Advice(NamedTuple):
    """What to do about a kind of alarm; `page` names the admin's page for it, and `query` what to show there."""

    text: str
    page: str = ""
    query: str = ""


ADVICE = {
    AlarmKind.SEQUENCE_GAP: Advice(
        "Look for deleted keys or a store that was tampered with. manage.py usage reconcile --provider finds the"
        " calls in the provider's own account. Lost events don't come back: then mark this as dealt with.",
        "usage_usagerecord_changelist",
    ),
    AlarmKind.SEQUENCE_BEHIND: Advice("Restart the store, so that it is compared and rebuilt."),
    AlarmKind.COUNTERS_DIFFER: Advice(
        "manage.py usage reconcile --counters shows the figures; with --repair the store takes the ledger's.",
        "tokens_tenant_changelist",
    ),
    AlarmKind.QUARANTINE: Advice(
        "See why each couldn't be booked; then try it again or set it aside.",
        "usage_quarantinedevent_changelist",
        "open=1",
    ),
    AlarmKind.BACKLOG: Advice("See whether the worker runs and PostgreSQL is fast enough.", "index"),
    AlarmKind.UNRESOLVED_OLD: Advice(
        "Look them up in the provider's account and resolve them.", "usage_unresolvedcall_changelist"
    ),
    AlarmKind.UNSETTLED_OLD: Advice("Read the worker's log: it says why the store doesn't take them."),
    AlarmKind.SPOOL: Advice("Read the web processes' log. Never delete a file of the spool: each is usage."),
    AlarmKind.STORE_FENCED: Advice(
        "Wait: it is rebuilt once the longest lease is over. Events that waited in it are lost; compare with the"
        " provider's account by manage.py usage reconcile --provider."
    ),
    AlarmKind.STORE_DOWN: Advice("Start the store again; read its log."),
    AlarmKind.STORE_FULL: Advice(
        "Give the store more memory, see that usage events don't wait, and resolve unresolved calls at what they cost:"
        " it keeps each for 35 days.",
        "usage_unresolvedcall_changelist",
    ),
    AlarmKind.BOUND_EXCEEDED: Advice("Raise the bound of that size.", "gateway_model_changelist"),
}


def raise_alarm(kind: AlarmKind, subject: str, message: str) -> None:
    """Open an alarm, or say of an open one that it is still so. Logged when it opens; mailed by `send_mails`.

    Raises django.db.OperationalError when it can't be kept, after logging it.
    """
    subject, at = subject[:200], now()
    same = Alarm.objects.filter(kind=kind, subject=subject)
    try:
        if same.filter(closed_at=None).update(seen_at=at, message=message):
            return
        with transaction.atomic():
            last = same.filter(closed_at__gte=at - SAME_WITHIN).order_by("-id").first() or Alarm()
            last.kind, last.subject, last.message, last.seen_at, last.closed_at = kind, subject, message, at, None
            last.save()
    except IntegrityError:
        return  # another process has opened it just now
    except OperationalError:
        logger.error("An alarm that can't be kept: %s", message, extra={"kind": kind.value, "subject": subject})
        raise
    logger.error("Alarm: %s", message, extra={"kind": kind.value, "subject": subject})


def clear_alarms(kind: AlarmKind, still_open: Collection[str] = ()) -> None:
    """Close the alarms of a kind whose subject isn't in `still_open`."""
    for alarm in Alarm.objects.filter(kind=kind, closed_at=None).exclude(subject__in=still_open):
        if Alarm.objects.filter(pk=alarm.pk, closed_at=None).update(closed_at=now()):
            logger.info("No alarm any more: %s", alarm.message, extra={"kind": kind.value, "subject": alarm.subject})


def deal_with(open_ones: Iterable[Alarm], reason: str) -> int:
    """Close alarms that a person has looked into, and note who did and why; returns how many were still open."""
    closed = 0
    with transaction.atomic():
        for alarm in open_ones:
            if Alarm.objects.filter(pk=alarm.pk, closed_at=None).update(closed_at=now()):
                audit.note(Verb.DEALT_WITH, alarm, reason=reason)
                closed += 1
    return closed


def open_subjects(kind: AlarmKind) -> dict[str, str]:
    """What the open alarms of a kind are about, each with its message."""
    return dict(Alarm.objects.filter(kind=kind, closed_at=None).values_list("subject", "message"))


def send_mails() -> int:
    """Tell `ALARM_EMAILS` of the alarms that nobody has been told of, in one mail; returns their number.

    A mail server that fails is logged and asked again at the next call; so an alarm may be mailed twice, never not.
    """
    if not settings.ALARM_EMAILS:
        return 0
    with _alone() as alone:
        recent = Q(closed_at=None) | Q(closed_at__gte=now() - TOLD_WITHIN)
        untold = list(Alarm.objects.filter(recent, mailed_at=None).order_by("id")) if alone else []
        if not untold:
            return 0
        try:
            send_mail(_subject(untold), _text(untold), settings.DEFAULT_FROM_EMAIL, settings.ALARM_EMAILS)
        except (OSError, smtplib.SMTPException) as exc:  # their text may repeat what the server said
            logger.warning("Alarms can't be mailed (%s); tried again in a minute", type(exc).__name__)
            return 0
        Alarm.objects.filter(pk__in=[alarm.pk for alarm in untold]).update(mailed_at=now())
        return len(untold)


@contextmanager
def _alone() -> Iterator[bool]:
    """Whether no other process is mailing; none begins until the end of this. No transaction is held meanwhile."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
        (alone,) = cursor.fetchone()
        try:
            yield bool(alone)
        finally:
            if alone:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def _subject(alarms: list[Alarm]) -> str:
    kinds = ", ".join(dict.fromkeys(alarm.kind for alarm in alarms))
    return f"[Gem Heaven Gateway] {len(alarms)} alarm{'s' if len(alarms) > 1 else ''}: {kinds}"


def _text(alarms: list[Alarm]) -> str:
    lines = []
    for alarm in alarms[:MOST_IN_A_MAIL]:
        ended = f", over at {alarm.closed_at:%H:%M} UTC" if alarm.closed_at else ""
        what = f"\n  What to do: {ADVICE[AlarmKind(alarm.kind)].text}"
        lines += [f"{alarm}\n  {alarm.message}{what}\n  since {alarm.opened_at:%Y-%m-%d %H:%M} UTC{ended}", ""]
    if len(alarms) > MOST_IN_A_MAIL:
        lines += [f"And {len(alarms) - MOST_IN_A_MAIL} more.", ""]
    return "\n".join([*lines, f"All of them: {settings.PUBLIC_URL}/admin/usage/alarm/"])

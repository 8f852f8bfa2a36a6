"""Saved reports by e-mail: each is sent once for every time that it is due, and tried again for about a day.

What is due is noted in one short transaction, which moves the report's next time on; then each sending is claimed,
made and mailed without one, and what came of it is noted. A worker that dies in between leaves its sending to be taken
again, with the same Message-ID. Times that were missed while no worker ran become one sending, of the last of them.
"""

import datetime as dt
import logging
import smtplib
from collections.abc import Iterator
from dataclasses import replace
from tempfile import SpooledTemporaryFile
from urllib.parse import urlsplit

from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import F
from django.urls import reverse
from django.utils.timezone import now

from usage.currencies import rounded
from usage.exporting.formats import FORMATS, Format, refusal
from usage.exporting.snapshot import Snapshot
from usage.exporting.spreadsheet import TooManyRows
from usage.questions import FREE, ONE_DAY, Question, Wrong, read
from usage.reportrows import ERROR_CHARACTERS, ReportSending, SavedReport, SendingStatus
from usage.reports import Query, Row
from usage.reports import report as report_of
from usage.schedules import next_due

# Seconds after each failed attempt: seven attempts within 19 hours.
PAUSES = (60, 300, 1_800, 7_200, 18_000, 43_200)
CLAIMED_FOR = dt.timedelta(minutes=20)  # longer than the task's time limit
MOST_BYTES = 10 * 1024 * 1024  # that mail servers commonly take
KEPT = dt.timedelta(days=400)  # of the history
ON_DISK = 1024 * 1024

logger = logging.getLogger(__name__)


class Final(Exception):
    """It would fail again, whatever the time; the message is for the report's owner."""


def note_due(at: dt.datetime | None = None) -> int:
    """Note a sending for each saved report that is due, and when it is due next. Returns how many."""
    at = at or now()
    with transaction.atomic():
        due = SavedReport.objects.filter(next_due_at__lte=at).select_related("tenant")
        reports = list(due.select_for_update(skip_locked=True, of=("self",)).order_by("next_due_at")[:100])
        sendings = [
            ReportSending(report=report, due_at=_latest(report, at), recipients=report.recipients) for report in reports
        ]
        ReportSending.objects.bulk_create(sendings, ignore_conflicts=True)
        for report in reports:
            SavedReport.objects.filter(pk=report.pk).update(next_due_at=next_due(report, at))
    return len(reports)


def _latest(report: SavedReport, at: dt.datetime) -> dt.datetime:
    """The last time that it was due by now: whoever gets it wants the newest figures, not those of days ago."""
    due = report.next_due_at or at
    while (later := next_due(report, due)) is not None and later <= at:
        due = later
    return due


def send_one(at: dt.datetime | None = None) -> bool:
    """Make and mail the sending that has waited the longest; False when none is due."""
    sending = _claim(at or now())
    if sending is None:
        return False
    error, final = "", False
    try:
        _send(sending)
    except Final as exc:
        error, final = str(exc), True
    except SoftTimeLimitExceeded:
        error, final = "It took too long. Ask for fewer days or groups, or for one tenant.", True
    except (OSError, smtplib.SMTPException) as exc:  # their text may repeat what the server said
        error = f"The mail server did not take it ({type(exc).__name__})."
    except Exception as exc:
        logger.exception("a saved report could not be made")
        error = f"It could not be made ({type(exc).__name__})."
    _note(sending, error[:ERROR_CHARACTERS], final)
    return True


def delete_old(at: dt.datetime | None = None) -> None:
    """Forget what was sent long ago."""
    ReportSending.objects.filter(due_at__lt=(at or now()) - KEPT).delete()


def _claim(at: dt.datetime) -> ReportSending | None:
    due = ReportSending.objects.filter(status=SendingStatus.WAITING, next_attempt_at__lte=at)
    with transaction.atomic():
        sending = due.select_for_update(skip_locked=True, of=("self",)).order_by("next_attempt_at").first()
        if sending is None:
            return None
        changes = {"attempts": F("attempts") + 1, "next_attempt_at": at + CLAIMED_FOR}
        ReportSending.objects.filter(pk=sending.pk).update(**changes)
    return ReportSending.objects.select_related("report__owner", "report__tenant").get(pk=sending.pk)


def asked(report: SavedReport, at: dt.datetime) -> tuple[Question, Query]:
    """What a saved report asks at this moment, by what its owner may see now. Raises Final when they may not."""
    if not report.owner.is_active:
        raise Final("Its owner can no longer sign in.")
    slug = report.tenant.slug if report.tenant is not None else ""
    try:
        question = replace(read(report.question), tenant=slug)
        query = question.query(report.owner, at)
    except Wrong as exc:
        raise Final(f"Its owner may no longer see this: {exc}") from exc
    if (query.tenant and query.tenant.pk) != report.tenant_id:
        raise Final("Its owner may no longer see the usage of all tenants.")
    return question, query


def _send(sending: ReportSending) -> None:
    report, chosen = sending.report, FORMATS[sending.report.format]
    question, query = asked(report, sending.due_at)
    if refused := refusal(chosen, query):
        raise Final(refused)
    if not settings.EMAIL_URL:
        raise OSError("there is no mail server")
    with SpooledTemporaryFile(ON_DISK) as file:
        try:
            with Snapshot(query) as snapshot:
                totals = list(report_of(query.ungrouped()))
                chosen.write(snapshot, file)  # type: ignore[arg-type]
        except TooManyRows as exc:
            raise Final(str(exc)) from exc
        size = file.tell()
        file.seek(0)
        message = EmailMessage(
            f"{settings.ISSUER}: {' '.join(report.name.split())}",  # a subject has one line
            "\n\n".join(_paragraphs(report, question, query, totals, size)) + "\n",
            settings.DEFAULT_FROM_EMAIL,
            sending.recipients,
            headers={"Message-ID": f"<{sending.message_id}@{urlsplit(settings.PUBLIC_URL).hostname}>"},
        )
        if size <= MOST_BYTES:
            message.attach(file_name(query, chosen), file.read(), chosen.content_type.partition(";")[0])
        message.send()


def file_name(query: Query, chosen: Format) -> str:
    """What a file with this usage is called; both days are in it."""
    last = query.end - dt.timedelta(days=1)
    return f"usage-{query.tenant.slug if query.tenant else 'all'}-{query.start}-to-{last}{chosen.suffix}"


def _paragraphs(report: SavedReport, question: Question, query: Query, totals: list[Row], size: int) -> Iterator[str]:
    """What the mail says; its link leads to the same days, whenever it is opened."""
    last = query.end - ONE_DAY
    whose = query.tenant.name or query.tenant.slug if query.tenant else "all tenants"
    narrower = [("user", question.user), ("token", question.token), ("model", question.model)]
    asked = [whose, *(f"{name} {value}" for name, value in narrower if value), f"by {', '.join(question.by)}"]
    yield f"{report.name}\n{query.start:%-d %B %Y} to {last:%-d %B %Y}, {', '.join(asked)}"
    yield "\n".join(_sums(totals))
    if size <= MOST_BYTES:
        yield f"Attached: {file_name(query, FORMATS[report.format])}"
    else:
        yield "The report is too large for a mail: open it in the gateway, and export it there."
    address = f"{reverse('reports')}?{replace(question, period=FREE, first=query.start, last=last).address}"
    yield f"The same days in the gateway, with what was booked since:\n{settings.PUBLIC_URL}{address}"
    yield f"{report.owner} has this sent to you. To end it, they change or delete the saved report."


def _sums(totals: list[Row]) -> Iterator[str]:
    """What it comes to, and what is in no amount."""
    for row in totals:
        if row["currency"] and row["cost"] is not None:
            yield f"Cost:   {rounded(row['cost'], row['currency'])}"
    for label, name in (("Calls: ", "requests"), ("Images:", "images"), ("Tokens:", "tokens")):
        yield f"{label} {sum(row[name] for row in totals):,}"
    if unpriced := sum(row["unpriced_requests"] for row in totals):
        yield f"Without a known price, so in no amount: {_calls(unpriced)}"
    # Below 0 are those of earlier days whose outcome came to be known.
    if (unresolved := sum(row["unresolved_requests"] for row in totals)) > 0:
        yield f"Of unknown outcome, so in no figure above: {_calls(unresolved)}"


def _calls(count: int) -> str:
    return f"{count:,} call{'' if count == 1 else 's'}"


def _note(sending: ReportSending, error: str, final: bool) -> None:
    """Keep what came of an attempt, unless somebody has claimed it again meanwhile."""
    at = now()
    changes: dict[str, object] = {"error": error}
    if not error:
        changes |= {"status": SendingStatus.SENT, "finished_at": at}
    elif final or sending.attempts > len(PAUSES):
        changes |= {"status": SendingStatus.FAILED, "finished_at": at}
        logger.warning("A saved report was not sent", extra={"report": sending.report_id, "error": error})
    else:
        changes |= {"next_attempt_at": at + dt.timedelta(seconds=PAUSES[sending.attempts - 1])}
    ReportSending.objects.filter(pk=sending.pk, attempts=sending.attempts).update(**changes)

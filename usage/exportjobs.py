"""Exports that are too large for a request: made by a worker, one at a time, into files that are kept for a week.

A worker holds a lock of PostgreSQL while it makes one, which ends with the worker. So a job that is said to be running
while nobody holds the lock was left by a worker that died: it is tried once more, and then given up with words.
"""

import contextlib
import datetime as dt
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings
from django.core.files.utils import validate_file_name
from django.db import connection
from django.utils.timezone import now

from tokens.models import User
from usage.exporting.formats import FORMATS, export, refusal
from usage.exporting.spreadsheet import TooManyRows
from usage.questions import Question, Wrong, read
from usage.reportrows import ERROR_CHARACTERS, ExportJob, JobStatus
from usage.reports import Query, report

AT_ONCE = 50_000  # rows that are exported while somebody waits
MOST_OPEN = 5  # jobs of one person that wait or run
ATTEMPTS = 2
FILES_KEPT = dt.timedelta(days=7)
JOBS_KEPT = dt.timedelta(days=30)
TOLD_EVERY = 0.5  # seconds, of the progress
LOCK = 0x6578706F7274  # of PostgreSQL, while one process makes exports: "export"
OUR_NAME = re.compile(r"[0-9a-f]{48}(\.[a-z]+)+")  # of a file; others that may lie beside them aren't ours to delete
# The export itself is one read-only transaction, so its progress goes another way.
TELL = "UPDATE usage_exportjob SET read = %s WHERE id = %s RETURNING status"

logger = logging.getLogger(__name__)


class Cancelled(Exception):
    """Somebody has cancelled the job meanwhile."""


def rows_to_read(query: Query, format_name: str) -> int:
    """How many rows an export of this reads, about: from the rollups, never counted in the ledger."""
    calls = 0
    for total in report(query.ungrouped()):
        calls += total["requests"] + total["unresolved_requests"] + total["voided_requests"]
    rollups = query.usage()[: max(calls, 1)].count()
    reads = {
        "csv": rollups,
        "json": rollups,
        "focus": calls,
        "parquet": calls,
        "xlsx": rollups + calls,
        "pdf": 2 * calls,
    }
    return max(0, reads[format_name])


def create(owner: User, question: Question, query: Query, format_name: str, expected: int) -> ExportJob:
    """Have an export made. Raises Wrong while as many of this person's are open."""
    open_ones = ExportJob.objects.filter(owner=owner, status__in=(JobStatus.WAITING, JobStatus.RUNNING))
    if open_ones.count() >= MOST_OPEN:
        raise Wrong("", f"{MOST_OPEN} of your exports are being made: wait until one is ready, or cancel one.")
    # Its days are those of the moment when it was asked for, even when it is made after midnight.
    first, last = query.start, query.end - dt.timedelta(days=1)
    exact = replace(question.of(query.tenant), period="days", first=first, last=last)
    return ExportJob.objects.create(
        owner=owner, tenant=query.tenant, question=exact.address, format=format_name, expected=expected
    )


def query_of(job: ExportJob, user: User) -> Query:
    """What a job is about, for this person now. Raises Wrong when they may not see it (any more)."""
    question = read(job.question)
    query = question.query(user)
    if (query.tenant and query.tenant.pk) != job.tenant_id or query.margins != question.margins:
        raise Wrong("tenant", "You may not see all that is in it.")
    return query


def run_one() -> bool:
    """Make the export that has waited the longest; False when there is none, or another worker is making one."""
    with alone() as mine:
        if not mine:
            return False
        _take_up_abandoned()
        job = ExportJob.objects.filter(status=JobStatus.WAITING).order_by("created_at").first()
        if job is None or not _move(job, JobStatus.WAITING, JobStatus.RUNNING, attempts=job.attempts + 1, read=0):
            return False
        _make(job)
        return True


def cancel(job: ExportJob) -> bool:
    """Cancel a job that waits or runs; False when it is over."""
    open_one = ExportJob.objects.filter(pk=job.pk, status__in=(JobStatus.WAITING, JobStatus.RUNNING))
    return bool(open_one.update(status=JobStatus.CANCELLED, finished_at=now()))


def delete_old(at: dt.datetime | None = None) -> int:
    """Delete files after a week, and what is known of the jobs after a month. Returns the number of files."""
    at = at or now()
    deleted = 0
    for job in ExportJob.objects.filter(created_at__lt=at - FILES_KEPT).exclude(file=""):
        path_of(job).unlink(missing_ok=True)
        deleted += ExportJob.objects.filter(pk=job.pk).update(file="")
    ExportJob.objects.filter(created_at__lt=at - JOBS_KEPT).delete()
    known = set(ExportJob.objects.exclude(file="").values_list("file", flat=True))
    root = settings.EXPORT_ROOT
    for path in root.iterdir() if root.is_dir() else ():  # what a worker that was killed has left
        is_left = OUR_NAME.fullmatch(path.name) is not None and path.name not in known
        if is_left and path.stat().st_mtime < (at - dt.timedelta(days=1)).timestamp():
            path.unlink(missing_ok=True)
    return deleted


def path_of(job: ExportJob) -> Path:
    """Where its file is."""
    validate_file_name(job.file)
    return Path(settings.EXPORT_ROOT) / job.file


@contextmanager
def alone() -> Iterator[bool]:
    """Whether no other process makes exports; none begins until the end of this."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
        (mine,) = cursor.fetchone()
    try:
        yield bool(mine)
    finally:
        if mine:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def _take_up_abandoned() -> None:
    """Call it while nobody else can be at work: what is said to be running then was left."""
    for job in ExportJob.objects.filter(status=JobStatus.RUNNING):
        if job.attempts < ATTEMPTS:
            _move(job, JobStatus.RUNNING, JobStatus.WAITING)
        else:
            _fail(job, "The worker that made it was stopped, twice. Ask for fewer days or groups, or try again later.")


def _make(job: ExportJob) -> None:
    """Make the file of a job that is running, and note what came of it."""
    name = f"{secrets.token_hex(24)}{FORMATS[job.format].suffix}"
    path = Path(settings.EXPORT_ROOT) / name
    try:
        query = query_of(job, job.owner)
        if refused := refusal(FORMATS[job.format], query):
            raise Wrong("", refused)
        with _new(path) as out, _told(job) as tell:
            export(query, job.format, out, seen=tell)
            size = out.tell()
        if not _move(job, JobStatus.RUNNING, JobStatus.DONE, file=name, size=size, finished_at=now()):
            path.unlink(missing_ok=True)
    except Cancelled:
        path.unlink(missing_ok=True)
    except SoftTimeLimitExceeded:
        path.unlink(missing_ok=True)
        _fail(job, "It took too long. Ask for fewer days or groups, or for one tenant.")
    except (Wrong, TooManyRows) as exc:
        path.unlink(missing_ok=True)
        _fail(job, str(exc))
    except Exception as exc:
        path.unlink(missing_ok=True)
        logger.exception("an export failed")
        _fail(job, f"It could not be made ({type(exc).__name__}). The gateway's operators find the reason in its log.")


def _new(path: Path) -> BinaryIO:
    """A file that nobody else can read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


@contextmanager
def _told(job: ExportJob) -> Iterator[Any]:
    """What is called after each row: keeps the progress, and raises Cancelled when somebody wants it no more."""
    read, told = 0, time.monotonic()
    with contextlib.closing(connection.copy()) as other, other.cursor() as cursor:

        def tell(rows: int = 1) -> None:
            nonlocal read, told
            read += rows
            if time.monotonic() - told >= TOLD_EVERY:
                told = time.monotonic()
                cursor.execute(TELL, [read, job.pk])
                if cursor.fetchone() != (JobStatus.RUNNING.value,):
                    raise Cancelled

        yield tell


def _move(job: ExportJob, before: JobStatus, after: JobStatus, **changes: Any) -> bool:
    return bool(ExportJob.objects.filter(pk=job.pk, status=before).update(status=after, **changes))


def _fail(job: ExportJob, error: str) -> None:
    _move(job, JobStatus.RUNNING, JobStatus.FAILED, error=error[:ERROR_CHARACTERS], finished_at=now())
    logger.warning("An export failed", extra={"job": str(job.pk), "error": error})

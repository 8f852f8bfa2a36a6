"""The files of a statement: made once from its frozen rows, kept in the database, and given out as they are.

A download is the same bytes for good, whatever names change or programs are upgraded meanwhile; and they are in every
backup.
"""

import datetime as dt
import hashlib
import logging
from collections.abc import Generator
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import BinaryIO

from celery.exceptions import SoftTimeLimitExceeded
from django.db import DatabaseError, connection, transaction
from django.utils.timezone import now

from usage import sealing
from usage.exporting.formats import FORMATS
from usage.exporting.snapshot import Snapshot
from usage.exporting.spreadsheet import TooManyRows
from usage.models import Statement, StatementFile, StatementPiece
from usage.reports import Query

logger = logging.getLogger(__name__)

LATELY = dt.timedelta(days=1)
PIECE = 1024 * 1024
GROUPS = ("day", "user", "token", "model")  # of the files that are a table of the report
LOCK = 0x66696C65  # of PostgreSQL, with the statement's id: "file"


def keep(statement: Statement) -> None:
    """Make the files that the statement doesn't have yet. Again, or from several processes, it changes nothing.

    A format that can't hold so many rows, or can't be written now, is left out; whoever asks for it has it tried again.
    So are those that a worker's task has no time left for.
    Raises django.db.OperationalError.
    """
    missing = _missing(statement)
    if not missing:
        return
    with ExitStack() as stack:
        made: dict[str, BinaryIO] = {name: stack.enter_context(TemporaryFile()) for name in missing}
        issued = statement.closed_at.astimezone(dt.UTC).date()
        with Snapshot(
            query_of(statement), statement.number, frozen_hash=statement.content_hash, issued=issued
        ) as snapshot:
            hurried = False
            for name, out in list(made.items()):
                if hurried:
                    del made[name]
                    continue
                try:
                    FORMATS[name].write(snapshot, out)
                except TooManyRows:
                    del made[name]
                except SoftTimeLimitExceeded:  # the task is killed soon: keep what there is, or it was for nothing
                    hurried = True
                    del made[name]
                except DatabaseError:
                    raise
                except Exception:  # the other files are none the worse for it
                    told = {"statement": statement.number, "format": name}
                    logger.exception("A file of a statement couldn't be made", extra=told)
                    del made[name]
        with transaction.atomic(durable=True):
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK, statement.pk % 2**31])
            kept = [_store(statement, name, made[name]) for name in _missing(statement) if name in made]
            sealing.note_files(statement, kept)


def keep_one() -> bool:
    """Make the files of the newest statement of the last day that has none; False when there is no such statement."""
    lately = Statement.objects.filter(closed_at__gt=now() - LATELY, files=None)
    statement = lately.select_related("tenant").order_by("-pk").first()
    if statement is not None:
        keep(statement)
    return statement is not None


def query_of(statement: Statement) -> Query:
    """The usage that a statement is about."""
    return Query(statement.tenant, statement.month, statement.end, GROUPS)


def content(file: StatementFile) -> Generator[bytes]:
    """A file, piece by piece."""
    pieces = StatementPiece.objects.filter(file=file).order_by("place").values_list("content", flat=True)
    yield from map(bytes, pieces.iterator(chunk_size=2))


def _missing(statement: Statement) -> list[str]:
    have = set(StatementFile.objects.filter(statement=statement).values_list("format", flat=True))
    return [name for name in FORMATS if name not in have]


def _store(statement: Statement, name: str, out: BinaryIO) -> StatementFile:
    out.seek(0)
    digest = hashlib.file_digest(out, "sha256").hexdigest()  # type: ignore[arg-type]
    file = StatementFile.objects.create(statement=statement, format=name, size=out.tell(), digest=digest)
    out.seek(0)
    for place, piece in enumerate(iter(lambda: out.read(PIECE), b"")):
        StatementPiece.objects.create(file=file, place=place, content=piece)
    return file

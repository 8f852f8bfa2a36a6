"""What the audit trail knows of closed months, so that nothing of a statement or its files is changed unnoticed.

Closing a month notes a seal of all that its statement says, and making its files notes their digests. Both stand in
the trail, which is append-only, and so do the numbers: a statement that is gone is missed.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Iterator

from tokens import actors, audit
from tokens.models import AuditEntry, Tenant
from usage.models import Statement, StatementFile

CLOSED, FILED = "closed", "made the files of"
SEAL = "seal"
LABEL = Statement._meta.label_lower
SEALED = (
    *("number", "year", "serial", "tenant_id", "month", "timezone", "policy", "decided", "rows", "form"),
    *("content_hash", "totals", "prices", "adjustments", "closed_by", "closed_at"),
)


def seal_of(statement: Statement) -> str:
    """SHA-256 of what it says, its rows by their hash, in hexadecimal digits."""
    said = {name: getattr(statement, name) for name in SEALED}
    said["closed_at"] = statement.closed_at.astimezone(dt.UTC).isoformat()
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def note_closed(statement: Statement) -> None:
    """Note that a month was closed, in the transaction that does so."""
    changes = [
        ("month", "", f"{statement.month:%Y-%m}"),
        ("content", "", statement.content_hash),
        ("rows", "", str(statement.rows)),
        (SEAL, "", seal_of(statement)),
    ]
    audit.note(CLOSED, statement, changes=changes)


def note_files(statement: Statement, files: Iterable[StatementFile]) -> None:
    """Note that files were made, in the transaction that keeps them; whoever asked for one first hasn't made it."""
    changes = [(file.format, "", file.digest) for file in files]
    if changes:
        audit.note(FILED, statement, changes=changes, actor=actors.SYSTEM)


def broken(statement: Statement) -> Iterator[str]:
    """What of a statement or its files isn't as the trail knows it, in words."""
    told = AuditEntry.objects.filter(object_type=LABEL, object_id=str(statement.pk), verb__in=[CLOSED, FILED])
    known: dict[str, str] = {}
    for changes in told.order_by("pk").values_list("changes", flat=True):
        for name, _, value in changes:
            known.setdefault(name, value)
    if SEAL not in known:
        yield "the audit trail doesn't know that it was closed"
    elif known[SEAL] != seal_of(statement):
        yield "what the statement says was changed: the audit trail knows another seal of it"
    for file in statement.files.order_by("format"):
        if known.get(file.format) != file.digest:
            yield f"its {file.format} file was changed: the audit trail knows another one"


def gone(tenant: Tenant | None = None) -> Iterator[str]:
    """The numbers of statements that the trail tells of and that aren't there any more."""
    statements, told = Statement.objects.all(), AuditEntry.objects.filter(object_type=LABEL, verb=CLOSED)
    if tenant is not None:
        statements, told = statements.filter(tenant=tenant), told.filter(tenant=tenant)
    names = dict(told.order_by("pk").values_list("object_id", "object_name"))  # first: a month may be closed meanwhile
    there = {str(pk) for pk in statements.values_list("pk", flat=True)}
    yield from (name for number, name in names.items() if number not in there)

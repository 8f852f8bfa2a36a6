"""Whether the closed months still say what they said when they were closed."""

import hashlib
from collections.abc import Iterable, Iterator

from django.db import transaction

from usage import canonical, keeping, sealing
from usage.closing import totals_of
from usage.models import Statement
from usage.partitions import month_after


def verify(statements: Iterable[Statement]) -> Iterator[tuple[Statement, list[str]]]:
    """Each statement with what is wrong with it, in words; the numbers and months before it, too."""
    for statement in statements:
        wrong = [*_content(statement), *_files(statement), *sealing.broken(statement), *_neighbours(statement)]
        yield statement, wrong


def _content(statement: Statement) -> Iterator[str]:
    """The ledger's rows and the rollups of the month, at one moment."""
    tenant, start, end = statement.tenant, statement.month, statement.end
    with transaction.atomic():
        if statement.form not in canonical.FORMS:
            yield f"its content is of form {statement.form}, which this program doesn't know"
            return
        digest, rows = canonical.hashed(tenant.pk, start, end, statement.form)
        if digest != statement.content_hash:
            yield f"the ledger's rows of the month were changed: {rows} rows hash to {digest}"
        if totals_of(tenant, start, end) != statement.totals:
            yield "the rollups of the month were changed: they don't sum to the statement's totals"


def _files(statement: Statement) -> Iterator[str]:
    for file in statement.files.order_by("format"):
        digest, size = hashlib.sha256(), 0
        for piece in keeping.content(file):
            digest.update(piece)
            size += len(piece)
        if (digest.hexdigest(), size) != (file.digest, file.size):
            yield f"its {file.format} file was changed"


def _neighbours(statement: Statement) -> Iterator[str]:
    earlier = Statement.objects.filter(pk__lt=statement.pk)
    if statement.serial > 1 and not earlier.filter(year=statement.year, serial=statement.serial - 1).exists():
        yield f"the number before it, {statement.year}-{statement.serial - 1:06}, is missing"
    before = earlier.filter(tenant=statement.tenant).order_by("-month").first()
    if before is not None and month_after(before.month) != statement.month:
        yield f"the tenant's statement before it is of {before.month:%Y-%m}: a month is missing"

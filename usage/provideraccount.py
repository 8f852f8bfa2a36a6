"""A provider's own account of what it drew against the ledger, call by call.

The account is a file: JSON lines ``{"request_id", "n", "usage": {"total_tokens"}}``, as the sandbox writes them, or CSV
with the columns request_id, total_tokens and, if there is one, n. It goes through COPY into a temporary table and is
joined there, so its size doesn't matter.
"""

import csv
import datetime as dt
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from django.db import connection, transaction

from usage.models import Kind, Provenance
from usage.partitions import least_request_id


class Finding(StrEnum):
    """What comparing a call found, in the order in which they are told."""

    EQUAL = "equal"
    NOT_REPORTED = "tokens not reported, charged at the bound"  # so the account can't say whether it is right
    DIFFERS = "differs"  # charged, but not for what was drawn
    NOT_IN_LEDGER = "not in ledger"
    NOT_DRAWN = "not drawn"  # charged exactly, and the provider doesn't know it
    DRAWN_TWICE = "drawn twice"
    DRAWN_VOID = "drawn, void in ledger"
    DRAWN_UNRESOLVED = "drawn, unresolved"
    NOT_DRAWN_UNRESOLVED = "not drawn, unresolved"
    NO_REQUEST_ID = "no request id"


# What can be done today; {again} is the command that compared the accounts. An account knows only the request id, so a
# call that the ledger has lost can't be booked from it, and what stands there as exact or void is final.
ADVICE = {
    Finding.NOT_REPORTED: "the provider gave no figure, nor does the file: compare their sum with the invoice; final",
    Finding.DIFFERS: "final, no command changes it: keep the list ({again} --format csv) for the invoices",
    Finding.NOT_IN_LEDGER: (
        "spent and not booked. If events still wait, compare again later; else it is lost: the account doesn't say"
        " whose it was, so no command can book it. Keep the list ({again} --format csv) for the provider's invoice"
    ),
    Finding.NOT_DRAWN: "charged and never spent, or not in the file: make sure that the file is complete",
    Finding.DRAWN_TWICE: (
        "the provider was called twice, or the file holds a line twice; what is unresolved among them:"
        " manage.py usage resolve REQUEST_ID --tokens N --reason TEXT"
    ),
    Finding.DRAWN_VOID: "spent and not charged; final: keep the list ({again} --format csv) for the provider's invoice",
    Finding.DRAWN_UNRESOLVED: (
        "charge what was drawn: {again} --format resolve | manage.py usage resolve --list - --reason TEXT"
    ),
    Finding.NOT_DRAWN_UNRESOLVED: (
        "charge nothing, once the file is known to be complete:"
        " manage.py usage resolve REQUEST_ID... --nothing --reason TEXT (which: {again} --format csv)"
    ),
    Finding.NO_REQUEST_ID: "not called by this gateway, or the provider doesn't keep its request ids",
}


class Call(NamedTuple):
    """A call in both accounts; None where one of them has no figure or doesn't know it."""

    request_id: uuid.UUID | None
    finding: Finding
    tenant: str | None
    drawn_tokens: int | None
    drawn_images: int | None
    charged_tokens: int | None
    charged_images: int | None
    provenance: str | None

    def amounts(self) -> tuple[int, int]:
        """Tokens drawn and tokens charged, for sums."""
        return self.drawn_tokens or 0, self.charged_tokens or 0


NO_LINE = "not a line of an account: a request id that is a UUID, and whole numbers of tokens and images."


class BadAccountError(ValueError):
    """A file that can't be read, or not as an account; says which line."""


@dataclass(frozen=True)
class Days:
    """The UTC days to compare, from `start` up to but not including `end`; None: as far as the file goes."""

    start: dt.date | None = None
    end: dt.date | None = None


@dataclass
class Totals:
    """What was found, by finding: calls, tokens drawn, tokens charged."""

    rows: dict[Finding, tuple[int, int, int]] = field(default_factory=dict)

    def add(self, call: Call) -> None:
        """Count a call."""
        count, drawn, charged = self.rows.get(call.finding, (0, 0, 0))
        more_drawn, more_charged = call.amounts()
        self.rows[call.finding] = count + 1, drawn + more_drawn, charged + more_charged

    @property
    def different(self) -> int:
        """The calls on which the accounts don't agree."""
        return sum(count for finding, (count, _, _) in self.rows.items() if finding is not Finding.EQUAL)


CREATE = "CREATE TEMPORARY TABLE drawn (request_id uuid, tokens bigint, images bigint) ON COMMIT DROP"
COPY = "COPY drawn FROM STDIN"
LEAVE_OUT = "DELETE FROM drawn WHERE request_id < %s OR request_id >= %s"
SPAN = """
SELECT (SELECT request_id FROM drawn WHERE request_id IS NOT NULL ORDER BY request_id LIMIT 1),
       (SELECT request_id FROM drawn WHERE request_id IS NOT NULL ORDER BY request_id DESC LIMIT 1)
"""
# Calls of another provider aren't in this one's file: compared are those of the providers that drew what is in it.
PROVIDERS = """
SELECT array_agg(DISTINCT u.provider) FROM drawn d JOIN usage_record u USING (request_id)
WHERE u.request_id >= %s AND u.request_id <= %s
"""
COMPARE = """
SELECT request_id, d.lines, d.tokens, d.images, l.outcome, l.charged, l.images, l.provenance, t.slug
FROM (
    SELECT request_id, count(*) AS lines, sum(tokens)::bigint AS tokens, sum(images)::bigint AS images
    FROM drawn WHERE request_id IS NOT NULL GROUP BY request_id
) d FULL JOIN (
    SELECT request_id, min(tenant_id) AS tenant_id, (array_agg(outcome ORDER BY number DESC))[1] AS outcome,
           (array_agg(provenance ORDER BY number DESC))[1] AS provenance, sum(charged_tokens)::bigint AS charged,
           sum(images)::bigint AS images
    FROM usage_record
    WHERE request_id >= %s AND request_id <= %s AND (%s::text[] IS NULL OR provider = ANY(%s))
    GROUP BY request_id
) l USING (request_id) LEFT JOIN tokens_tenant t ON t.id = l.tenant_id
ORDER BY request_id
"""
FIRST, LAST = uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)


def compare(path: Path, days: Days) -> Iterator[Call]:
    """Every call of the file and of the ledger in these days, by request id; without void ones that nobody drew.

    Without days: from the first to the last call of the file. Raises BadAccountError.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(CREATE)
        with cursor.copy(COPY) as copy:
            for line in read(path):
                copy.write_row(line)
        least = least_request_id(days.start) if days.start else FIRST
        end = least_request_id(days.end) if days.end else LAST
        cursor.execute(LEAVE_OUT, [least, end])
        cursor.execute(SPAN)
        first, last = cursor.fetchone()
        cursor.execute("SELECT count(*) FROM drawn WHERE request_id IS NULL")
        (nameless,) = cursor.fetchone()
        for _ in range(nameless):
            yield Call(None, Finding.NO_REQUEST_ID, None, None, None, None, None, None)
        low, high = (least if days.start else first or LAST), (end if days.end else last or FIRST)
        cursor.execute(PROVIDERS, [low, high])
        (providers,) = cursor.fetchone()
        with connection.chunked_cursor() as rows:
            rows.execute(COMPARE, [low, high, providers, providers])
            for row in rows:
                if call := _call(*row):
                    yield call


def _call(
    request_id: uuid.UUID,
    lines: int | None,
    tokens: int | None,
    images: int | None,
    outcome: str | None,
    charged: int | None,
    delivered: int | None,
    provenance: str | None,
    tenant: str | None,
) -> Call | None:
    """One row of COMPARE, judged; None for a void call that nobody drew."""
    if lines is None:
        found = {Kind.EXACT.value: Finding.NOT_DRAWN, Kind.UNRESOLVED.value: Finding.NOT_DRAWN_UNRESOLVED}
        finding = found.get(outcome or "")
        if finding is None:
            return None
    elif lines > 1:
        finding = Finding.DRAWN_TWICE
    elif outcome is None:
        finding = Finding.NOT_IN_LEDGER
    elif outcome == Kind.VOID:
        finding = Finding.DRAWN_VOID
    elif outcome == Kind.UNRESOLVED:
        finding = Finding.DRAWN_UNRESOLVED
    else:
        finding = _judge_exact(tokens in (None, charged) and images in (None, delivered), tokens, provenance)
    return Call(request_id, finding, tenant, tokens, images, charged, delivered, provenance)


def _judge_exact(same: bool, tokens: int | None, provenance: str | None) -> Finding:
    if not same:
        return Finding.DIFFERS
    at_the_bound = provenance in {Provenance.MISSING.value, Provenance.ESTIMATED.value}
    return Finding.NOT_REPORTED if tokens is None and at_the_bound else Finding.EQUAL


def read(path: Path) -> Iterator[tuple[uuid.UUID | None, int | None, int | None]]:
    """The lines of an account: request id, tokens and images; None where it doesn't say. JSON when it begins with {.

    Raises BadAccountError.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.read(1)
            file.seek(0)
            for number, row in _json_rows(file) if first == "{" else _csv_rows(file):
                try:
                    yield _request_id(row["request_id"]), _count(row["total_tokens"]), _count(row.get("n"))
                except (KeyError, ValueError, TypeError, AttributeError) as exc:
                    raise BadAccountError(f"{path}, line {number}: {NO_LINE}") from exc
    except UnicodeDecodeError as exc:
        raise BadAccountError(f"{path} is not UTF-8 text.") from exc
    except OSError as exc:
        raise BadAccountError(f"{path} can't be read: {exc.strerror}.") from exc


def _json_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                entry = json.loads(line)
                yield number, {**entry, "total_tokens": (entry.get("usage") or {}).get("total_tokens")}
            except (ValueError, AttributeError, TypeError):
                yield number, {}


def _csv_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file)
    if not {"request_id", "total_tokens"} <= set(reader.fieldnames or ()):
        raise BadAccountError("The file is neither JSON lines nor CSV with the columns request_id and total_tokens.")
    for row in reader:
        yield reader.line_num, row


def _request_id(value: str | None) -> uuid.UUID | None:
    return uuid.UUID(value) if value else None


def _count(value: str | int | None) -> int | None:
    if value is None or value == "":
        return None
    number = int(value)
    if isinstance(value, float | bool) or abs(number) >= 2**62:
        raise ValueError("no count")
    return number

"""Closing a tenant's month: what it used is frozen, gets a number, and what is found out later counts afterwards.

Refused while anything of the month isn't in the books (usage.obstacles). Calls of unknown outcome are decided by the
tenant's policy first, in the books of that month. Then one transaction holds the tenant's lock alone
(usage.closedmonths), looks once more, hashes the rows and writes the statement: whoever books meanwhile waits, and then
finds the month closed. Nothing reopens a month; what comes later is a correction in the first open one.
"""

import datetime as dt
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import redis
from django.db import connection, transaction
from django.db.models import Max
from django.utils.timezone import now

from tokens.errors import Refused
from tokens.models import Tenant, UnresolvedPolicy, User
from usage import canonical, closedmonths, drain, gaps, keeping, pending, resolving, sealing
from usage.exporting.bookings import bookings
from usage.exports import plain
from usage.models import DailyUsage, Statement
from usage.months import Standing, State, look
from usage.pending import Asked
from usage.reports import Query, report
from usage.resolving import ESTIMATE, NOTHING
from usage.unresolved import matching

logger = logging.getLogger(__name__)

LOCK = 0x6E756D626572  # of PostgreSQL, while a statement gets its number: "number"
LOCK_NUMBER = "SELECT pg_advisory_xact_lock(%s)"
ECHO_SECONDS = 10.0
ONE_DAY = dt.timedelta(days=1)
REASON = "month close by policy"
RULINGS = {UnresolvedPolicy.NOTHING: NOTHING, UnresolvedPolicy.ESTIMATE: ESTIMATE}

PRICES = """
SELECT price_id, model, size, quality, price_per_image, price_per_million_input, price_per_million_output, currency,
       count(*)
FROM usage_record WHERE tenant_id = %s AND booked_day >= %s AND booked_day < %s AND price_id IS NOT NULL
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY 2, 3, 4, 1, 8, 5, 6, 7
"""
DECIDED = """
SELECT count(*) FROM usage_record WHERE tenant_id = %s AND booked_day = %s AND kind = 'correction'
    AND provenance = 'decided' AND reason LIKE %s
"""
# Of a report's row; a closed month's totals are compared with these, whatever else a report says some day.
TOTALS = (
    *("requests", "images", "tokens", "input_tokens", "output_tokens", "cost", "currency", "unresolved_requests"),
    *("unresolved_tokens", "voided_requests", "unpriced_requests"),
)
ADJUSTMENTS = """
SELECT to_char(b.day, 'YYYY-MM'), s.number, nullif(b.currency, ''), sum(b.requests)::bigint,
       sum(b.booked_images)::bigint, sum(b.booked_tokens)::bigint, sum(b.booked_cost)
FROM ({bookings}) b LEFT JOIN usage_statement s
    ON s.tenant_id = b.tenant_id AND s.month = date_trunc('month', b.day)::date
WHERE b.outcome = 'exact' AND b.day < %s GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
DIFFERENT = f"""
SELECT booked_day FROM (
    SELECT b.booked_day, b.currency, b.requests, b.booked_images AS images, b.booked_tokens AS tokens,
           coalesce(b.booked_cost, 0) AS cost, b.unpriced_requests AS unpriced, b.unresolved_requests AS unresolved,
           b.unresolved_tokens AS held, b.voided_requests AS voided
    FROM ({{bookings}}) b
    UNION ALL
    SELECT booked_day, currency, -requests, -images, -charged_tokens, -cost, -unpriced_requests, -unresolved_requests,
           -unresolved_tokens, -voided_requests
    FROM {DailyUsage._meta.db_table} WHERE tenant_id = %s AND booked_day >= %s AND booked_day < %s
) both_of_them GROUP BY booked_day, currency
HAVING (sum(requests), sum(images), sum(tokens), sum(cost), sum(unpriced), sum(unresolved), sum(held), sum(voided))
    <> (0, 0, 0, 0, 0, 0, 0, 0)
ORDER BY 1 LIMIT 1
"""  # noqa: S608 - constants
ADJUSTED = ("month", "statement", "currency", "requests", "images", "tokens", "cost")
PRICE_FIELDS = (
    *("price", "model", "size", "quality", "per_image", "per_million_input", "per_million_output", "currency", "rows"),
)


def close(standing: Standing, by: User | str, most_rows: int | None = None) -> Statement:
    """Close the month that stands so, and make its files; of more than `most_rows` rows they are left to the worker.

    Raises Refused, saying what is in the way and what to do, and django.db.OperationalError when the database is out of
    reach; the month is closed then, or it isn't.
    """
    month = require_ready(standing)
    standing.tenant.refresh_from_db(fields=["unresolved_policy"])  # it may have changed since it was looked at
    _decide(standing, month, by)
    with transaction.atomic(durable=True):
        statement = _close(month, by)
    logger.info("Closed a month", extra={"tenant": statement.tenant.slug, "statement": statement.number})
    if most_rows is not None and statement.rows > most_rows:
        return statement
    try:
        keeping.keep(statement)
    except Exception:  # the month is closed all the same; whoever downloads a file first has them made
        logger.exception("The files of a statement couldn't be made", extra={"statement": statement.number})
    return statement


def close_ready(tenants: Iterable[Tenant], by: User | str) -> Iterator[Statement | tuple[Tenant, str]]:
    """Close every month of these tenants that is ready, oldest first; why one was not, next to its tenant."""
    for tenant in tenants:
        while (standing := look([tenant])[0]).state is State.READY:
            try:
                yield close(standing, by)
            except Refused as exc:
                yield tenant, str(exc)
                break


def require_ready(standing: Standing) -> Asked:
    """The month. Raises Refused, in words, unless it can be closed."""
    slug, month = standing.tenant.slug, standing.asked
    if month is None:
        raise Refused(f"{slug} has no month to close: nothing was ever booked for it.")
    if standing.state is State.OPEN:
        when = f"{month.ended_at:%Y-%m-%d %H:%M}"
        raise Refused(f"{month.start:%Y-%m} of {slug} isn't over: it can be closed from {when} UTC on.")
    if standing.obstacles:
        told = " ".join(f"{_capital(str(one))}. {one.advice}" for one in standing.obstacles)
        raise Refused(f"{month.start:%Y-%m} of {slug} can't be closed yet. {told}")
    return month


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _decide(standing: Standing, month: Asked, by: User | str) -> None:
    """Decide the calls of unknown outcome, on the last day of the month."""
    if not standing.unresolved:
        return
    last = month.end - ONE_DAY
    ruling = RULINGS[UnresolvedPolicy(standing.tenant.unresolved_policy)]
    resolving.resolve_matching(matching(standing.tenant, None, last), ruling, REASON, by, last)
    _book_echoes(month)


def _book_echoes(month: Asked) -> None:
    """Book the events by which the store confirms the decisions; they say nothing new, but have numbers to account for.

    What still waits after some seconds is in the way of closing, and is named there.
    """
    until = time.monotonic() + ECHO_SECONDS
    try:
        drain.drain()
        while any(map(month.has, pending.events([month]))) and time.monotonic() < until:
            time.sleep(0.1)
            drain.drain()
        gaps.check_sequences()
    except redis.RedisError as exc:
        raise Refused("The admission store stopped answering: close once more when it is back.") from exc


def _close(asked: Asked, by: User | str) -> Statement:
    """Within the one transaction: wait for whoever books, look once more, write the statement."""
    closedmonths.take(asked.tenant.pk)
    tenant = Tenant.objects.get(pk=asked.tenant.pk)
    (standing,) = look([tenant])
    if standing.last is not None and standing.last.month >= asked.start:
        raise Refused(f"{asked.start:%Y-%m} of {tenant.slug} was closed meanwhile: statement {standing.last}.")
    if standing.month != asked.start:
        raise Refused(f"Usage of an earlier month of {tenant.slug} came in meanwhile: {standing.month:%Y-%m} is first.")
    month = require_ready(standing)
    if standing.unresolved:
        raise Refused("More calls turned out to be unresolved meanwhile: close once more.")
    _require_sums(month)
    start, end = month.start, month.end
    content_hash, rows = canonical.hashed(tenant.pk, start, end)
    statement = Statement(
        tenant=tenant,
        month=start,
        timezone=tenant.zone(now()).key,
        policy=asked.tenant.unresolved_policy,
        decided=_decided(month),
        rows=rows,
        form=canonical.FORM,
        content_hash=content_hash,
        totals=totals_of(tenant, start, end),
        prices=_prices(month),
        adjustments=_adjustments(month),
        closed_by=str(by),
        closed_at=now(),
    )
    _number(statement)
    statement.save(force_insert=True)
    sealing.note_closed(statement)
    return statement


def _require_sums(month: Asked) -> None:
    """Refuse to freeze totals that the ledger's rows don't sum to. Nothing of ours makes such."""
    inner, parameters = bookings(Query(month.tenant, month.start, month.end, ()))
    with connection.cursor() as cursor:
        cursor.execute(DIFFERENT.format(bookings=inner), [*parameters, month.tenant.pk, month.start, month.end])
        found = cursor.fetchone()
    if found:
        raise Refused(
            f"The daily usage of {month.tenant.slug} on {found[0]} isn't what the ledger's rows sum to: the statement"
            " would be wrong. Only a change by hand in the database does that: undo it first."
        )


def totals_of(tenant: Tenant, start: dt.date, end: dt.date) -> list[dict[str, Any]]:
    """What the month's report sums to, a row for each currency, as it is kept in a statement."""
    found = [{name: row[name] for name in TOTALS} for row in report(Query(tenant, start, end, ()))]
    return [{**row, "cost": None if row["cost"] is None else plain(row["cost"])} for row in found]


def _decided(month: Asked) -> int:
    """How many calls the policy has decided, in an attempt to close that was interrupted, too."""
    with connection.cursor() as cursor:
        cursor.execute(DECIDED, [month.tenant.pk, month.end - ONE_DAY, f"%: {REASON}"])
        (count,) = cursor.fetchone()
    return int(count)


def _prices(month: Asked) -> list[dict[str, Any]]:
    return _found(PRICES, [month.tenant.pk, month.start, month.end], PRICE_FIELDS)


def _adjustments(month: Asked) -> list[dict[str, Any]]:
    """What the month books of calls of earlier ones, by their month and currency, with their statements' numbers."""
    inner, parameters = bookings(Query(month.tenant, month.start, month.end, ()))
    return _found(ADJUSTMENTS.format(bookings=inner), [*parameters, month.start], ADJUSTED)


def _found(statement: str, parameters: Sequence[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a query as JSON takes them: amounts of money as text."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows = cursor.fetchall()
    return [
        {name: plain(one) if isinstance(one, Decimal) else one for name, one in zip(names, row, strict=True)}
        for row in rows
    ]


def _number(statement: Statement) -> None:
    """Give it the next number of this year; the next one waits for this transaction's end, so none is left out."""
    with connection.cursor() as cursor:
        cursor.execute(LOCK_NUMBER, [LOCK])
    statement.year = statement.closed_at.year
    last = Statement.objects.filter(year=statement.year).aggregate(last=Max("serial"))["last"]
    statement.serial = (last or 0) + 1
    statement.number = f"{statement.year}-{statement.serial:06}"

"""`usage close` closes months, `usage verify` sees whether closed ones are as they were."""

import datetime as dt
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator, Sequence
from typing import Any

from django.core.management.base import CommandError, OutputWrapper

from tokens.errors import Refused
from tokens.management.base import find_tenant, one_line, operator
from tokens.models import Tenant
from usage import closing, sealing
from usage.models import Statement
from usage.months import Standing, State, look
from usage.verifying import verify

AT_ONCE = 100  # tenants that are looked at together


def month(text: str) -> dt.date:
    """An argument such as 2026-10."""
    try:
        return dt.date.fromisoformat(f"{text}-01")
    except ValueError as exc:
        raise ArgumentTypeError(f"{text} is not a month such as 2026-10.") from exc


def add_closing_arguments(verb: ArgumentParser) -> None:
    """Whose month, and whether to close it."""
    whose = verb.add_mutually_exclusive_group(required=True)
    whose.add_argument("--tenant", metavar="SLUG", help="this tenant's next month")
    whose.add_argument("--all", action="store_true", help="every month of every tenant that is ready")
    verb.add_argument("--month", type=month, metavar="MONTH", help="with --tenant: such as 2026-10, to be sure")
    verb.add_argument(
        "--dry-run", action="store_true", help="close nothing; say how each stands and what is in the way"
    )


def add_verifying_arguments(verb: ArgumentParser) -> None:
    """Whose statements."""
    verb.add_argument("--tenant", metavar="SLUG", help="only this tenant's (default: all)")


def close(options: dict[str, Any], out: OutputWrapper, errors: OutputWrapper) -> None:
    """Close, and write a line a statement. Raises Refused, and CommandError when a month is blocked."""
    if options["month"] and options["all"]:
        raise Refused("--month goes with --tenant.")
    blocked = 0
    for standing in _standings(options["tenant"]):
        if options["tenant"]:
            _require(standing, options["month"])
        if options["dry_run"]:
            _tell(standing, out)
        elif options["tenant"]:
            _write(closing.close(standing, operator()), out)
        else:
            blocked += _close_all(standing, out, errors)
    if blocked:
        raise CommandError(f"{blocked} month{'s' if blocked > 1 else ''} can't be closed yet.")


def _close_all(standing: Standing, out: OutputWrapper, errors: OutputWrapper) -> int:
    """Close what is ready of a tenant; 1 when something is in the way."""
    blocked = 0
    for closed in closing.close_ready([standing.tenant], operator()):
        if isinstance(closed, Statement):
            _write(closed, out)
        else:
            errors.write(closed[1])
            blocked = 1
    if standing.state is State.BLOCKED:
        try:
            closing.require_ready(standing)
        except Refused as exc:
            errors.write(str(exc))
            blocked = 1
    return blocked


def run_verify(options: dict[str, Any], out: OutputWrapper) -> None:
    """Write a line a statement. Raises CommandError when one isn't as it was."""
    statements = Statement.objects.select_related("tenant").order_by("pk")
    tenant = find_tenant(options["tenant"]) if options["tenant"] else None
    if tenant is not None:
        statements = statements.filter(tenant=tenant)
    count = bad = 0
    for statement, wrong in verify(statements.iterator(chunk_size=100)):
        count, bad = count + 1, bad + bool(wrong)
        named = (statement.number, statement.tenant.slug, f"{statement.month:%Y-%m}")
        out.write(one_line(*named, "; ".join(wrong) if wrong else "as it was"))
    for number in sealing.gone(tenant):
        count, bad = count + 1, bad + 1
        out.write(one_line(number, "is gone: the audit trail tells of it"))
    if bad:
        raise CommandError(f"{bad} of {count} statements are not as they were when their months were closed.")


def _require(standing: Standing, wanted: dt.date | None) -> None:
    """Refuse a month that isn't the tenant's next one."""
    if wanted is None or standing.month == wanted:
        return
    slug = standing.tenant.slug
    closed = Statement.objects.filter(tenant=standing.tenant, month=wanted).first()
    if closed:
        raise Refused(
            f"{wanted:%Y-%m} of {slug} is closed: statement {closed}. Correct what is wrong; it counts later."
        )
    if standing.month is None:
        closing.require_ready(standing)
        return
    if wanted < standing.month:
        raise Refused(f"Nothing was booked for {slug} before {standing.month:%Y-%m}.")
    raise Refused(f"Months close in order: {standing.month:%Y-%m} of {slug} comes first.")


def _standings(slug: str | None) -> Iterator[Standing]:
    if slug:
        yield from look([find_tenant(slug)])
        return
    last = 0
    while tenants := list(Tenant.objects.filter(pk__gt=last).order_by("pk")[:AT_ONCE]):
        last = tenants[-1].pk
        yield from look(tenants)


def _tell(standing: Standing, out: OutputWrapper) -> None:
    """How a month stands: tenant, month, state, what closing does or what is in the way."""
    notes: Sequence[str] = [f"{one}: {one.advice}" for one in standing.obstacles]
    if standing.state is State.OPEN and standing.ends:
        notes = [f"from {standing.ends:%Y-%m-%d %H:%M} UTC on"]
    if standing.state is State.READY and standing.unresolved:
        ruling = standing.tenant.get_unresolved_policy_display()
        notes = [f"{standing.unresolved} unresolved calls count as: {ruling}"]
    name = f"{standing.month:%Y-%m}" if standing.month else "-"
    out.write(one_line(standing.tenant.slug, name, standing.state, " ".join(notes)))


def _write(statement: Statement, out: OutputWrapper) -> None:
    costs = ", ".join(f"{row['cost']} {row['currency']}" for row in statement.totals if row["currency"])
    out.write(one_line(statement.number, statement.tenant.slug, f"{statement.month:%Y-%m}", costs))

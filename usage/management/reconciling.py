"""`usage reconcile`: the store's counters, or a provider's own account, against the ledger."""

import json
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from django.core.management.base import CommandError, OutputWrapper

from tokens.errors import Refused
from tokens.management.base import find_tenant
from tokens.scripts import answered
from usage import drain, provideraccount, reconciliation
from usage.exports import write_csv
from usage.management.arguments import day
from usage.provideraccount import ADVICE, Call, Days, Finding, Totals
from usage.reconciliation import Compared, Verdict

WIDEST = max(map(len, Finding))
FORMATS = (
    "with --provider: list the calls that differ; resolve: those that `usage resolve --list` takes (default: sums)"
)


def add_arguments(verb: ArgumentParser) -> None:
    """What is compared with the ledger, and how it is told."""
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument("--counters", action="store_true", help="the admission store's counters of the open periods")
    what.add_argument(
        "--provider",
        type=Path,
        metavar="FILE",
        help="a provider's account: CSV of request_id,total_tokens[,n] or JSON lines",
    )
    verb.add_argument("--tenant", metavar="SLUG", help="with --counters: only this tenant's")
    verb.add_argument("--repair", action="store_true", help="with --counters: set what differs to the ledger's figures")
    verb.add_argument("--from", dest="start", type=day, metavar="DAY", help="with --provider: the first day, UTC")
    verb.add_argument("--to", dest="end", type=day, metavar="DAY", help="with --provider: the day after the last")
    verb.add_argument("--format", choices=["csv", "json", "resolve"], help=FORMATS)


def run(options: dict[str, Any], out: OutputWrapper, errors: OutputWrapper) -> None:
    """Compare and tell. Raises Refused, and CommandError when something differs."""
    if options["counters"]:
        if options["start"] or options["end"] or options["format"]:
            raise Refused("--from, --to and --format go with --provider.")
        with answered():
            _counters(options, out, errors)
    else:
        if options["tenant"] or options["repair"]:
            raise Refused("--tenant and --repair go with --counters.")
        _provider(options["provider"], Days(options["start"], options["end"]), options["format"], out, errors)


def _counters(options: dict[str, Any], out: OutputWrapper, errors: OutputWrapper) -> None:
    tenants = [find_tenant(options["tenant"])] if options["tenant"] else None
    count, wrong, busy = 0, 0, []
    for compared in reconciliation.compare_counters(tenants):
        count += 1
        if compared.verdict is Verdict.BUSY:
            busy.append(compared.tenant.slug)
        for difference in compared.differences.values():
            out.write(f"{difference.tenant} {difference}")
        if compared.differences:
            wrong += not (options["repair"] and _repaired(compared, errors))
    errors.write(f"{count - len(busy)} of {count} tenants compared.")
    if busy:
        shown = ", ".join(busy[:10]) + (", ..." if len(busy) > 10 else "")
        errors.write(f"In use just now, and so not compared: {shown}. Try again.")
    if wrong:
        raise CommandError(f"The counters of {wrong} tenant{'s' if wrong > 1 else ''} differ from the ledger.")


def _repaired(compared: Compared, errors: OutputWrapper) -> bool:
    done = reconciliation.repair(compared)
    told = "repaired" if done else "changed meanwhile, and so not repaired; try again"
    errors.write(f"{compared.tenant.slug}: {told}.")
    return done


def _provider(path: Path, days: Days, form: str | None, out: OutputWrapper, errors: OutputWrapper) -> None:
    if days.start and days.end and days.end <= days.start:
        raise Refused("--to must be a later day than --from: it is the day after the last.")
    totals = Totals()
    try:
        calls = _counted(provideraccount.compare(path, days), totals)
        match form:
            case "csv":
                write_csv(_lines(calls), out)
            case "json":
                _write_json(calls, totals, out)
            case "resolve":
                _write_resolvable(calls, totals, out, errors)
            case _:
                for _ in calls:  # the sums are all that is told
                    continue
                _write_table(totals, _command(path, days), out)
    except provideraccount.BadAccountError as exc:
        raise Refused(str(exc)) from exc
    _say_what_waits(errors)
    if totals.different and form != "resolve":  # which did what it was asked for, so that `&&` goes on
        raise CommandError(f"The accounts differ on {totals.different:,} call{'s' if totals.different > 1 else ''}.")


def _counted(calls: Iterator[Call], totals: Totals) -> Iterator[Call]:
    for call in calls:
        totals.add(call)
        yield call


def _lines(calls: Iterator[Call]) -> Iterator[list[str | int | None]]:
    yield list(Call._fields)
    yield from (list(_row(call).values()) for call in calls if call.finding is not Finding.EQUAL)


def _row(call: Call) -> dict[str, str | int | None]:
    return {**call._asdict(), "request_id": str(call.request_id or ""), "finding": call.finding.value}


def _write_json(calls: Iterator[Call], totals: Totals, out: OutputWrapper) -> None:
    """`{"calls": [...], "totals": {...}}`, a call a line as they come; only those on which the accounts differ."""
    out.write('{"calls": [', ending="")
    comma = "\n"
    for call in calls:
        if call.finding is not Finding.EQUAL:
            out.write(comma + json.dumps(_row(call)), ending="")
            comma = ",\n"
    sums = {
        finding.value: dict(zip(("calls", "drawn_tokens", "charged_tokens"), row, strict=True))
        for finding, row in totals.rows.items()
    }
    out.write(f'\n], "totals": {json.dumps(sums)}}}')


def _write_resolvable(calls: Iterator[Call], totals: Totals, out: OutputWrapper, errors: OutputWrapper) -> None:
    """`request_id,tokens[,images]` of the calls that are unresolved and were drawn; what else there is as remarks."""
    listed, without = 0, 0
    for call in calls:
        if call.finding is not Finding.DRAWN_UNRESOLVED:
            continue
        if call.drawn_tokens is None:
            without += 1
            errors.write(f"{call.request_id} was drawn, and the account doesn't say for how many tokens: not listed.")
            continue
        listed += 1
        images = "" if call.drawn_images is None else f",{call.drawn_images}"
        out.write(f"{call.request_id},{call.drawn_tokens}{images}")
    others = totals.different - listed - without
    more = f" {others:,} more differ otherwise: see them without --format." if others else ""
    errors.write(f"{listed:,} call{'' if listed == 1 else 's'} to resolve.{more}")


def _command(path: Path, days: Days) -> str:
    """The command that compares the same once more."""
    words = ["manage.py", "usage", "reconcile", "--provider", str(path)]
    words += ["--from", str(days.start)] if days.start else []
    words += ["--to", str(days.end)] if days.end else []
    return shlex.join(words)


def _write_table(totals: Totals, again: str, out: OutputWrapper) -> None:
    """Sums by what was found, then what can be done about each finding."""
    rows = [(finding, totals.rows[finding]) for finding in Finding if finding in totals.rows]
    out.write(f"{'':<{WIDEST}}{'calls':>10}{'tokens drawn':>24}{'tokens charged':>24}")
    for finding, (calls, drawn, charged) in rows:
        out.write(f"{finding.value:<{WIDEST}}{calls:>10,}{drawn:>24,}{charged:>24,}")
    calls, drawn, charged = (sum(column) for column in zip((0, 0, 0), *(row for _, row in rows), strict=True))
    out.write(f"{'total':<{WIDEST}}{calls:>10,}{drawn:>24,}{charged:>24,}")
    for finding, _ in rows:
        if finding in ADVICE:
            out.write(f"\n{finding.value}:\n  {ADVICE[finding].replace('{again}', again)}")


def _say_what_waits(errors: OutputWrapper) -> None:
    try:
        seconds = drain.oldest_seconds()
    except redis.RedisError:
        errors.write("The admission store doesn't answer: usage may wait there that the ledger doesn't have yet.")
        return
    if seconds:
        errors.write("Usage events wait that the ledger doesn't have yet: compare again when they have come in.")

"""`usage unresolved` lists the calls whose outcome isn't known, `usage resolve` decides what they count as."""

import datetime as dt
import json
import sys
import uuid
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, OutputWrapper
from django.db.models import QuerySet

from tokens.errors import Refused
from tokens.management.base import find_tenant, moment, one_line, operator
from usage import resolving
from usage.exports import write_csv
from usage.management.arguments import day
from usage.models import UsageRecord
from usage.resolving import ESTIMATE, NOTHING, Result, Ruling
from usage.unresolved import matching

COLUMNS = ["request_id", "at", "tenant", "user", "token", "model", "size", "n", "tokens", "reason"]


def request_id(text: str) -> uuid.UUID:
    """An argument that names a call."""
    try:
        return uuid.UUID(text)
    except ValueError as exc:
        raise ArgumentTypeError(f"{text} is not a request id, as the X-Request-Id header says.") from exc


def add_listing_arguments(verb: ArgumentParser) -> None:
    """Which calls, and how they are written."""
    _add_filters(verb)
    verb.add_argument("--format", choices=["csv", "json"], help="default: a line a call, its request id first")


def add_resolving_arguments(verb: ArgumentParser) -> None:
    """Which calls, what they count as, and why."""
    verb.add_argument("request_ids", nargs="*", type=request_id, metavar="REQUEST_ID", help="the calls")
    _add_filters(verb)
    ruling = verb.add_mutually_exclusive_group(required=True)
    ruling.add_argument("--nothing", action="store_true", help="they cost nothing")
    ruling.add_argument("--estimate", action="store_true", help="they cost their bound, all images drawn")
    ruling.add_argument("--tokens", type=int, metavar="N", help="the call cost so many tokens")
    ruling.add_argument("--list", type=Path, metavar="FILE", help="CSV of request_id,tokens[,images]; - reads stdin")
    verb.add_argument("--images", type=int, metavar="N", help="with --tokens: images drawn (default: all)")
    verb.add_argument("--reason", required=True, metavar="TEXT", help="why; kept in the books")


def _add_filters(verb: ArgumentParser) -> None:
    verb.add_argument("--tenant", metavar="SLUG", help="only this tenant's calls")
    verb.add_argument("--from", dest="start", type=day, metavar="DAY", help="the first day, the tenant's")
    verb.add_argument("--to", dest="end", type=day, metavar="DAY", help="the day after the last")
    verb.add_argument("--model", default="", metavar="NAME", help="only calls of this model")


def list_unresolved(options: dict[str, Any], out: OutputWrapper) -> None:
    """Write the calls that are unresolved to this day, the oldest first. Raises Refused."""
    calls = _matching(options).select_related("tenant", "member__user", "token").order_by("request_id")
    rows = (_columns(call) for call in calls.iterator(chunk_size=500))
    match options["format"]:
        case "csv":
            write_csv(_with_header(rows), out)
        case "json":
            out.write("[", ending="")
            for number, row in enumerate(rows):
                line = json.dumps(dict(zip(COLUMNS, row, strict=True)))
                out.write(f"{',' if number else ''}\n{line}", ending="")
            out.write("\n]")
        case _:
            for row in rows:
                out.write(one_line(*row))


def run(options: dict[str, Any], out: OutputWrapper, errors: OutputWrapper) -> None:
    """Resolve, and write a line a call. Raises Refused, and CommandError when one of them wasn't resolved."""
    named, reason, by = options["request_ids"], options["reason"], operator()
    filtered = any(options[name] for name in ("tenant", "start", "end", "model"))
    if options["images"] is not None and options["tokens"] is None:
        raise Refused("--images goes with --tokens.")
    if options["list"] is not None:
        if named or filtered:
            raise Refused("--list names the calls itself.")
        rulings = _read(options["list"])
        if not rulings:
            errors.write("The list names no calls.")
        result = resolving.resolve(rulings, reason, by)
    elif bool(named) == filtered:
        raise Refused("Name the calls, either by their request ids or by --tenant, --from, --to and --model.")
    elif options["tokens"] is not None:
        if len(set(named)) != 1:
            raise Refused("--tokens is for one call; give --list FILE for several.")
        ruling = Ruling("actual", options["tokens"], options["images"])
        result = resolving.resolve({named[0]: ruling}, reason, by)
    else:
        ruling = NOTHING if options["nothing"] else ESTIMATE
        if named:
            result = resolving.resolve(dict.fromkeys(named, ruling), reason, by)
        else:
            result = resolving.resolve_matching(_matching(options), ruling, reason, by)
    _tell(result, out, errors)


def _tell(result: Result, out: OutputWrapper, errors: OutputWrapper) -> None:
    for call in result.resolved:
        out.write(one_line(call.request_id, "resolved"))
    for name, why in result.refused.items():
        errors.write(f"{name} {why}.")
    if result.waiting:
        errors.write(f"The admission store has yet to learn of {result.waiting}: their quota is free when it has.")
    if result.refused:
        raise CommandError(f"{len(result.resolved)} resolved, {len(result.refused)} not.")


def _matching(options: dict[str, Any]) -> QuerySet[UsageRecord]:
    tenant = find_tenant(options["tenant"]) if options["tenant"] else None
    end: dt.date | None = options["end"]
    if end is not None and end <= (options["start"] or dt.date.min):
        raise Refused("--to must be a later day than --from: it is the day after the last.")
    last = None if end is None else end - dt.timedelta(days=1)
    return matching(tenant, options["start"], last, options["model"])


def _read(path: Path) -> dict[uuid.UUID, Ruling]:
    try:
        if str(path) == "-":
            return resolving.read_rulings(sys.stdin)
        with path.open(encoding="utf-8-sig", newline="") as file:
            return resolving.read_rulings(file)
    except UnicodeDecodeError as exc:
        raise Refused(f"{path} is not UTF-8 text.") from exc
    except OSError as exc:
        raise Refused(f"{path} can't be read: {exc.strerror}.") from exc


def _columns(call: UsageRecord) -> list[str | int]:
    return [
        str(call.request_id),
        moment(call.at),
        call.tenant.slug,
        call.member.user.email,
        call.token_id,
        call.model,
        call.size,
        call.n,
        call.charged_tokens,
        call.reason,
    ]


def _with_header(rows: Iterator[list[str | int]]) -> Iterator[list[str] | list[str | int]]:
    yield COLUMNS
    yield from rows

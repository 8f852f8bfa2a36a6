"""`usage quarantine`: the events that couldn't be booked; try them again, or set them aside."""

import json
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any

from django.core.management.base import CommandError, OutputWrapper

from tokens.errors import Refused
from tokens.management.base import moment, one_line, operator
from tokens.models import Tenant
from usage import retrying
from usage.models import QuarantinedEvent
from usage.quarantine import whose

LISTED = "one line an event that nobody has dealt with: id, time, tenant, request id, error, message"


def add_arguments(verb: ArgumentParser) -> None:
    """What to do with which events."""
    steps = verb.add_subparsers(dest="step", required=True, metavar="STEP")
    steps.add_parser("list", help=LISTED)
    show = steps.add_parser("show", help="an event as it came, and what became of it, as JSON")
    show.add_argument("id", type=int, metavar="ID", help="as the list says")
    retry = steps.add_parser("retry", help="read and book them once more; a call is charged once however often")
    dismiss = steps.add_parser("dismiss", help="set them aside; they stay readable in the admin")
    for step in (retry, dismiss):
        step.add_argument("ids", nargs="+", type=int, metavar="ID", help="as the list says")
    dismiss.add_argument("--reason", required=True, metavar="TEXT", help="why they are not to be booked")


def run(options: dict[str, Any], out: OutputWrapper, errors: OutputWrapper) -> None:
    """Carry out a step. Raises CommandError when one of the events could not be dealt with."""
    match options["step"]:
        case "list":
            slugs = _Slugs()
            for entry in QuarantinedEvent.objects.filter(resolved_at=None).order_by("id").iterator():
                tenant, request_id = whose(entry.raw)
                out.write(
                    one_line(entry.pk, moment(entry.at), slugs[tenant], request_id or "", entry.error, entry.message)
                )
        case "show":
            out.write(json.dumps(_details(_find(options["id"])), indent=2, ensure_ascii=False))
        case "retry":
            _each(options["ids"], lambda entry: retrying.retry(entry, operator()), "booked", out, errors)
        case "dismiss":
            reason = options["reason"]
            _each(options["ids"], lambda entry: retrying.set_aside(entry, reason, operator()), "set aside", out, errors)


class _Slugs(dict[int | None, str]):
    """The short names of tenants by their ids, each looked up once; "" where there is none."""

    def __missing__(self, tenant: int | None) -> str:
        found = Tenant.objects.filter(pk=tenant).values_list("slug", flat=True).first() if tenant else None
        self[tenant] = found or ""
        return self[tenant]


def _find(number: int) -> QuarantinedEvent:
    entry = QuarantinedEvent.objects.select_related("resolved_by").filter(pk=number).first()
    if entry is None:
        raise Refused("There is no such event.")
    return entry


def _details(entry: QuarantinedEvent) -> dict[str, Any]:
    tenant, request_id = whose(entry.raw)
    return {
        "id": entry.pk,
        "at": moment(entry.at),
        "tenant": _Slugs()[tenant] or None,
        "request_id": request_id and str(request_id),
        "error": entry.error,
        "message": entry.message,
        "resolved_at": entry.resolved_at and moment(entry.resolved_at),
        "resolved_by": entry.resolved_by and entry.resolved_by.email,
        "resolution": entry.resolution,
        "event": entry.raw,
    }


def _each(
    ids: Sequence[int],
    deal_with: Callable[[QuarantinedEvent], None],
    done: str,
    out: OutputWrapper,
    errors: OutputWrapper,
) -> None:
    failed = 0
    for number in ids:
        try:
            deal_with(_find(number))
            out.write(one_line(number, done))
        except Refused as exc:
            failed += 1
            errors.write(f"{number}: {exc}")
    if failed:
        raise CommandError(f"{len(ids) - failed} {done}, {failed} not.")

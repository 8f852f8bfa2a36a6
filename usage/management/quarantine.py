"""`usage quarantine`: the events that couldn't be booked; try them again, or set them aside."""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any

from django.core.management.base import CommandError, OutputWrapper

from tokens.errors import Refused
from tokens.management.base import BY, moment, one_line
from usage import retrying
from usage.models import QuarantinedEvent


def add_arguments(verb: ArgumentParser) -> None:
    """What to do with which events."""
    steps = verb.add_subparsers(dest="step", required=True, metavar="STEP")
    steps.add_parser("list", help="one line an event that nobody has dealt with: id, time, error, message")
    retry = steps.add_parser("retry", help="read and book them once more; a call is charged once however often")
    dismiss = steps.add_parser("dismiss", help="set them aside; they stay readable in the admin")
    for step in (retry, dismiss):
        step.add_argument("ids", nargs="+", type=int, metavar="ID", help="as the list says")
    dismiss.add_argument("--reason", required=True, metavar="TEXT", help="why they are not to be booked")


def run(options: dict[str, Any], out: OutputWrapper, errors: OutputWrapper) -> None:
    """Carry out a step. Raises CommandError when one of the events could not be dealt with."""
    match options["step"]:
        case "list":
            for entry in QuarantinedEvent.objects.filter(resolved_at=None).order_by("id").iterator():
                out.write(one_line(entry.pk, moment(entry.at), entry.error, entry.message))
        case "retry":
            _each(options["ids"], lambda entry: retrying.retry(entry, BY), "booked", out, errors)
        case "dismiss":
            reason = options["reason"]
            _each(options["ids"], lambda entry: retrying.set_aside(entry, reason, BY), "set aside", out, errors)


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
            entry = QuarantinedEvent.objects.filter(pk=number).first()
            if entry is None:
                raise Refused("There is no such event.")
            deal_with(entry)
            out.write(one_line(number, done))
        except Refused as exc:
            failed += 1
            errors.write(f"{number}: {exc}")
    if failed:
        raise CommandError(f"{len(ids) - failed} {done}, {failed} not.")

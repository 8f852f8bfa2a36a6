from argparse import ArgumentParser
from typing import Any

from tokens.errors import Refused
from tokens.management.base import VerbCommand, moment, one_line
from usage import alarms
from usage.models import Alarm


class Command(VerbCommand):
    help = "List alarms, and mark those as dealt with that can't come right by themselves."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        listing = verbs.add_parser("list", help="one line an open alarm: id, kind, about, since when, what it says")
        listing.add_argument("--all", action="store_true", help="the last 200, closed ones too, with when they closed")
        dealing = verbs.add_parser("deal-with", help="close alarms that you have looked into")
        dealing.add_argument("alarm_ids", nargs="+", type=int, metavar="ALARM_ID", help="as `alarm list` shows them")
        dealing.add_argument("--reason", required=True, help="what you found; kept in the audit trail")

    def do_list(self, options: dict[str, Any]) -> None:
        """One line an alarm, newest first."""
        rows = Alarm.objects.order_by("-pk")
        for alarm in rows[:200] if options["all"] else rows.filter(closed_at=None):
            closed = [moment(alarm.closed_at, "open")] if options["all"] else []
            about = (alarm.kind, alarm.about or "-", moment(alarm.opened_at))
            self.stdout.write(one_line(alarm.pk, *about, *closed, alarm.message))

    def do_deal_with(self, options: dict[str, Any]) -> None:
        """Close them."""
        found = list(Alarm.objects.filter(pk__in=options["alarm_ids"]))
        missing = set(options["alarm_ids"]) - {alarm.pk for alarm in found}
        if missing:
            raise Refused(f"There is no alarm {min(missing)}.")
        if not options["reason"].strip():
            raise Refused("Say what you found: the reason can't be empty.")
        self.stdout.write(f"Dealt with: {alarms.deal_with(found, options['reason'])} of {len(found)}.")

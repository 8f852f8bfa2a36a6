from argparse import ArgumentParser
from typing import Any

from tokens import issuing
from tokens.management.base import VerbCommand, add_scope_arguments, describe, find_scope, one_line


class Command(VerbCommand):
    help = (
        "Set, list and remove the limits of a tenant, of a member or of a token. A limit is METRIC:AMOUNT/PERIOD "
        "(requests, images, tokens; second, minute, hour, day, month, total) or concurrent:AMOUNT; a rate (second, "
        "minute, hour) may add :burst=N."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        setting = verbs.add_parser("set", help="set limits; one of the same metric and period is replaced")
        setting.add_argument("limits", nargs="+", metavar="LIMIT", help="such as images:500/day or concurrent:8")
        listing = verbs.add_parser("list", help="one line a limit: what it applies to, then the limit")
        removing = verbs.add_parser("remove", help="remove limits")
        removing.add_argument("limits", nargs="+", metavar="NAME", help="such as images/day or concurrent")
        for verb in (setting, listing, removing):
            add_scope_arguments(verb)

    def do_set(self, options: dict[str, Any]) -> None:
        """Set limits."""
        scope = find_scope(options)
        for limit in issuing.set_limits(scope, options["limits"]):
            self.stdout.write(one_line(describe(scope), limit))
        self.note_if_waiting(scope)

    def do_list(self, options: dict[str, Any]) -> None:
        """The limits of exactly this scope."""
        scope = find_scope(options)
        for limit in issuing.limits_of(scope):
            self.stdout.write(one_line(describe(scope), limit))

    def do_remove(self, options: dict[str, Any]) -> None:
        """Remove limits."""
        scope = find_scope(options)
        issuing.remove_limits(scope, options["limits"])
        self.stdout.write(f"Removed from {describe(scope)}: {', '.join(options['limits'])}.")
        self.note_if_waiting(scope)

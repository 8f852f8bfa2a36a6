from argparse import ArgumentParser
from typing import Any

from tokens import installation, stopping
from tokens.management.base import VerbCommand, operator


class Command(VerbCommand):
    help = "For emergencies: refuse all calls of a tenant, or all calls, at once. `start` lifts it again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--tenant", metavar="SLUG", help="suspend this tenant")
        which.add_argument("--all", action="store_true", help="admit nobody")
        parser.set_defaults(verb="stop")

    def do_stop(self, options: dict[str, Any]) -> None:
        """Stop a tenant or everybody, in the admission store first."""
        if options["all"]:
            durable = installation.stop_all()
            self.stdout.write("All calls are stopped.")
        else:
            durable = stopping.suspend_tenant(options["tenant"], operator())
            self.stdout.write(f"Tenant {options['tenant']} is suspended: no call of its tokens is admitted.")
        if not durable:
            self.note("The database did not answer: the admission store keeps this until it is back.")

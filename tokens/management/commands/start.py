from argparse import ArgumentParser
from typing import Any

from tokens import installation, stopping
from tokens.management.base import VerbCommand


class Command(VerbCommand):
    help = "Lift what `stop` did: admit the calls of a tenant, or all calls, again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--tenant", metavar="SLUG", help="activate this tenant")
        which.add_argument("--all", action="store_true", help="admit calls again; suspended tenants stay suspended")
        parser.set_defaults(verb="start")

    def do_start(self, options: dict[str, Any]) -> None:
        """Start a tenant or everybody."""
        if not options["all"]:
            tenant = stopping.activate_tenant(options["tenant"])
            self.stdout.write(f"Tenant {tenant.slug} is active.")
            return
        durable = installation.start_all()
        self.stdout.write("Calls are admitted again.")
        if not durable:
            self.note("The database did not answer: the admission store keeps this until it is back.")

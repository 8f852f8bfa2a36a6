from argparse import ArgumentParser
from typing import Any

from django.db.models import Count
from django.utils.timezone import now

from tokens import issuing, stopping
from tokens.management.base import VerbCommand, one_line, operator
from tokens.models import Membership, ProxyToken, Tenant


class Command(VerbCommand):
    help = "Create, list, suspend and activate tenants."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        create = verbs.add_parser("create", help="create a tenant")
        create.add_argument("slug", help="short name, for commands and reports")
        create.add_argument("--name", help="name for people (default: the short name)")
        create.add_argument("--timezone", default="UTC", metavar="ZONE", help="such as Europe/Berlin (default: UTC)")
        create.add_argument(
            "--limit", action="append", default=[], metavar="LIMIT", help="such as images:500/day; may be repeated"
        )
        verbs.add_parser("list", help="one line a tenant: short name, name, status, time zone, members, tokens")
        for verb, text in (("suspend", "refuse all its calls, at once"), ("activate", "let it call again")):
            verbs.add_parser(verb, help=text).add_argument("slug", help="the tenant's short name")

    def do_create(self, options: dict[str, Any]) -> None:
        """Create a tenant."""
        tenant = issuing.create_tenant(
            options["slug"], options["name"] or options["slug"], options["timezone"], limit_texts=options["limit"]
        )
        self.stdout.write(f"Tenant {tenant.slug} is created.")
        self.note_if_waiting(tenant)

    def do_list(self, _options: dict[str, Any]) -> None:
        """One line a tenant."""
        members = dict(Membership.objects.order_by().values_list("tenant").annotate(Count("pk")))
        tokens = dict(ProxyToken.objects.order_by().values_list("tenant").annotate(Count("pk")))
        at = now()
        for tenant in Tenant.objects.order_by("slug"):
            counts = (members.get(tenant.pk, 0), tokens.get(tenant.pk, 0))
            self.stdout.write(one_line(tenant.slug, tenant.name, tenant.status, tenant.zone(at).key, *counts))

    def do_suspend(self, options: dict[str, Any]) -> None:
        """Suspend a tenant, in the admission store first."""
        durable = stopping.suspend_tenant(options["slug"], operator())
        self.stdout.write(f"Tenant {options['slug']} is suspended: no call of its tokens is admitted.")
        if not durable:
            self.note("The database did not answer: the admission store keeps this until it is back.")

    def do_activate(self, options: dict[str, Any]) -> None:
        """Let a suspended tenant call again."""
        tenant = stopping.activate_tenant(options["slug"])
        self.stdout.write(f"Tenant {tenant.slug} is active.")

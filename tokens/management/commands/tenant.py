from argparse import ArgumentParser
from typing import Any

from django.db import transaction
from django.db.models import Count
from django.utils.timezone import now

from tokens import issuing, stopping
from tokens.errors import Refused
from tokens.management.base import VerbCommand, find_tenant, moment, one_line, operator
from tokens.models import Membership, ProxyToken, Tenant, UnresolvedPolicy
from tokens.offering import require_offered


class Command(VerbCommand):
    help = "Create, change, list, suspend and activate tenants."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        create = verbs.add_parser("create", help="create a tenant")
        create.add_argument("slug", help="short name, for commands and reports")
        create.add_argument("--name", help="name for people (default: the short name)")
        create.add_argument("--timezone", default="UTC", metavar="ZONE", help="such as Europe/Berlin (default: UTC)")
        create.add_argument(
            "--limit", action="append", default=[], metavar="LIMIT", help="such as images:500/day; may be repeated"
        )
        changing = verbs.add_parser("set", help="change a tenant; what isn't given stays")
        changing.add_argument("slug", help="the tenant's short name")
        changing.add_argument("--name", help="name for people")
        changing.add_argument("--timezone", metavar="ZONE", help="from the next month on, such as Europe/Berlin")
        changing.add_argument("--unresolved", choices=UnresolvedPolicy.values, help="unresolved calls at month close")
        for one in (create, changing):
            one.add_argument("--model", metavar="NAME", help='the model that answers its calls; "" for the default')
            one.add_argument(
                "--origin", action="append", metavar="ORIGIN", help="whose pages may call, or *; may be repeated"
            )
        changing.add_argument("--no-origins", action="store_true", help="no web page may call")
        verbs.add_parser("list", help="one line a tenant: short name, name, status, time zone, members, tokens")
        for verb, text in (("suspend", "refuse all its calls, at once"), ("activate", "let it call again")):
            verbs.add_parser(verb, help=text).add_argument("slug", help="the tenant's short name")

    def do_create(self, options: dict[str, Any]) -> None:
        """Create a tenant."""
        tenant = issuing.create_tenant(
            options["slug"],
            options["name"] or options["slug"],
            options["timezone"],
            origins=options["origin"] or (),
            model=require_offered(options["model"] or ""),
            limit_texts=options["limit"],
        )
        self.stdout.write(f"Tenant {tenant.slug} is created.")
        self.note_if_waiting(tenant)

    def do_set(self, options: dict[str, Any]) -> None:
        """Change what is given; another time zone begins with the next month."""
        with transaction.atomic():
            tenant = self._set(options)
        self.stdout.write(f"Tenant {tenant.slug} is changed.")
        if options["timezone"] and tenant.next_timezone_from:
            begins = moment(tenant.next_timezone_from)
            self.note(
                f"Its time zone stays {tenant.timezone} to the month's end: {tenant.next_timezone} begins {begins}."
            )
        self.note_if_waiting(tenant)

    def _set(self, options: dict[str, Any]) -> Tenant:
        tenant = Tenant.objects.select_for_update(no_key=True).get(pk=find_tenant(options["slug"]).pk)
        model = None if options["model"] is None else require_offered(options["model"])
        wanted = {"name": options["name"], "timezone": options["timezone"], "model": model}
        wanted |= {"unresolved_policy": options["unresolved"], "origins": options["origin"]}
        wanted |= {"origins": []} if options["no_origins"] else {}
        given = {name: value for name, value in wanted.items() if value is not None}
        if not given:
            raise Refused("Say what to change, such as --name or --origin.")
        for name, value in given.items():
            setattr(tenant, name, value)
        tenant.full_clean()
        tenant.save(update_fields=list(given))
        return tenant

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

from argparse import ArgumentParser
from typing import Any

from django.utils.timezone import now

from tokens import apikeys
from tokens.apikeyrow import ApiScope
from tokens.errors import Refused
from tokens.management.base import VerbCommand, find_tenant, moment, one_line, operator, parse_duration
from tokens.models import ApiKey


class Command(VerbCommand):
    help = "Issue, list and revoke keys of the management API."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        issue = verbs.add_parser("issue", help="issue a key; its secret is printed alone on standard output, once")
        issue.add_argument("--name", required=True, help="what it is for")
        issue.add_argument(
            "--scope", action="append", required=True, choices=ApiScope.values, help="what it may; may be repeated"
        )
        issue.add_argument("--expires", metavar="TIME", help="how long it lasts, such as 365d; else for good")
        opens = issue.add_mutually_exclusive_group(required=True)
        opens.add_argument("--tenant", metavar="SLUG", help="it opens this tenant's usage and tokens only")
        opens.add_argument("--all-tenants", action="store_true", help="it opens those of all tenants")
        listing = verbs.add_parser(
            "list", help="one line a key: id, name, tenant, scopes, status, first characters, last use, from where"
        )
        listing.add_argument("--tenant", metavar="SLUG", help="only this tenant's")
        revoke = verbs.add_parser("revoke", help="revoke a key for good")
        revoke.add_argument("key_id", type=int, metavar="KEY_ID", help="its id, as `key list` shows it")

    def do_issue(self, options: dict[str, Any]) -> None:
        """Issue a key."""
        tenant = find_tenant(options["tenant"]) if options["tenant"] else None
        expires_at = now() + parse_duration(options["expires"]) if options["expires"] else None
        key, secret = apikeys.issue(options["name"], options["scope"], tenant, operator(), expires_at=expires_at)
        self.stdout.write(secret)
        self.note(f"API key {key.pk} is issued. Its secret is shown this once.")

    def do_list(self, options: dict[str, Any]) -> None:
        """One line a key, oldest first."""
        keys = apikeys.with_backing(ApiKey.objects.select_related("tenant").order_by("pk"))
        if options["tenant"]:
            keys = keys.filter(tenant=find_tenant(options["tenant"]))
        key: Any
        for key in keys.iterator(chunk_size=1_000):
            state = "ended" if key.state == "active" and not key.backed else key.state
            tenant = key.tenant.slug if key.tenant else "all tenants"
            used = (moment(key.last_used_at), key.last_used_from or "-")
            self.stdout.write(one_line(key.pk, key.name, tenant, ",".join(key.scopes), state, key.shown, *used))

    def do_revoke(self, options: dict[str, Any]) -> None:
        """Revoke a key."""
        key = ApiKey.objects.filter(pk=options["key_id"]).first()
        if key is None:
            raise Refused(f"There is no API key {options['key_id']}.")
        apikeys.revoke(key, operator())
        self.stdout.write(f"API key {key.pk} is revoked: its next request is refused.")

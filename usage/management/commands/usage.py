"""`manage.py usage`: reports, and what people decide about the books. A verb's module stands in usage.management."""

from argparse import ArgumentParser
from typing import Any

from tokens.management.base import VerbCommand
from usage.management import closing, pricing, quarantine, reconciling, reporting, resolving


class Command(VerbCommand):
    help = "Report usage, resolve calls, deal with events that couldn't be booked, and compare the books."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        reporting.add_arguments(verbs.add_parser("report", help="what was used, by tenant, user, token, model, day"))
        listing = verbs.add_parser("unresolved", help="list calls whose outcome isn't known to this day")
        resolving.add_listing_arguments(listing)
        resolve = verbs.add_parser("resolve", help="decide what such calls cost")
        resolving.add_resolving_arguments(resolve)
        quarantine.add_arguments(verbs.add_parser("quarantine", help="deal with events that couldn't be booked"))
        pricing.add_arguments(verbs.add_parser("price", help="what calls cost: list, set, import"))
        closing.add_closing_arguments(verbs.add_parser("close", help="close months: statements that never change"))
        closing.add_verifying_arguments(verbs.add_parser("verify", help="see whether closed months are as they were"))
        reconciling.add_arguments(verbs.add_parser("reconcile", help="compare the ledger with store or provider"))

    def do_report(self, options: dict[str, Any]) -> None:
        """Usage by day, month, tenant, user, token or model."""
        reporting.run(options, self.stdout)

    def do_unresolved(self, options: dict[str, Any]) -> None:
        """Calls whose outcome isn't known."""
        resolving.list_unresolved(options, self.stdout)

    def do_resolve(self, options: dict[str, Any]) -> None:
        """What such calls count as."""
        resolving.run(options, self.stdout, self.stderr)

    def do_quarantine(self, options: dict[str, Any]) -> None:
        """Events that couldn't be booked."""
        quarantine.run(options, self.stdout, self.stderr)

    def do_price(self, options: dict[str, Any]) -> None:
        """The price book."""
        pricing.run(options, self.stdout, self.stderr)

    def do_reconcile(self, options: dict[str, Any]) -> None:
        """The store's counters or a provider's account against the ledger."""
        reconciling.run(options, self.stdout, self.stderr)

    def do_close(self, options: dict[str, Any]) -> None:
        """Months that never change again."""
        closing.close(options, self.stdout, self.stderr)

    def do_verify(self, options: dict[str, Any]) -> None:
        """Whether closed months are as they were."""
        closing.run_verify(options, self.stdout)

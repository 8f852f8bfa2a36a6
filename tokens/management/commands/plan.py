from argparse import ArgumentParser
from typing import Any

from django.db.models import Count

from tokens import plans
from tokens.errors import Refused
from tokens.management.base import VerbCommand, find_tenant, one_line
from tokens.models import Plan
from tokens.planrow import PlanScope

VERBS_OF_ONE = {
    "show": "what a plan gives, and to whom",
    "create": "make a plan",
    "set": "set limits of a plan; one of the same metric and period is replaced",
    "remove": "remove limits of a plan",
    "assign": "give a plan to tenants",
    "delete": "delete a plan that no tenant has",
}
LIMIT = "such as images:500/day; may be repeated"


class Command(VerbCommand):
    help = "Make plans, named sets of limits, and give them to tenants."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        verbs.add_parser("list", help="one line a plan: name, tenants, limits, limits of each new token, description")
        of_one = {name: verbs.add_parser(name, help=text) for name, text in VERBS_OF_ONE.items()}
        for verb in of_one.values():
            verb.add_argument("name", metavar="PLAN", help="the plan's name")
        of_one["create"].add_argument("--description", default="", help="for whoever chooses a plan")
        for name in ("create", "set"):
            of_one[name].add_argument("--limit", action="append", default=[], metavar="LIMIT", help=LIMIT)
            of_one[name].add_argument(
                "--token-limit", action="append", default=[], metavar="LIMIT", help=f"of each new token, {LIMIT}"
            )
        for name, what in (("--limit", "such as images/day"), ("--token-limit", "of each new token")):
            of_one["remove"].add_argument(
                name, action="append", default=[], metavar="NAME", help=f"{what}; may be repeated"
            )
        unassign = verbs.add_parser("unassign", help="take the plan away from tenants, and with it its limits")
        for verb in (of_one["assign"], unassign):
            verb.add_argument("--tenant", action="append", required=True, metavar="SLUG", help="may be repeated")

    def do_list(self, _options: dict[str, Any]) -> None:
        """One line a plan."""
        for plan in Plan.objects.annotate(count=Count("tenants")).prefetch_related("limits"):
            self.stdout.write(one_line(plan.name, plan.count, *_limits(plan), plan.description))

    def do_show(self, options: dict[str, Any]) -> None:
        """All about one plan."""
        plan = _find(options["name"])
        tenant, token = _limits(plan)
        waiting = plans.behind().filter(plan=plan).count()
        facts = {"name": plan.name, "about": plan.description or "-", "limits": tenant, "new tokens": token}
        for name, value in facts.items():
            self.stdout.write(f"{name + ':':<12}{' '.join(value.split())}")
        for slug in plan.tenants.order_by("slug").values_list("slug", flat=True):
            self.stdout.write(f"{'tenant:':<12}{slug}")
        if waiting:
            self.note(f"{waiting} of these tenants follow its newest version within minutes.")

    def do_create(self, options: dict[str, Any]) -> None:
        """Make a plan."""
        plan = plans.create(options["name"], options["description"], _texts(options))
        self.stdout.write(f"Plan {plan.name} is created.")

    def do_set(self, options: dict[str, Any]) -> None:
        """Set limits; its tenants follow."""
        self._change(options, plans.set_limits)

    def do_remove(self, options: dict[str, Any]) -> None:
        """Remove limits; its tenants follow."""
        self._change(options, plans.remove_limits)

    def _change(self, options: dict[str, Any], change: Any) -> None:
        plan = _find(options["name"])
        if not any(_texts(options).values()):
            raise Refused("Say which: --limit, --token-limit, or both.")
        change(plan, _texts(options))
        tenant, token = _limits(_find(plan.name))
        self.stdout.write(one_line(plan.name, tenant, token))
        following = plans.behind().filter(plan=plan)
        waiting = following.count()
        plans.follow_all(plans.AT_ONCE)
        left = following.count()
        if waiting:
            more = f"; {left} follow within minutes" if left else ""
            self.note(f"Tenants that have these limits now: {waiting - left}{more}.")

    def do_assign(self, options: dict[str, Any]) -> None:
        """Give tenants this plan."""
        plan = _find(options["name"])
        for tenant in map(find_tenant, options["tenant"]):
            plans.assign(tenant, plan)
            self.stdout.write(f"{tenant.slug} has the plan {plan.name}.")
            self.note_if_waiting(tenant)

    def do_unassign(self, options: dict[str, Any]) -> None:
        """Take tenants' plan away."""
        for tenant in map(find_tenant, options["tenant"]):
            plans.assign(tenant, None)
            self.stdout.write(f"{tenant.slug} has no plan: its limits are its own.")
            self.note_if_waiting(tenant)

    def do_delete(self, options: dict[str, Any]) -> None:
        """Delete a plan."""
        plan = _find(options["name"])
        plans.delete(plan)
        self.stdout.write(f"Plan {plan.name} is deleted.")


def _find(name: str) -> Plan:
    plan = Plan.objects.filter(name=name).first()
    if plan is None:
        raise Refused(f"There is no plan {name!r}.")
    return plan


def _texts(options: dict[str, Any]) -> dict[PlanScope, list[str]]:
    return {PlanScope.TENANT: options["limit"], PlanScope.TOKEN: options["token_limit"]}


def _limits(plan: Plan) -> tuple[str, str]:
    """Of the tenant, and of each new token."""
    rows = list(plan.limits.all())
    tenant, token = (", ".join(str(row) for row in rows if row.scope == scope) for scope in PlanScope)
    return tenant or "none", token or "none"

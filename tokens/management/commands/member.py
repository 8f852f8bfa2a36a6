from argparse import ArgumentParser
from typing import Any

from tokens import issuing, roles, stopping
from tokens.management.base import VerbCommand, find_member, find_tenant, no_password_yet, one_line
from tokens.models import Role

ROLES = {"administrator": Role.ADMINISTRATOR, "viewer": Role.VIEWER, "none": Role.MEMBER}
VERBS_OF_ONE = {
    "add": "add a person or a service to a tenant",
    "role": "say what a member may do in the admin, in this tenant only",
    "suspend": "refuse all calls of its tokens, and its role",
    "activate": "let a suspended member call again",
}


class Command(VerbCommand):
    help = "Add, list, suspend and activate members of a tenant, and give them roles."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        listing = verbs.add_parser("list", help="one line a member: user, role, status, whether they have a password")
        of_one = {name: verbs.add_parser(name, help=text) for name, text in VERBS_OF_ONE.items()}
        for verb in (listing, *of_one.values()):
            verb.add_argument("--tenant", required=True, metavar="SLUG", help="the tenant")
        for verb in of_one.values():
            verb.add_argument("--user", required=True, metavar="EMAIL", help="the member's e-mail address")
        for name in ("add", "role"):
            of_one[name].add_argument(
                "--role", required=name == "role", choices=ROLES, help="what they may do in the admin"
            )

    def do_list(self, options: dict[str, Any]) -> None:
        """One line a member, by address."""
        members = find_tenant(options["tenant"]).members.select_related("user").order_by("user__email")
        for member in members.iterator(chunk_size=1_000):
            signs_in = "password" if member.user.has_usable_password() else "no password"
            self.stdout.write(one_line(member.user.email, member.role or "none", member.status, signs_in))

    def do_add(self, options: dict[str, Any]) -> None:
        """Add a member, with a role if one is given; who is one already stays so."""
        member = issuing.add_member(find_tenant(options["tenant"]), options["user"])
        if options["role"]:
            roles.set_role(member, ROLES[options["role"]])
        role = f", {options['role']}" if member.role and options["role"] else ""
        self.stdout.write(f"{member.user.email} is a member of {member.tenant.slug}{role}.")
        if role and not member.user.has_usable_password():
            self.note(no_password_yet(member.user.email))
        self.note_if_waiting(member)

    def do_role(self, options: dict[str, Any]) -> None:
        """Give a member a role, or take it away."""
        member = find_member(find_tenant(options["tenant"]), options["user"])
        roles.set_role(member, ROLES[options["role"]])
        has = f"is {options['role']}" if member.role else "has no role"
        self.stdout.write(f"{member.user.email} {has} in {member.tenant.slug}.")
        if member.role and not member.user.has_usable_password():
            self.note(no_password_yet(member.user.email))

    def do_suspend(self, options: dict[str, Any]) -> None:
        """Suspend a member."""
        member = find_member(find_tenant(options["tenant"]), options["user"])
        stopping.suspend_member(member)
        self.stdout.write(f"{member.user.email} is suspended in {member.tenant.slug}: its tokens no longer work.")

    def do_activate(self, options: dict[str, Any]) -> None:
        """Let a suspended member call again."""
        member = find_member(find_tenant(options["tenant"]), options["user"])
        stopping.activate_member(member)
        self.stdout.write(f"{member.user.email} is active in {member.tenant.slug}.")

from argparse import ArgumentParser
from typing import Any

from django.core.validators import validate_email
from django.db import transaction

from config.signin import passwords
from tokens import roles
from tokens.errors import Refused
from tokens.management.base import VerbCommand, moment, no_password_yet, one_line
from tokens.models import User

ROLES = {"finance": "is_finance", "administrator": "is_superuser"}


class Command(VerbCommand):
    help = "List who signs in to the admin, give people the platform's roles, and invite them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        verbs.add_parser("list", help="one line a person with a role: user, roles, whether active, last sign-in")
        for verb, text in (
            ("finance", "may read the books of all tenants; added if missing"),
            ("administrator", "may see and change everything; added if missing"),
        ):
            role = verbs.add_parser(verb, help=text)
            role.add_argument("email", metavar="EMAIL", help="the person's e-mail address")
            role.add_argument("state", choices=("on", "off"), help="give the role, or take it away")
        inviting = verbs.add_parser("invite", help="mail a person with a role a link to choose their password by")
        inviting.add_argument("email", metavar="EMAIL", help="the person's e-mail address")

    def do_list(self, _options: dict[str, Any]) -> None:
        """One line a person, by address."""
        people = User.objects.filter(is_staff=True).order_by("email").prefetch_related("memberships__tenant")
        for person in people.iterator(chunk_size=1_000):
            held, active = ", ".join(roles.in_words(person)), "active" if person.is_active else "inactive"
            self.stdout.write(one_line(person.email, held, active, moment(person.last_login)))

    def do_finance(self, options: dict[str, Any]) -> None:
        """Finance, or not."""
        self._set(options)

    def do_administrator(self, options: dict[str, Any]) -> None:
        """A platform administrator, or not."""
        self._set(options)

    def do_invite(self, options: dict[str, Any]) -> None:
        """Mail the link; it is nowhere else."""
        email = options["email"].strip().lower()
        person = User.objects.filter(email=email).first()
        if person is None:
            raise Refused(f"There is no user {email}.")
        try:
            passwords.invite(person)
        except passwords.NotSent as exc:
            raise Refused(str(exc)) from exc
        self.stdout.write(f"A link to choose a password by was mailed to {email}.")

    @transaction.atomic
    def _set(self, options: dict[str, Any]) -> None:
        email, wanted = options["email"].strip().lower(), options["state"] == "on"
        person = User.objects.select_for_update().filter(email=email).first()
        if person is None and not wanted:
            raise Refused(f"There is no user {email}.")
        if person is None:
            validate_email(email)
            person = User.objects.create_user(email)
        field = ROLES[options["verb"]]
        setattr(person, field, wanted)
        person.save(update_fields=[field])
        role = "platform administrator" if field == "is_superuser" else "finance"
        self.stdout.write(f"{email} is {role}." if wanted else f"{email} is no longer {role}.")
        if wanted and not person.has_usable_password():
            self.note(no_password_yet(email))

import ipaddress
from argparse import ArgumentParser
from typing import Any

from config.addresses import subscriber
from config.signin import factors
from config.signin.pages import ADDRESSES, LINKS, NAMES, STEPS, normal_name
from config.throttling import forget
from tokens.errors import Refused
from tokens.management.base import VerbCommand
from tokens.models import User


class Command(VerbCommand):
    help = "Help people who can't sign in to the admin."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        reset = verbs.add_parser("reset", help="take a person's second factor away: phone and recovery codes are lost")
        reset.add_argument("email", metavar="EMAIL", help="who they are")
        unlock = verbs.add_parser("unlock", help="let a name or an address try again at once after too many tries")
        unlock.add_argument("name", metavar="EMAIL_OR_ADDRESS", help="such as alice@example.com or 203.0.113.7")

    def do_reset(self, options: dict[str, Any]) -> None:
        """Take a second factor away; all sessions of the person end."""
        person = _find(options["email"])
        if not factors.remove(person):
            raise Refused(f"{person} has no second factor.")
        self.stdout.write(f"{person} has no second factor now and is signed out everywhere.")
        if factors.is_required(person):
            self.note("Their role needs one: they are asked to set it up after their next password.")

    def do_unlock(self, options: dict[str, Any]) -> None:
        """Forget what was counted against a name, or an address."""
        name = options["name"].strip()
        try:
            for group, key in _counted(name):
                forget(group, key)
        except Exception as exc:  # the cache is down, in whatever words its client says so
            raise Refused(f"The cache did not answer ({type(exc).__name__}): try again when it is back.") from exc
        self.stdout.write(f"{name} may try again.")


def _find(email: str) -> User:
    person = User.objects.filter(email=normal_name(email)).first()
    if person is None:
        raise Refused(f"There is no {email}.")
    return person


def _counted(name: str) -> list[tuple[str, str]]:
    """What tries are counted under, for an address or the name of a person who need not exist."""
    try:
        return [(ADDRESSES, subscriber(str(ipaddress.ip_address(name))))]
    except ValueError:
        steps = [(STEPS, str(pk)) for pk in User.objects.filter(email=normal_name(name)).values_list("pk", flat=True)]
        return [(NAMES, normal_name(name)), (LINKS, normal_name(name)), *steps]

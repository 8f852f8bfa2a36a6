"""What the commands about tenants, tokens and limits share: finding what is named, and errors as one sentence."""

import datetime as dt
import re
from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now

from tokens import actors, directory, issuing
from tokens.actors import operator as operator
from tokens.admission.connection import StoreUnavailable
from tokens.errors import DATABASE_DOWN, Refused
from tokens.issuing import Scope
from tokens.models import Membership, ProxyToken, Tenant
from tokens.offering import require_offered
from tokens.outbox import Published

MOST_HOURS = 24 * 36_500

_DURATION = re.compile(r"(\d{1,7})([dh])")


class VerbCommand(BaseCommand):
    """A command whose first argument is a verb, carried out by the method ``do_<verb>``.

    Whatever the verbs raise becomes a CommandError: one sentence on standard error and exit code 1.
    """

    requires_system_checks = []

    def handle(self, *_args: Any, **options: Any) -> None:
        """Carry out the verb; the audit trail tells who ran the command."""
        try:
            with actors.acting_as(actors.of_command()):
                getattr(self, f"do_{options['verb'].replace('-', '_')}")(options)
        except ValidationError as exc:
            raise CommandError(sentence(exc)) from exc
        except (Refused, StoreUnavailable) as exc:
            raise CommandError(str(exc)) from exc
        except DATABASE_DOWN as exc:
            raise CommandError("The database did not answer: try again when it is back.") from exc

    def note(self, text: str) -> None:
        """Tell the person something; standard output carries results only."""
        self.stderr.write(text)

    def note_if_waiting(self, changed: Published) -> None:
        """Say so when the admission store has yet to learn of a change."""
        if directory.is_waiting(changed):
            self.note("The admission store did not answer: this takes effect when it is back.")


def sentence(exc: ValidationError) -> str:
    """What is wrong, with the names of the fields where there are any."""
    if not hasattr(exc, "error_dict"):
        return " ".join(exc.messages)
    parts = []
    for name, messages in exc.message_dict.items():
        prefix = "" if name == "__all__" else f"{name}: "
        parts += [f"{prefix}{message}" for message in messages]
    return " ".join(parts)


def one_line(*values: object) -> str:
    """Values separated by tabs; a name can't break the line."""
    return "\t".join(" ".join(str(value).split()) or "-" for value in values)


def moment(at: dt.datetime | None, none: str = "never") -> str:
    """A time in UTC, to the second."""
    return none if at is None else at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def find_tenant(slug: str) -> Tenant:
    """The tenant of that short name. Raises Refused."""
    tenant = Tenant.objects.filter(slug=slug).first()
    if tenant is None:
        raise Refused(f"There is no tenant {slug!r}.")
    return tenant


def find_member(tenant: Tenant, email: str) -> Membership:
    """The tenant's member with that e-mail address. Raises Refused."""
    member = tenant.members.filter(user__email=email.strip().lower()).first()
    if member is None:
        raise Refused(f"Tenant {tenant.slug} has no member {email}.")
    return member


def find_token(token_id: int) -> ProxyToken:
    """The token with that id. Raises Refused."""
    token = ProxyToken.objects.select_related("tenant", "member__user").filter(pk=token_id).first()
    if token is None:
        raise Refused(f"There is no token {token_id}.")
    return token


def no_password_yet(email: str) -> str:
    """What is missing before somebody with a role can sign in."""
    ways = f"`manage.py user invite {email}`, or set one with `manage.py changepassword {email}`"
    return f"There is no password yet: mail them a link with {ways}."


def add_scope_arguments(parser: ArgumentParser) -> None:
    """``--tenant`` with one of ``--user`` and ``--token``, or neither."""
    parser.add_argument("--tenant", required=True, metavar="SLUG", help="the tenant")
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--user", metavar="EMAIL", help="only this member of the tenant")
    scope.add_argument("--token", type=int, metavar="TOKEN_ID", help="only this token of the tenant")


def find_scope(options: dict[str, Any]) -> Scope:
    """What `add_scope_arguments` named. Raises Refused."""
    tenant = find_tenant(options["tenant"])
    if options["user"]:
        return find_member(tenant, options["user"])
    if options["token"] is None:
        return tenant
    token = find_token(options["token"])
    if token.tenant_id != tenant.pk:
        raise Refused(f"Token {token.pk} belongs to another tenant.")
    return token


def describe(scope: Scope) -> str:
    """What a limit applies to, in words."""
    if isinstance(scope, Tenant):
        return f"tenant {scope.slug}"
    if isinstance(scope, Membership):
        return f"member {scope.user.email}"
    return f"token {scope.pk}"


def parse_duration(text: str) -> dt.timedelta:
    """Read ``90d`` or ``12h``. Raises Refused."""
    match = _DURATION.fullmatch(text.strip())
    hours = int(match[1]) * (24 if match[2] == "d" else 1) if match else MOST_HOURS + 1
    if hours > MOST_HOURS:
        raise Refused(f"{text!r} is not a duration: write days or hours, such as 90d or 12h.")
    return dt.timedelta(hours=hours)


def parse_expiry(text: str, tenant: Tenant, at: dt.datetime) -> dt.datetime:
    """Read a duration from now on, or an ISO date or time; without an offset it is the tenant's. Raises Refused."""
    if _DURATION.fullmatch(text.strip()):
        return at + parse_duration(text)
    try:
        moment = dt.datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=tenant.zone(at))
        return moment.astimezone(dt.UTC)
    except (ValueError, OverflowError) as exc:
        raise Refused(f"{text!r} is not an expiry: write 90d, 12h, or a date such as 2027-01-31.") from exc


def read_expiry(text: str, tenant: Tenant) -> dt.datetime:
    """A time to come, in the tenant's time zone. Raises Refused."""
    expires_at = parse_expiry(text, tenant, now())
    if expires_at <= now():
        raise Refused(issuing.TOO_LATE)
    return expires_at


def issue_options(options: dict[str, Any], at: dt.datetime) -> tuple[Membership, dict[str, Any]]:
    """The member to issue for, added if missing, and the verb's other arguments. Within a transaction."""
    tenant = find_tenant(options["tenant"])
    expires_at = parse_expiry(options["expires"], tenant, at) if options["expires"] else None
    member = issuing.add_member(tenant, options["user"])
    return member, {
        "expires_at": expires_at,
        "networks": options["network"],
        "model": require_offered(options["model"]),
        "limit_texts": options["limit"],
        "created_by": operator(),
        "usual_limits": not options["without_usual_limits"],
    }

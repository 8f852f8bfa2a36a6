import sys
from argparse import ArgumentParser
from typing import Any

from django.db import transaction
from django.utils.timezone import now

from tokens import issuing, stopping
from tokens.errors import Refused
from tokens.management.base import (
    VerbCommand,
    find_tenant,
    find_token,
    issue_options,
    moment,
    one_line,
    operator,
    parse_duration,
    read_expiry,
)
from tokens.models import ProxyToken, Secret, TokenStatus
from tokens.offering import require_offered

VERBS_OF_ONE = {
    "show": "all about a token but its secret",
    "set": "change a token; what isn't given stays",
    "rotate": "give a token a new secret, printed alone on standard output",
    "revoke": "revoke a token for good, or end the old secret of a rotation",
    "end-grace": "end the old secret of a rotation now",
}


class Command(VerbCommand):
    help = "Issue, list, show, change, rotate, revoke and import proxy tokens."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        issue = verbs.add_parser("issue", help="issue a token; its secret is printed alone on standard output, once")
        importing = verbs.add_parser(
            "import", help="make a token of a former system's secret, read from standard input"
        )
        for verb in (issue, importing):
            verb.add_argument("--tenant", required=True, metavar="SLUG", help="the tenant")
            verb.add_argument("--user", required=True, metavar="EMAIL", help="the member; added if missing")
            verb.add_argument("--name", required=True, help="what the token is for")
            verb.add_argument("--expires", metavar="WHEN", help="90d, 12h, or a date such as 2027-01-31")
            verb.add_argument(
                "--limit", action="append", default=[], metavar="LIMIT", help="such as images:500/day; may be repeated"
            )
            verb.add_argument(
                "--network", action="append", default=[], metavar="NET", help="such as 203.0.113.0/24; may be repeated"
            )
            verb.add_argument("--model", default="", metavar="NAME", help="answers its calls, instead of the tenant's")
            verb.add_argument(
                "--without-usual-limits", action="store_true", help="without what the tenant's plan gives to new tokens"
            )
        listing = verbs.add_parser(
            "list", help="one line a token: id, name, tenant, user, status, first characters, expiry, last use"
        )
        listing.add_argument("--tenant", metavar="SLUG", help="only this tenant's")
        of_one = {name: verbs.add_parser(name, help=text) for name, text in VERBS_OF_ONE.items()}
        for verb in of_one.values():
            verb.add_argument("token_id", type=int, metavar="TOKEN_ID", help="its id, as `token list` shows it")
        changing = of_one["set"]
        changing.add_argument("--name", help="what the token is for")
        changing.add_argument("--expires", metavar="WHEN", help="90d, 12h, a date such as 2027-01-31, or never")
        changing.add_argument("--model", metavar="NAME", help='answers its calls; "" for the tenant\'s')
        networks = changing.add_mutually_exclusive_group()
        networks.add_argument("--network", action="append", metavar="NET", help="the only ones; may be repeated")
        networks.add_argument("--all-networks", action="store_true", help="wherever it is used from")
        of_one["rotate"].add_argument(
            "--grace", default="24h", metavar="DURATION", help="how long the old one is accepted (default: 24h)"
        )
        of_one["revoke"].add_argument("--secret", choices=["old"], help="end the old secret of a rotation only")
        of_one["revoke"].add_argument("--reason", default="", help="kept with the token")

    def do_issue(self, options: dict[str, Any]) -> None:
        """Issue a token."""
        with transaction.atomic():
            member, chosen = issue_options(options, now())
            token, secret = issuing.issue_token(member, options["name"], **chosen)
        self.stdout.write(secret)
        self.note(f"Token {token.pk} is issued. Its secret is shown this once.")
        self.note_if_waiting(token)

    def do_import(self, options: dict[str, Any]) -> None:
        """Make a token of the secret on standard input."""
        secret = sys.stdin.readline().strip()
        with transaction.atomic():
            member, chosen = issue_options(options, now())
            token = issuing.import_token(member, options["name"], secret, **chosen)
        self.stdout.write(f"Token {token.pk} is imported.")
        self.note_if_waiting(token)

    def do_list(self, options: dict[str, Any]) -> None:
        """One line a token, oldest first."""
        tokens = ProxyToken.objects.order_by("pk").select_related("tenant", "member__user").prefetch_related("secrets")
        if options["tenant"]:
            tokens = tokens.filter(tenant=find_tenant(options["tenant"]))
        for token in tokens.iterator(chunk_size=1_000):
            self.stdout.write(_line(token))

    def do_show(self, options: dict[str, Any]) -> None:
        """All about one token."""
        token = find_token(options["token_id"])
        facts = {
            "id": token.pk,
            "name": token.name,
            "tenant": token.tenant.slug,
            "user": token.member.user.email,
            "status": token.status,
            "created": f"{moment(token.created_at)} by {token.created_by or 'unknown'}",
            "expires": moment(token.expires_at),
            "networks": ", ".join(token.networks) or "all",
            "model": token.model or "the tenant's",
            "limits": ", ".join(str(limit) for limit in issuing.limits_of(token)) or "none of its own",
        }
        if token.revoked_at is not None:
            facts["revoked"] = f"{moment(token.revoked_at)} by {token.revoked_by or 'unknown'}"
            facts["reason"] = token.revoke_reason or "-"
        for name, value in facts.items():
            self.stdout.write(f"{name + ':':<10} {' '.join(str(value).split())}")
        for secret in token.secrets.all():
            self.stdout.write(f"{'secret:':<10} {_describe_secret(secret)}")

    def do_set(self, options: dict[str, Any]) -> None:
        """Change what is given."""
        with transaction.atomic():
            token = self._set(options)
        self.stdout.write(f"Token {token.pk} is changed.")
        self.note_if_waiting(token)

    def _set(self, options: dict[str, Any]) -> ProxyToken:
        token = ProxyToken.objects.select_for_update(no_key=True).get(pk=find_token(options["token_id"]).pk)
        if token.status == TokenStatus.REVOKED:
            raise Refused(f"Token {token.pk} is revoked, which is final. Issue another one.")
        given: dict[str, Any] = {name: options[name] for name in ("name", "model") if options[name] is not None}
        require_offered(given.get("model", ""))
        if options["expires"]:
            forever = options["expires"] == "never"
            given["expires_at"] = None if forever else read_expiry(options["expires"], token.tenant)
        if options["network"] or options["all_networks"]:
            given["networks"] = options["network"] or []
        if not given:
            raise Refused("Say what to change, such as --expires or --network.")
        for name, value in given.items():
            setattr(token, name, value)
        token.full_clean()
        token.save(update_fields=list(given))
        return token

    def do_rotate(self, options: dict[str, Any]) -> None:
        """Give a token a new secret."""
        token = find_token(options["token_id"])
        grace = parse_duration(options["grace"])
        secret = issuing.rotate(token, grace)
        self.stdout.write(secret)
        until = f"accepted until {moment(now() + grace)}" if grace else "no longer accepted"
        self.note(f"Token {token.pk} has a new secret, shown this once; the old one is {until}.")
        self.note_if_waiting(token)

    def do_revoke(self, options: dict[str, Any]) -> None:
        """Revoke a token, in the admission store first; or end its old secret."""
        if options["secret"]:
            self.do_end_grace(options)
            return
        token_id = options["token_id"]
        durable = stopping.revoke(token_id, operator(), options["reason"])
        self.stdout.write(f"Token {token_id} is revoked.")
        if not durable:
            self.note("The database did not answer: the admission store keeps the revocation until it is back.")

    def do_end_grace(self, options: dict[str, Any]) -> None:
        """End the old secret of a rotated token now."""
        token = find_token(options["token_id"])
        issuing.end_grace(token)
        self.stdout.write(f"The old secret of token {token.pk} is no longer accepted.")


def _line(token: ProxyToken) -> str:
    secrets = [secret for secret in token.secrets.all() if secret.ended_at is None]
    used = [secret.last_used_at for secret in token.secrets.all() if secret.last_used_at]
    return one_line(
        token.pk,
        token.name,
        token.tenant.slug,
        token.member.user.email,
        token.status,
        secrets[0].shown if secrets else "-",
        moment(token.expires_at),
        moment(max(used, default=None)),
    )


def _describe_secret(secret: Secret) -> str:
    if secret.ended_at is not None:
        state = f"ended {moment(secret.ended_at)}"
    elif secret.accepted_until is not None:
        state = f"old, accepted until {moment(secret.accepted_until)}"
    else:
        state = "current"
    used = "never used"
    if secret.last_used_at is not None:
        source = secret.last_used_from or "unknown"
        used = f"last used {moment(secret.last_used_at)} from {source} by {secret.last_used_by or 'unknown'}"
    return " ".join(f"{secret}  {state}; {used}".split())

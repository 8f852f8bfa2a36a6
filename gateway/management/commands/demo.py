"""``manage.py demo``: a tenant to try the gateway with, drawn for by the sandbox provider."""

import datetime as dt
import json
from argparse import ArgumentParser
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.db.models import Q
from django.utils.timezone import now

from gateway.models import Model
from gateway.providers import make_default, set_model, set_provider
from tokens.issuing import add_member, create_tenant, issue_token
from tokens.models import Membership, Secret, Tenant, TokenStatus, User
from tokens.secrets import digests, is_plausible
from usage.models import Price

TENANT, USER, ADMIN = "demo", "demo@example.com", "admin@example.com"
PROVIDER, MODEL = "sandbox", "gem-1"
SIZES = {"256x256": 1200, "512x512": 2400, "1024x1024": 4800, "1536x1024": 7200, "1024x1536": 7200}
LIMITS = ["requests:300/minute", "concurrent:16", "images:1000/day", "tokens:5000000/month"]
PRICE_PER_IMAGE = Decimal("0.04")  # USD


class Command(BaseCommand):
    help = (
        "Set up the demo: the sandbox provider with its model, the tenant `demo` with a member and a token, and an"
        " administrator. Prints one line of JSON. Safe to repeat: what people changed in the demo tenant stays."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--sandbox-url", required=True, metavar="URL", help="where the sandbox provider listens")
        parser.add_argument("--sandbox-key-file", required=True, metavar="FILE", help="file that holds its key")
        parser.add_argument(
            "--admin-password-file", required=True, metavar="FILE", help=f"file that holds the password of {ADMIN}"
        )
        parser.add_argument(
            "--token-file", metavar="FILE", help="file that holds the demo token of an earlier run, kept if it works"
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        key, password = _read(options["sandbox_key_file"]), _read(options["admin_password_file"])
        if not password:
            raise CommandError(f"{options['admin_password_file']} is empty: the administrator needs a password.")
        former = _read(options["token_file"]) if options["token_file"] else ""
        try:
            _set_up_sandbox(options["sandbox_url"], key)
            member = _set_up_tenant()
            token = former if former and _works(former, member) else issue_token(member, "demo")[1]
        except ValidationError as exc:
            raise CommandError(" ".join(exc.messages)) from exc
        _set_up_admin(password)
        details = {"token": token, "tenant": TENANT, "user": USER, "admin_username": ADMIN}
        self.stdout.write(json.dumps(details))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise CommandError(f"{path} can't be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise CommandError(f"{path} can't be read: it is not UTF-8 text.") from exc


@transaction.atomic
def _set_up_sandbox(url: str, key: str) -> None:
    base_url = url.rstrip("/") if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1"
    provider = set_provider(PROVIDER, base_url, key)
    # Its bounds are the sandbox's own, so they aren't for people to change.
    model = set_model(provider, MODEL, sizes=SIZES, answer_form=Model.AnswerForm.B64_JSON)
    if not Model.objects.filter(default=True).exists():
        make_default(model)
    # From yesterday on: a tenant's day may be a day behind ours.
    since = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
    if not Price.objects.filter(model=MODEL).exists():
        Price.objects.create(model=MODEL, per_image=PRICE_PER_IMAGE, currency="USD", valid_from=since)


@transaction.atomic
def _set_up_tenant() -> Membership:
    tenant = Tenant.objects.filter(slug=TENANT).first()
    if tenant is None:
        tenant = create_tenant(TENANT, "Demo", limit_texts=LIMITS)
        tenant.origins = ["*"]
        tenant.save(update_fields=["origins"])
    return add_member(tenant, USER)


def _works(secret: str, member: Membership) -> bool:
    """Whether an earlier run's token can still be used; nothing else than a secret of this member counts."""
    if not is_plausible(secret):
        return False
    known = Secret.objects.filter(
        digest__in=digests(secret, settings.TOKEN_PEPPERS),
        accepted_until=None,
        ended_at=None,
        token__member=member,
        token__status=TokenStatus.ACTIVE,
    )
    return known.filter(Q(token__expires_at=None) | Q(token__expires_at__gt=now())).exists()


def _set_up_admin(password: str) -> None:
    user = User.objects.filter(email=ADMIN).first()
    if user is None:
        User.objects.create_superuser(ADMIN, password)
        return
    user.is_active = user.is_staff = user.is_superuser = True
    if not user.check_password(password):  # setting it again would end the sessions of the run before
        user.set_password(password)
    user.save()

"""``manage.py bootstrap``: what a start needs between `migrate` and the first call."""

import datetime as dt
from typing import Any

import redis
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from config import checks
from gateway import catalog
from gateway.providers import set_from_environment
from tokens.admission.connection import StoreUnavailable
from tokens.installation import ensure_installation
from usage import guardian
from usage.partitions import create_partitions


class Command(BaseCommand):
    help = (
        "Prepare the database and the admission store after `migrate`: the number of shards, the ledger's partitions,"
        " the provider that PROVIDER_BASE_URL, PROVIDER_API_KEY and PROVIDER_MODEL describe, the token directory and"
        " the catalog. Safe to repeat; run it at every start."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        checks.refuse_unsafe()
        ensure_installation()
        create_partitions(dt.datetime.now(dt.UTC).date())
        model = set_from_environment(settings.PROVIDER_BASE_URL, settings.PROVIDER_API_KEY, settings.PROVIDER_MODEL)
        if model is not None:
            role = "answers" if model.default else "is there, but another model answers,"
            self.stdout.write(f"{model.name} of {model.provider.base_url} {role} tenants that name no model.")
        try:
            if guardian.confirm() == "fenced":
                self.stdout.write(
                    f"The admission store lost data. It is rebuilt from PostgreSQL once every call in flight has ended,"
                    f" at most {settings.LEASE_SECONDS:.0f} s from now; until then calls get 503."
                )
            catalog.publish()
        except (redis.RedisError, StoreUnavailable) as exc:
            raise CommandError("The admission store at REDIS_URL did not answer: start it, then try again.") from exc

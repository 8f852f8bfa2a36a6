"""What the benchmarks do in the gateway's books, in a process of its own: ``python -m bench.books VERB ...``.

``prepare`` sets the database up; ``tenant SLUG LIMITS...`` makes a tenant and prints its token; ``count SLUG`` books
what waits in the streams and prints how many calls of the tenant the ledger has; ``roundtrips CORE SECONDS LIMITS...``
times the two scripts of a call. What the scale tests need stands in bench.bulk.
"""

import json
import os
import sys
from collections.abc import Callable
from secrets import token_hex

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.core.management import call_command  # noqa: E402  (models need the set-up above)
from django.db.models import Count, Sum  # noqa: E402

from bench import bulk, roundtrips  # noqa: E402
from tokens import issuing  # noqa: E402
from usage.drain import drain  # noqa: E402
from usage.models import UsageRecord  # noqa: E402


def prepare() -> str:
    """Migrate, and set up the provider of ``PROVIDER_*``."""
    call_command("migrate", interactive=False, verbosity=0, stdout=sys.stderr)
    call_command("bootstrap", stdout=sys.stderr)
    return ""


def tenant(slug: str, *limits: str) -> str:
    """A tenant, a member and a token, each with the limits that begin with its scope: ``token=requests:60/minute``."""
    by_scope: dict[str, list[str]] = {"tenant": [], "member": [], "token": []}
    for limit in limits:
        scope, _, text = limit.partition("=")
        by_scope[scope].append(text)
    made = issuing.create_tenant(slug, slug, "Europe/Berlin", limit_texts=by_scope["tenant"])
    member = issuing.add_member(made, f"{slug}@example.com")
    issuing.set_limits(member, by_scope["member"])
    return issuing.issue_token(member, slug, limit_texts=by_scope["token"])[1]


def count(slug: str) -> str:
    """Drain the streams; then as JSON the tenant's `exact` and `other` records, and the `tokens` charged."""
    while drain():
        pass
    records = UsageRecord.objects.filter(tenant__slug=slug)
    by_kind = dict(records.values_list("kind").annotate(Count("id")))
    exact = by_kind.pop("exact", 0)
    tokens = records.aggregate(tokens=Sum("charged_tokens"))["tokens"] or 0
    return json.dumps({"exact": exact, "other": sum(by_kind.values()), "tokens": int(tokens)})


def time_scripts(core: str, seconds: str, *limits: str) -> str:
    """The median of a call's two scripts, in milliseconds, for a tenant of its own with these limits."""
    return str(roundtrips.median_ms(tenant(f"scripts-{token_hex(4)}", *limits), int(core), float(seconds)))


VERBS: dict[str, Callable[..., str]] = {
    "prepare": prepare,
    "tenant": tenant,
    "count": count,
    "roundtrips": time_scripts,
    "directory": bulk.directory,
    "no-rewrites": bulk.no_rewrites,
    "events": bulk.events,
    "drain": bulk.drain_all,
    "ledger": bulk.ledger,
    "month": bulk.month_report,
    "session": bulk.session,
}

if __name__ == "__main__":
    print(VERBS[sys.argv[1]](*sys.argv[2:]))

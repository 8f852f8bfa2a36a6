"""What the benchmark does in the gateway's books, in a process of its own: ``python -m bench.books prepare|count``.

``prepare`` makes a tenant with limits in every scope and prints a token; ``count`` books what waits in the streams
and prints, as JSON, how many calls the ledger has and the tokens charged for them.
"""

import json
import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.core.management import call_command  # noqa: E402  (models need the set-up above)
from django.db.models import Count, Sum  # noqa: E402

from tokens import issuing  # noqa: E402
from usage.drain import drain  # noqa: E402
from usage.models import UsageRecord  # noqa: E402

# One of each kind (rate, quota, concurrency), spread over the scopes, far above what a benchmark can take.
TENANT_LIMITS = ["images:50000000/day", "tokens:90000000000/month", "concurrent:4000"]
MEMBER_LIMITS = ["images:40000000/day", "tokens:80000000000/month"]
TOKEN_LIMITS = ["requests:30000000/minute", "concurrent:3000"]


def prepare() -> str:
    """Migrate, set up the provider of ``PROVIDER_*``, and issue a token; returns it."""
    call_command("migrate", interactive=False, verbosity=0, stdout=sys.stderr)
    call_command("bootstrap", stdout=sys.stderr)
    tenant = issuing.create_tenant("bench", "Bench", "Europe/Berlin", limit_texts=TENANT_LIMITS)
    member = issuing.add_member(tenant, "bench@example.com")
    issuing.set_limits(member, MEMBER_LIMITS)
    return issuing.issue_token(member, "bench", limit_texts=TOKEN_LIMITS)[1]


def count() -> dict[str, int]:
    """Drain the streams; then `exact` and `other` records, and the `tokens` charged."""
    while drain():
        pass
    by_kind = dict(UsageRecord.objects.values_list("kind").annotate(Count("id")))
    exact = by_kind.pop("exact", 0)
    tokens = UsageRecord.objects.aggregate(tokens=Sum("charged_tokens"))["tokens"] or 0
    return {"exact": exact, "other": sum(by_kind.values()), "tokens": int(tokens)}


if __name__ == "__main__":
    print(prepare() if sys.argv[1] == "prepare" else json.dumps(count()))

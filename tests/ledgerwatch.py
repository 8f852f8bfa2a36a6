"""Watching the ledger from a test: what became of a call, once the streams are drained."""

import time
from collections.abc import Iterable

from django.conf import settings

from config.redis import store
from tests.conftest import Customer
from tokens.admission import keys
from usage.drain import drain
from usage.models import DailyUsage, Kind, UsageRecord


def outcome(request_id: str, seconds: float = 10) -> UsageRecord:
    """The newest ledger row of a call; waits for it."""
    end = time.monotonic() + seconds
    while True:
        drain()
        row = UsageRecord.objects.filter(request_id=request_id).order_by("-number").first()
        if row is not None:
            return row
        assert time.monotonic() < end, f"no ledger row of {request_id} within {seconds} s"
        time.sleep(0.05)


def rows(customer: Customer, seconds: float = 20) -> list[UsageRecord]:
    """All ledger rows of a customer's tenant, once its shard's stream is empty: another process may drain it, too."""
    end = time.monotonic() + seconds
    drain()
    while store().xlen(keys.usage(_shard(customer))):
        assert time.monotonic() < end, f"the stream was not drained within {seconds} s"
        time.sleep(0.05)
        drain()
    return list(UsageRecord.objects.filter(tenant=customer.tenant).order_by("request_id", "number"))


def check_books(customers: Iterable[Customer]) -> None:
    """One primary row a call, and rollups that equal the ledger."""
    for customer in customers:
        primaries, sums = 0, {"requests": 0, "images": 0, "charged_tokens": 0, "unresolved_requests": 0}
        seen: dict[object, UsageRecord] = {}
        totals: dict[object, tuple[int, int]] = {}
        for row in rows(customer):
            primaries += row.kind != Kind.CORRECTION
            seen[row.request_id] = row
            images, charged = totals.get(row.request_id, (0, 0))
            totals[row.request_id] = images + row.images, charged + row.charged_tokens
        assert primaries == len(seen)
        for request_id, row in seen.items():
            sums["unresolved_requests"] += row.outcome == Kind.UNRESOLVED
            if row.outcome == Kind.EXACT:
                sums["requests"] += 1
                sums["images"] += totals[request_id][0]
                sums["charged_tokens"] += totals[request_id][1]
        rollups = DailyUsage.objects.filter(tenant=customer.tenant)
        assert {name: sum(rollups.values_list(name, flat=True)) for name in sums} == sums


def in_flight(customer: Customer) -> int:
    """The reservations of a tenant that are open."""
    return int(store().zcard(keys.inflight(_shard(customer), f"tenant:{customer.tenant.pk}")))


def _shard(customer: Customer) -> int:
    return keys.shard_of(customer.tenant.pk, settings.SHARDS)

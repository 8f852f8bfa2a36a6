"""What the use counters of the admission store must say: the ledger's sums for the periods that are open now."""

import datetime as dt
from typing import Any, NamedTuple

from django.conf import settings
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Sum

from tokens.admission import keys
from tokens.admission.periods import Calendar, open_periods
from tokens.models import Limit, Period, Tenant
from usage.models import Kind, UsageRecord
from usage.partitions import least_request_id
from usage.unresolved import admitted_between

WEEK = 7 * 86_400
METRICS = ("requests", "images", "tokens")
NO_DELAY = dt.timedelta(0)
LONGEST_MONTH = dt.timedelta(days=33)  # with the days that some zone is behind or ahead


class Use(NamedTuple):
    """What is used by one scope in one period, as charged. Requests are those that may have reached a provider."""

    requests: int
    images: int
    tokens: int

    def fields(self) -> dict[str, int]:
        """The counter's hash, with nothing reserved."""
        return {**self._asdict(), **{f"reserved_{name}": 0 for name in METRICS}}


class Expected(NamedTuple):
    """A counter's figures, and when the store may delete it (epoch seconds; 0: never)."""

    use: Use
    expires: int


def expected(tenant: Tenant, at: float, total_delay: dt.timedelta = NO_DELAY) -> dict[str, Expected]:
    """By key, the counters that a tenant, its members and tokens need at `at` (epoch seconds).

    Day and month where anything was used; each `total` quota from its creation, or from `total_delay` after it.
    Only the ledger's partitions of those times are read: the sums cost no more as a tenant grows old.
    """
    shard = keys.shard_of(tenant.pk, settings.SHARDS)
    changes_at = int(tenant.next_timezone_from.timestamp()) if tenant.next_timezone_from else 0
    periods = open_periods(Calendar(tenant.timezone, tenant.next_timezone, changes_at), at)
    records = UsageRecord.objects.filter(tenant=tenant)
    today = dt.date.fromisoformat(periods.day)
    found = {}
    for period, first, end in (
        (f"day:{periods.day}", today, periods.day_end),
        (f"month:{periods.month}", today.replace(day=1), periods.month_end),
    ):
        rows = admitted_between(records, first, today)
        for scope in ("tenant", "member", "token"):
            for number, use in sums(rows, scope):
                found[keys.use(shard, f"{scope}:{number}", period)] = Expected(use, end + WEEK)
    for limit in Limit.objects.filter(tenant=tenant, period=Period.TOTAL):
        scope, number = owner(limit)
        since = (limit.created_at + total_delay).astimezone(dt.UTC)
        # By the request id, too, which finds the partitions; the bound is the midnight before.
        rows = records.filter(request_id__gte=least_request_id(since.date()), at__gte=since, **{f"{scope}_id": number})
        for _, use in sums(rows, scope):
            found[keys.use(shard, f"{scope}:{number}", f"total:{limit.pk}")] = Expected(use, 0)
    return found


def counted(at: float) -> QuerySet[Tenant]:
    """The tenants that may need counters or rates at `at` (epoch seconds): `expected` has nothing for any other.

    They have used something since before any period began that is open somewhere, or have a quota without an end.
    """
    first = dt.datetime.fromtimestamp(at, dt.UTC).date() - LONGEST_MONTH
    recent = UsageRecord.objects.filter(tenant=OuterRef("pk"), request_id__gte=least_request_id(first))
    totals = Limit.objects.filter(tenant=OuterRef("pk"), period=Period.TOTAL)
    return Tenant.objects.filter(Exists(recent) | Exists(totals)).order_by("pk")


def owner(limit: Limit) -> tuple[str, int]:
    """The scope that a limit is for: "token", "member" or "tenant", and its id."""
    if limit.token_id:
        return "token", limit.token_id
    return ("member", limit.member_id) if limit.member_id else ("tenant", limit.tenant_id)


def sums(rows: Any, scope: str) -> list[tuple[int, Use]]:
    """The use in ledger rows by tenant, member or token (its id)."""
    never_sent = Q(outcome=Kind.VOID, reason="not_dispatched")
    counted = Count("pk", filter=~Q(kind=Kind.CORRECTION) & ~never_sent)
    given_back = Count("pk", filter=Q(kind=Kind.CORRECTION) & never_sent)
    found = rows.values_list(f"{scope}_id").annotate(
        calls=counted - given_back, delivered=Sum("images"), charged=Sum("charged_tokens")
    )
    return [(number, Use(calls, images or 0, tokens or 0)) for number, calls, images, tokens in found.order_by()]

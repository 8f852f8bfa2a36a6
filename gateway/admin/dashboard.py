"""The page that people land on: today's calls, what they cost, and what needs somebody's attention."""

import datetime as dt
from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import redis
from django.contrib import admin
from django.db.models import Sum
from django.http import HttpRequest
from django.utils.timezone import now

from config.redis import PAGE_SECONDS, store
from gateway.models import Model
from tokens.models import ProxyToken, Tenant
from usage import drain
from usage.models import Alarm, DailyUsage, QuarantinedEvent, UsageRecord
from usage.unresolved import admitted_between, still_unresolved

TENANTS_SHOWN = 12
ONE_DAY = dt.timedelta(days=1)
CENT = Decimal("0.01")
METRICS = ("requests", "images", "tokens")


admin.site.index_title = "Today"


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the figures to the landing page's context (unfold calls this). "Today" is each tenant's own day.

    Nothing for a user who may not see usage: the figures are all tenants'.
    """
    if not request.user.has_perm("usage.view_dailyusage"):
        return context
    rows = todays_rows()
    totals: dict[str, int] = {metric: sum(row[metric] for row in rows) for metric in METRICS}
    costs: dict[str, Decimal] = defaultdict(Decimal)
    for row in rows:
        for currency, cost in row["costs"].items():
            costs[currency] += cost
    # Older months are closed, and the ledger only grows: counting all of it would take ever longer.
    since = (now().date().replace(day=1) - ONE_DAY).replace(day=1)
    context |= {
        "totals": totals,
        "costs": money(costs),
        "tenants_today": [{**row, "costs": money(row["costs"])} for row in rows[:TENANTS_SHOWN]],
        "alarms": Alarm.objects.filter(closed_at=None).count(),
        "unresolved": still_unresolved(admitted_between(UsageRecord.objects.order_by(), since, None)).count(),
        "unresolved_since": since,
        "quarantined": QuarantinedEvent.objects.filter(resolved_at=None).count(),
        "has_tenants": Tenant.objects.exists(),
        "has_tokens": ProxyToken.objects.exists(),
        "has_default": Model.objects.filter(active=True, default=True).exists(),
    }
    try:
        context["backlog"] = events_waiting()
    except redis.RedisError:
        context["store_away"] = True
    return context


def events_waiting() -> int:
    """The usage events that aren't in the books yet. Raises redis.RedisError."""
    pipeline = store(PAGE_SECONDS).pipeline(transaction=False)
    for stream in drain.streams():
        pipeline.xlen(stream)
    return sum(pipeline.execute())


def todays_rows() -> list[dict[str, Any]]:
    """The tenants that called today, most calls first: tenant, requests, images, tokens, costs by currency."""
    at = now()
    utc = at.date()
    nearby = DailyUsage.objects.filter(booked_day__range=(utc - ONE_DAY, utc + ONE_DAY))
    sums = nearby.values("tenant_id", "booked_day", "currency").annotate(
        calls=Sum("requests"), pictures=Sum("images"), charged=Sum("charged_tokens"), money=Sum("cost")
    )
    found = list(sums.order_by())
    tenants = Tenant.objects.in_bulk({row["tenant_id"] for row in found})
    rows: dict[int, dict[str, Any]] = {}
    for row in found:
        tenant = tenants[row["tenant_id"]]
        if row["booked_day"] != at.astimezone(tenant.zone(at)).date():
            continue
        mine = rows.setdefault(tenant.pk, {"tenant": tenant, "requests": 0, "images": 0, "tokens": 0, "costs": {}})
        mine["requests"] += row["calls"]
        mine["images"] += row["pictures"]
        mine["tokens"] += row["charged"]
        if row["currency"]:
            mine["costs"][row["currency"]] = row["money"]
    return sorted(rows.values(), key=lambda row: (-row["requests"], row["tenant"].slug))


def money(costs: dict[str, Decimal]) -> str:
    """Amounts for people, to the cent: ``12.40 EUR``; "–" where no price is known."""
    written = [f"{cost.quantize(CENT, ROUND_HALF_UP):,} {currency}" for currency, cost in sorted(costs.items())]
    return ", ".join(written) or "–"

"""Which quotas have reached a threshold: read from the store's use counters, never on a call's path.

Only tenants who are told somewhere are looked at, and of their quotas only those of members and tokens that were used
since yesterday: a quota that nobody uses reaches nothing.
"""

import datetime as dt
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef, Q
from django.utils.timezone import now

from config.redis import store
from tokens.admission import keys
from tokens.admission.periods import Calendar, open_periods
from tokens.models import Limit, Metric, Period, Tenant
from usage.alerting import addresses
from usage.alertrows import Channel, usual_thresholds
from usage.counters import owner
from usage.models import Alert, AlertDelivery, AlertSetting, DailyUsage, Webhook

BATCH = 1_000  # quotas whose counters are read at once
KEPT_DAYS = 400
DELETED_AT_ONCE = 5_000
QUOTAS = (Period.DAY, Period.MONTH, Period.TOTAL)


class Reached(NamedTuple):
    """A quota with what is used of it in one of its periods, and the thresholds that this reaches."""

    limit: Limit
    period_name: str
    used: int
    thresholds: tuple[int, ...]


def check(at: float | None = None) -> int:
    """Note every threshold that was reached and not yet told; returns their number. Raises redis.RedisError.

    `at` is in epoch seconds, otherwise now. May run twice at once: a threshold is told once.
    """
    moment = time.time() if at is None else at
    told = 0
    for tenant in listeners():
        setting = AlertSetting.objects.filter(tenant=tenant).first()
        thresholds = setting.thresholds if setting is not None else usual_thresholds()
        emails = setting.emails if setting is not None else []
        for reached in _reached(tenant, sorted(set(thresholds)), moment):
            told += sum(_tell(tenant, reached, threshold, emails) for threshold in reached.thresholds)
    return told


def listeners() -> list[Tenant]:
    """The tenants who are told somewhere."""
    mailed = Exists(AlertSetting.objects.filter(tenant=OuterRef("pk")).exclude(emails=[]))
    called = Exists(Webhook.objects.filter(tenant=OuterRef("pk"), active=True))
    return list(Tenant.objects.filter(mailed | called).order_by("pk"))


def forget_old(at: dt.datetime | None = None) -> int:
    """Delete some alerts that are long past, with their deliveries. Those of totals stay: they are told only once."""
    limit = (at or now()) - dt.timedelta(days=KEPT_DAYS)
    old = Alert.objects.filter(at__lt=limit).exclude(period=Period.TOTAL).order_by("at").values_list("pk", flat=True)
    return Alert.objects.filter(pk__in=list(old[:DELETED_AT_ONCE])).delete()[0]


def _reached(tenant: Tenant, thresholds: list[int], at: float) -> Iterator[Reached]:
    changes_at = int(tenant.next_timezone_from.timestamp()) if tenant.next_timezone_from else 0
    periods = open_periods(Calendar(tenant.timezone, tenant.next_timezone, changes_at), at)
    names = {Period.DAY: f"day:{periods.day}", Period.MONTH: f"month:{periods.month}"}
    since = dt.date.fromisoformat(periods.day) - dt.timedelta(days=1)
    for limits in _batches(_quotas(tenant, since)):
        named = [(limit, names.get(Period(limit.period), f"total:{limit.pk}")) for limit in limits]
        for (limit, name), used in zip(named, _used(tenant, named), strict=True):
            passed = tuple(threshold for threshold in thresholds if used * 100 >= threshold * limit.amount)
            if passed:
                yield Reached(limit, name, used, passed)


def _quotas(tenant: Tenant, since: dt.date) -> Iterable[Limit]:
    """The quotas that may have moved since that day."""
    used = DailyUsage.objects.filter(tenant=tenant, booked_day__gte=since)
    if not used.exists():
        return ()
    whose = Q(member=None, token=None) | Q(member__in=used.values("member")) | Q(token__in=used.values("token"))
    quotas = Limit.objects.filter(whose, tenant=tenant, period__in=QUOTAS).exclude(metric=Metric.CONCURRENT)
    return quotas.select_related("tenant", "member__user", "token").order_by("pk").iterator(chunk_size=BATCH)


def _batches(limits: Iterable[Limit]) -> Iterator[list[Limit]]:
    source = iter(limits)
    while batch := list(islice(source, BATCH)):
        yield batch


def _used(tenant: Tenant, named: list[tuple[Limit, str]]) -> list[int]:
    shard = keys.shard_of(tenant.pk, settings.SHARDS)
    pipeline = store().pipeline(transaction=False)
    for limit, name in named:
        scope, number = owner(limit)
        pipeline.hget(keys.use(shard, f"{scope}:{number}", name), limit.metric)
    return [int(value or 0) for value in pipeline.execute()]


def _tell(tenant: Tenant, reached: Reached, threshold: int, emails: list[str]) -> bool:
    """Keep the alert and its deliveries; False when it was told before."""
    limit = reached.limit
    scope, number = owner(limit)
    what = {"tenant": tenant, "scope": scope, "scope_id": number, "metric": limit.metric}
    what |= {"period_name": reached.period_name, "threshold": threshold}
    if Alert.objects.filter(**what).exists():
        return False
    figures = {"used": reached.used, "amount": limit.amount, "period": limit.period, "scope_name": _name(limit)}
    try:
        with transaction.atomic():
            alert = Alert.objects.create(**what, **figures)
            AlertDelivery.objects.bulk_create(deliveries(tenant, alert, emails))
    except IntegrityError:
        return False  # another process has told it just now
    return True


def deliveries(tenant: Tenant, alert: Alert | None, emails: list[str]) -> list[AlertDelivery]:
    """One delivery for each of the addresses and of the tenant's active webhooks, not saved; no alert: tests."""
    mails = [AlertDelivery(tenant=tenant, alert=alert, channel=Channel.EMAIL, target=email) for email in emails]
    return mails + [to_webhook(hook, alert) for hook in Webhook.objects.filter(tenant=tenant, active=True)]


def to_webhook(hook: Webhook, alert: Alert | None) -> AlertDelivery:
    """One delivery to a webhook, not saved; no alert: a test."""
    target = addresses.shown(hook.url)[:300]
    return AlertDelivery(tenant=hook.tenant, alert=alert, channel=Channel.WEBHOOK, webhook=hook, target=target)


def _name(limit: Limit) -> str:
    """Whose quota it is, for people."""
    if limit.token is not None:
        return f"Token {limit.token.name} (id {limit.token_id}) of {limit.tenant.name}"
    if limit.member is not None:
        return f"Member {limit.member.user.email} of {limit.tenant.name}"
    return f"Tenant {limit.tenant.name}"

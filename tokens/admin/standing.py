"""What is used right now of a scope's limits, read from the admission store in one round trip.

The limits are PostgreSQL's rows, the figures the store's: a page shows what was just saved and what calls just took.
"""

import datetime as dt
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

from config.redis import PAGE_SECONDS, store
from tokens import issuing, records
from tokens.admission import keys, scripts
from tokens.admission.admission import standing_command
from tokens.admission.periods import Calendar, open_periods
from tokens.admission.principal import LimitRecord, Plan, Principal, ScopedLimit
from tokens.issuing import Scope
from tokens.models import Limit, Membership, Metric, Period, ProxyToken, Tenant
from tokens.scripts import answered

METRICS = ("requests", "images", "tokens")
FIELDS = (*METRICS, *(f"reserved_{metric}" for metric in METRICS))
NARROW_PERCENT = 90  # from here on a meter is drawn as nearly used up


@dataclass(frozen=True, slots=True)
class Figures:
    """A use counter: what calls have used, and what calls under way have reserved, by metric."""

    used: dict[str, int]
    reserved: dict[str, int]


@dataclass(frozen=True, slots=True)
class Meter:
    """One limit and what is left of it. `reserved` is 0 for rates and concurrent calls, which reserve nothing."""

    scope: str  # tenant, member or token
    limit: Limit
    used: int
    reserved: int
    remaining: int
    resets: str  # for people

    @property
    def name(self) -> str:
        """What it limits, such as "Images per day"."""
        words = Metric(self.limit.metric).label
        return words if self.limit.metric == Metric.CONCURRENT else f"{words} {Period(self.limit.period).label}"

    @property
    def whole(self) -> int:
        """What the bar's whole length stands for: the amount, for a rate its burst."""
        return self.limit.burst or self.limit.amount

    @property
    def used_percent(self) -> str:
        """The used part of the bar, such as ``12.5``."""
        return f"{min(100.0, 100 * self.used / self.whole):.1f}"

    @property
    def reserved_percent(self) -> str:
        """The reserved part of the bar, which follows the used one."""
        return f"{min(100.0 - float(self.used_percent), 100 * self.reserved / self.whole):.1f}"

    @property
    def level(self) -> str:
        """How far it is used: ``full``, ``high`` or ``fine``."""
        if self.remaining <= 0:
            return "full"
        return "high" if 100 * (self.used + self.reserved) >= NARROW_PERCENT * self.whole else "fine"


@dataclass(frozen=True, slots=True)
class Use:
    """The use of one tenant, member or token: today's and this month's figures, and a meter for each limit."""

    day: str
    month: str
    zone: str
    figures: dict[str, Figures]  # by "today" and "this month"
    in_flight: int
    meters: list[Meter] = field(default_factory=list)


def read_use(scope: Scope) -> Use:
    """What a scope has used by now, with every limit that its calls have to pass. Raises StoreUnavailable."""
    limits = _limits(scope)
    principal = _principal(scope, limits)
    now = time.time()
    plan = principal.plan(now)
    shard, periods = principal.shard, plan.periods
    counters = {"today": f"day:{periods.day}", "this month": f"month:{periods.month}"}
    own = _name(scope)
    with answered():
        pipeline = store(PAGE_SECONDS).pipeline(transaction=True)
        for period in counters.values():
            pipeline.hmget(keys.use(shard, own, period), FIELDS)
        pipeline.zcount(keys.inflight(shard, own), f"({int(now * 1_000_000)}", "+inf")
        for owner, limit in limits:
            pipeline.hmget(keys.use(shard, _name(owner), _period_name(limit, plan)), FIELDS)
        if limits:
            pipeline.eval(scripts.standing().text, *standing_command(plan))
        replies = pipeline.execute()
    left = replies[3 + len(limits)] if limits else []
    zone = principal.calendar.at(now)
    return Use(
        periods.day,
        periods.month,
        zone.key,
        {name: figures_of(raw) for name, raw in zip(counters, replies, strict=False)},
        replies[2],
        [
            _meter(owner, limit, figures_of(replies[3 + at]), int(left[2 * at]), int(left[2 * at + 1]), now, zone)
            for at, (owner, limit) in enumerate(limits)
        ],
    )


def today_of(tenants: Iterable[Tenant]) -> dict[int, Figures]:
    """Today's figures of each tenant, by its id, on its own calendar. Raises StoreUnavailable."""
    now = time.time()
    listed = list(tenants)
    with answered():
        pipeline = store(PAGE_SECONDS).pipeline(transaction=False)
        for tenant in listed:
            day = open_periods(calendar_of(tenant), now).day
            pipeline.hmget(keys.use(records.shard_of(tenant.pk), _name(tenant), f"day:{day}"), FIELDS)
        replies = pipeline.execute()
    return {tenant.pk: figures_of(raw) for tenant, raw in zip(listed, replies, strict=True)}


def _limits(scope: Scope) -> list[tuple[Scope, Limit]]:
    """The scope's own limits first, then those of whatever it belongs to, which hold for its calls as well."""
    owners: list[Scope] = [scope]
    if isinstance(scope, ProxyToken):
        owners.append(scope.member)
    if not isinstance(scope, Tenant):
        owners.append(scope.tenant)
    return [(owner, limit) for owner in owners for limit in issuing.limits_of(owner)]


def _principal(scope: Scope, limits: Sequence[tuple[Scope, Limit]]) -> Principal:
    """Whose plan names the keys. A scope that isn't asked about is number 0, which nobody has."""
    tenant = scope if isinstance(scope, Tenant) else scope.tenant
    member = scope.pk if isinstance(scope, Membership) else scope.member_id if isinstance(scope, ProxyToken) else 0
    return Principal(
        shard=records.shard_of(tenant.pk),
        tenant=tenant.pk,
        member=member,
        token=scope.pk if isinstance(scope, ProxyToken) else 0,
        secret=0,
        versions=(0, 0, 0),
        active=True,
        expires=0,
        accepted_until=0,
        networks=(),
        origins=frozenset(),
        model="",
        calendar=calendar_of(tenant),
        limits=tuple(ScopedLimit(_kind(owner), _record(limit)) for owner, limit in limits),
    )


def calendar_of(tenant: Tenant) -> Calendar:
    """A tenant's calendar, as the store's record of it has it."""
    changes_at = tenant.next_timezone_from
    return Calendar(tenant.timezone, tenant.next_timezone, int(changes_at.timestamp()) if changes_at else 0)


def _record(limit: Limit) -> LimitRecord:
    start = int(limit.created_at.timestamp())
    return LimitRecord(limit.pk, limit.metric, limit.period, limit.amount, limit.burst or 0, start)


def _kind(scope: Scope) -> str:
    return str(scope.entry().kind.value)


def _name(scope: Scope) -> str:
    return f"{_kind(scope)}:{scope.pk}"


def _period_name(limit: Limit, plan: Plan) -> str:
    """The counter's period that a quota counts in; for a rate one that no counter has."""
    names = {Period.DAY: f"day:{plan.periods.day}", Period.MONTH: f"month:{plan.periods.month}"}
    return names.get(Period(limit.period), f"total:{limit.pk}")


def figures_of(raw: Sequence[bytes | None]) -> Figures:
    """A use counter's `FIELDS` as the store answers them."""
    numbers = [int(value or 0) for value in raw]
    return Figures(dict(zip(METRICS, numbers[:3], strict=True)), dict(zip(METRICS, numbers[3:], strict=True)))


def _meter(
    owner: Scope, limit: Limit, figures: Figures, remaining: int, reset: int, now: float, zone: ZoneInfo
) -> Meter:
    """`reset`: microseconds until the limit is whole again, -1 for never."""
    quota = limit.period in {Period.DAY, Period.MONTH, Period.TOTAL}
    used = figures.used[limit.metric] if quota else (limit.burst or limit.amount) - remaining
    reserved = figures.reserved[limit.metric] if quota else 0
    return Meter(_kind(owner), limit, used, reserved, remaining, resets_of(limit, reset, now, zone))


def resets_of(limit: Limit, reset: int, now: float, zone: ZoneInfo) -> str:
    """For people, when a limit is whole again, which is in `reset` microseconds (-1: never)."""
    if limit.metric == Metric.CONCURRENT:
        return "frees as calls end"
    if reset < 0:
        return "never resets"
    if limit.period in {Period.DAY, Period.MONTH}:
        at = dt.datetime.fromtimestamp(round(now + reset / 1_000_000), zone)
        return f"resets {at.day} {at:%b %Y, %H:%M} {at.tzname()}"
    return f"all of it is free again in {-(-reset // 1_000_000)} s" if reset else "all of it is free"

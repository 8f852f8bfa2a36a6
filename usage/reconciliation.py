"""The admission store's counters against the ledger. Exact for every tenant that is quiet while it is looked at.

A tenant's counters and its sequence are read, then its shard's stream, then the ledger, then the counters again. When
no event of the tenant waits and both readings are equal, the ledger holds exactly what the counters must say: ending a
call moves the counters and appends the event in one step, and an entry leaves the stream only after its commit. A
tenant that isn't quiet is left for the next time. Nothing is repaired unasked.
"""

import datetime as dt
import time
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

import msgspec
from django.conf import settings

from config.redis import store
from tokens.admission import keys
from tokens.admission.periods import Calendar, open_periods
from tokens.admission.settlement import Ending
from tokens.models import Limit, Membership, Period, ProxyToken, Tenant
from usage import counters
from usage.alarms import AlarmKind, clear_alarms, open_subjects, raise_alarm
from usage.counters import METRICS, Expected, Use
from usage.models import UnsettledCall
from usage.waiting import waiting

# A `total` quota counts in the store once its limit is published, in the ledger from the limit's creation on. Calls of
# this time may be in either.
PUBLISHING = dt.timedelta(seconds=60)
SHOWN = 3

# Sets the used figures of counters, if neither they nor the sequence have changed since they were read. Reserved ones
# stay as they are. KEYS 1 the sequence, then the counters. ARGV 1 the sequence's value, then for each counter the three
# figures as read, those to be, and when it expires (epoch seconds; 0: never).
REPAIR = """
local function same(found, wanted)
    return (found or '0') == wanted
end
if not same(redis.call('GET', KEYS[1]), ARGV[1]) then return 0 end
for i = 2, #KEYS do
    local found, at = redis.call('HMGET', KEYS[i], 'requests', 'images', 'tokens'), 2 + (i - 2) * 7
    for metric = 1, 3 do
        if not same(found[metric], ARGV[at + metric - 1]) then return 0 end
    end
end
for i = 2, #KEYS do
    local at = 2 + (i - 2) * 7
    redis.call('HSET', KEYS[i], 'requests', ARGV[at + 3], 'images', ARGV[at + 4], 'tokens', ARGV[at + 5])
    for _, metric in ipairs({'reserved_requests', 'reserved_images', 'reserved_tokens'}) do
        redis.call('HSETNX', KEYS[i], metric, '0')
    end
    if ARGV[at + 6] ~= '0' then redis.call('EXPIREAT', KEYS[i], ARGV[at + 6]) end
end
return 1
"""


class Difference(NamedTuple):
    """A counter that doesn't say what the ledger says. `scope` is such as "token:12", `period` such as "day:..."."""

    tenant: str
    scope: str
    period: str
    store: Use
    ledger: Use

    def __str__(self) -> str:
        names = [name for name in METRICS if getattr(self.store, name) != getattr(self.ledger, name)]
        figures = ", ".join(
            f"{name} (store {getattr(self.store, name)}, ledger {getattr(self.ledger, name)})" for name in names
        )
        return f"{self.scope} {self.period}: {figures}"


class Verdict(Enum):
    """What came of comparing a tenant."""

    EQUAL = "equal"
    DIFFERS = "differs"
    BUSY = "busy"


class Compared(NamedTuple):
    """One tenant's comparison; `sequence` and `expected` are what it was made with."""

    tenant: Tenant
    verdict: Verdict
    differences: dict[str, Difference] = {}  # by key of the store
    sequence: int = 0
    expected: Mapping[str, Expected] = {}


def compare_counters(tenants: Iterable[Tenant] | None = None) -> Iterator[Compared]:
    """Compare tenants, by default all, one by one. Raises redis.RedisError and django.db.OperationalError."""
    for tenant in tenants if tenants is not None else Tenant.objects.order_by("pk").iterator():
        yield _compare(tenant)


def check_counters() -> None:
    """Raise an alarm for each tenant whose counters differ, close those of tenants whose counters are right.

    Each at once: what was found stands, even when the time for all isn't enough. Nothing is looked at while the store
    is fenced. Raises as `compare_counters`.
    """
    if not store().hget(keys.meta(0), "generation"):
        return
    were_open = set(open_subjects(AlarmKind.COUNTERS_DIFFER))
    for compared in compare_counters():
        slug = compared.tenant.slug
        if compared.verdict is Verdict.EQUAL and slug in were_open:
            clear_alarms(AlarmKind.COUNTERS_DIFFER, set(open_subjects(AlarmKind.COUNTERS_DIFFER)) - {slug})
        elif compared.verdict is Verdict.DIFFERS:
            shown = [str(difference) for difference in compared.differences.values()]
            more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
            text = f"The store's counters of {slug} differ from the ledger: {'; '.join(shown[:SHOWN])}{more}."
            raise_alarm(AlarmKind.COUNTERS_DIFFER, slug, text)


def repair(compared: Compared) -> bool:
    """Set the counters that differ to what the ledger says, all in one step; False when one has changed since.

    What calls in flight have reserved stays. Raises redis.RedisError.
    """
    names = [keys.sequence(_shard(compared.tenant), compared.tenant.pk)]
    arguments: list[Any] = [compared.sequence]
    for name, difference in compared.differences.items():
        names.append(name)
        expires = compared.expected[name].expires if name in compared.expected else 0
        arguments += [*difference.store, *difference.ledger, expires]
    return bool(store().eval(REPAIR, len(names), *names, *arguments))


def _compare(tenant: Tenant) -> Compared:
    at = time.time()
    names = _counter_names(tenant, at)
    before = _read(tenant, names)
    waits = waiting(_shard(tenant))
    if tenant.pk in waits.tenants or not waits.complete:
        return Compared(tenant, Verdict.BUSY)
    expected = counters.expected(tenant, at)
    differing = _differing(names, before.uses, expected)
    if any(":total:" in name for name in differing):
        later = counters.expected(tenant, at, PUBLISHING)
        differing = {
            name: use
            for name, use in differing.items()
            if ":total:" not in name or not _between(use, later.get(name), expected.get(name))
        }
    # Looked for after the ledger was read: a call that was booked without the store stands here until the store has it.
    if (differing and tenant.pk in _unsettled_tenants()) or _read(tenant, names) != before:
        return Compared(tenant, Verdict.BUSY)
    differences = {
        name: Difference(tenant.slug, *_parts(name), use, _use(expected.get(name))) for name, use in differing.items()
    }
    return Compared(tenant, Verdict.DIFFERS if differences else Verdict.EQUAL, differences, before.sequence, expected)


class _Reading(NamedTuple):
    sequence: int
    uses: list[Use]


def _read(tenant: Tenant, names: list[str]) -> _Reading:
    """The tenant's sequence and the used figures of these counters, at one moment."""
    pipeline = store().pipeline(transaction=True)
    pipeline.get(keys.sequence(_shard(tenant), tenant.pk))
    for name in names:
        pipeline.hmget(name, METRICS)
    sequence, *rows = pipeline.execute()
    return _Reading(int(sequence or 0), [Use(*(int(value or 0) for value in row)) for row in rows])


def _counter_names(tenant: Tenant, at: float) -> list[str]:
    """Every counter that the tenant may have in the periods that are open at `at`."""
    changes_at = int(tenant.next_timezone_from.timestamp()) if tenant.next_timezone_from else 0
    periods = open_periods(Calendar(tenant.timezone, tenant.next_timezone, changes_at), at)
    scopes = [f"tenant:{tenant.pk}"]
    scopes += [f"member:{pk}" for pk in Membership.objects.filter(tenant=tenant).values_list("pk", flat=True)]
    scopes += [f"token:{pk}" for pk in ProxyToken.objects.filter(tenant=tenant).values_list("pk", flat=True)]
    shard = _shard(tenant)
    names = [
        keys.use(shard, scope, period)
        for scope in scopes
        for period in (f"day:{periods.day}", f"month:{periods.month}")
    ]
    for limit in Limit.objects.filter(tenant=tenant, period=Period.TOTAL):
        scope, number = counters.owner(limit)
        names.append(keys.use(shard, f"{scope}:{number}", f"total:{limit.pk}"))
    return names


def _differing(names: list[str], uses: list[Use], expected: Mapping[str, Expected]) -> dict[str, Use]:
    found = dict(zip(names, uses, strict=True))
    return {name: use for name, use in found.items() if use != _use(expected.get(name))}


def _use(expected: Expected | None) -> Use:
    return expected.use if expected else Use(0, 0, 0)


def _between(use: Use, least: Expected | None, most: Expected | None) -> bool:
    return all(low <= value <= high for low, value, high in zip(_use(least), use, _use(most), strict=True))


def _parts(name: str) -> tuple[str, str]:
    """Scope and period in a counter's key, {s1}:use:<kind>:<id>:<period>."""
    _, _, kind, number, period = name.split(":", 4)
    return f"{kind}:{number}", period


def _shard(tenant: Tenant) -> int:
    return keys.shard_of(tenant.pk, settings.SHARDS)


def _unsettled_tenants() -> set[int]:
    """Tenants with calls that are booked and that the store has yet to learn of."""
    rows = UnsettledCall.objects.values_list("ending", flat=True)
    return {msgspec.json.decode(bytes(ending), type=Ending).tenant for ending in rows.iterator()}

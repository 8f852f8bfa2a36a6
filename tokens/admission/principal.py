"""The principal: who calls, as the directory in the store knows them, with the plan of what a call of theirs counts in.

A process keeps principals in memory. What it remembers never admits anybody: the admit script compares versions and
answers STALE when a record has changed since.
"""

import ipaddress
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar, cast

import msgspec
from msgspec.structs import replace

from tokens.admission import keys
from tokens.admission.periods import Calendar, OpenPeriods, open_periods

RATE_MICROSECONDS = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000}
PERIOD_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "month": 2_592_000}
METRIC_NUMBERS = {"requests": 1, "images": 2, "tokens": 3}

Shared = TypeVar("Shared", bound=Hashable)
_shared = lru_cache(maxsize=32_768)(lambda value: value)


def share(value: Shared) -> Shared:
    """An equal value that was given before, if it is still remembered.

    Most of a principal is the same for others of its tenant, or with its limits: held once, 100,000 of them are cheap.
    """
    return cast(Shared, _shared(value))


class LimitRecord(msgspec.Struct, frozen=True):
    """A limit as the directory holds it. `burst` 0: not given; `start`: epoch seconds of its creation.

    Only a `total` quota counts from its creation, under its id: a principal's other limits have 0 as both.
    """

    id: int
    metric: str
    period: str
    amount: int
    burst: int
    start: int

    @property
    def is_rate(self) -> bool:
        """Second, minute and hour are rates; the rest are quotas, or concurrent."""
        return self.period in RATE_MICROSECONDS


@dataclass(frozen=True, slots=True)
class ScopedLimit:
    """A limit with the scope it belongs to: "tenant", "member" or "token".

    What headers say of it is the same for every answer, so it is made once: its `name`, such as
    ``tenant-images-day``, and its `policy`, an item of `RateLimit-Policy`. `gives_back` is the metric of which the end
    of a call gives back what it didn't use, "" when it keeps all; `most` is what can be left at all.
    """

    scope: str
    limit: LimitRecord
    name: str = field(init=False, compare=False)
    policy: str = field(init=False, compare=False)
    gives_back: str = field(init=False, compare=False)
    most: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        limit = self.limit
        name = "-".join(filter(None, (self.scope, limit.metric, limit.period)))
        unit = "concurrent-requests" if limit.metric == "concurrent" else limit.metric
        units = "" if unit == "requests" else f';qu="{unit}"'
        window = PERIOD_SECONDS.get(limit.period)
        gives_back = not limit.is_rate or limit.metric == "tokens"
        made = {
            "name": name,
            "policy": f'"{name}";q={limit.amount}{units}' + (f";w={window}" if window else ""),
            "gives_back": limit.metric if gives_back else "",
            "most": limit.burst or limit.amount if limit.is_rate else limit.amount,
        }
        for attribute, value in made.items():
            object.__setattr__(self, attribute, value)


@dataclass(frozen=True, slots=True)
class Plan:
    """The part of an admission that is the same for every call of a principal within one tenant-local day.

    `packed` is what the scripts read of it, see limits.lua; `held` what a reservation keeps (JSON).
    """

    periods: OpenPeriods
    until: float  # epoch seconds
    keys: tuple[str, ...]  # in flight, use counters, rates
    packed: bytes
    held: bytes
    limits: tuple[ScopedLimit, ...]


@dataclass(slots=True)
class Principal:
    """A token with its member and tenant as read from the store; `versions` in that order."""

    shard: int
    tenant: int
    member: int
    token: int
    secret: int
    versions: tuple[int, int, int]
    active: bool
    expires: int
    accepted_until: int
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    origins: frozenset[str]
    model: str
    calendar: Calendar
    limits: tuple[ScopedLimit, ...]
    _plan: Plan | None = field(default=None, repr=False)

    def accepted(self, now: float) -> bool:
        """Whether the token looks usable at `now` (epoch seconds); only the admit script's word admits."""
        return (
            self.active
            and not (self.expires and now >= self.expires)
            and self.accepted_until >= 0
            and not (self.accepted_until and now >= self.accepted_until)
        )

    def allows_address(self, address: str) -> bool:
        """Whether the token's networks, if it has any, contain the client's address."""
        if not self.networks:
            return True
        try:
            client = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = client.ipv4_mapped if isinstance(client, ipaddress.IPv6Address) else None
        return any((mapped or client) in network for network in self.networks)

    def allows_origin(self, origin: str) -> bool:
        """Whether pages of `origin` may call for this tenant."""
        return "*" in self.origins or origin.lower() in self.origins

    @property
    def counts_tokens(self) -> bool:
        """Whether any limit counts tokens, so that a call's upper bound must hold."""
        return any(scoped.limit.metric == "tokens" for scoped in self.limits)

    def plan(self, now: float) -> Plan:
        """The plan in force at `now` (epoch seconds)."""
        plan = self._plan
        if plan is None or not plan.periods.day_start <= now < plan.until:
            plan = self._plan = _make_plan(self, now)
        return plan


def rate_units(period: str, amount: int, burst: int) -> tuple[int, int]:
    """A rate's microseconds for one unit, rounded up so that never more than the amount passes in a period, and its
    tolerance: those of the burst (0: of the amount)."""
    unit = -(-RATE_MICROSECONDS[period] // amount)
    return unit, unit * (burst or amount)


class _PlanBuilder:
    """Collects a plan's keys, and its times and limits as limits.lua reads them. Keys are numbered from 1."""

    def __init__(self, principal: Principal) -> None:
        self.shard = principal.shard
        self.scopes = {
            "token": f"token:{principal.token}",
            "member": f"member:{principal.member}",
            "tenant": f"tenant:{principal.tenant}",
        }
        self.keys: list[str] = []
        self.number = {
            (scope, "concurrent"): self._add_key(scope, keys.inflight(self.shard, owner))
            for scope, owner in self.scopes.items()
        }
        self.uses: list[str] = []
        self.times: list[int] = []
        self.rates: list[tuple[str, int, int]] = []
        self.limits: list[str | int] = []

    def _add_key(self, scope: str, name: str) -> int:
        self.keys.append(name if scope == "token" else share(name))
        return len(self.keys)

    def add_use(self, scope: str, period: str, name: str, start: int, end: int) -> None:
        """A use counter of a scope, to be found by limits under (scope, period)."""
        key = keys.use(self.shard, self.scopes[scope], name)
        self.number[scope, period] = self._add_key(scope, key)
        self.uses.append(key)
        self.times += (start, end)

    def add_limit(self, scope: str, limit: LimitRecord) -> None:
        """A limit; its use counter must have been added."""
        metric = METRIC_NUMBERS.get(limit.metric, 1)
        if limit.is_rate:
            unit, tolerance = rate_units(limit.period, limit.amount, limit.burst)
            name = keys.rate(self.shard, self.scopes[scope], limit.metric, limit.period)
            self.limits += ("rate", self._add_key(scope, name), metric, limit.amount, unit, tolerance)
            self.rates.append((name, metric, unit))
            return
        concurrent = limit.metric == "concurrent"
        number = self.number[scope, "concurrent" if concurrent else _use_mark(limit)]
        self.limits += ("concurrent" if concurrent else "quota", number, metric, limit.amount, 0, 0)


def _use_mark(limit: LimitRecord) -> str:
    return f"total:{limit.id}" if limit.period == "total" else limit.period


def _make_plan(principal: Principal, now: float) -> Plan:
    periods = share(open_periods(principal.calendar, now))
    changes_at = principal.calendar.changes_at
    builder = _PlanBuilder(principal)
    for scope in builder.scopes:
        builder.add_use(scope, "day", f"day:{periods.day}", periods.day_start, periods.day_end)
        builder.add_use(scope, "month", f"month:{periods.month}", periods.month_start, periods.month_end)
    for scoped in principal.limits:
        if scoped.limit.period == "total":
            mark = _use_mark(scoped.limit)
            builder.add_use(scoped.scope, mark, mark, scoped.limit.start, 0)
    for scoped in principal.limits:
        builder.add_limit(scoped.scope, scoped.limit)
    held = {"use": builder.uses, "rates": builder.rates, "inflight": builder.keys[:3]}
    return Plan(
        periods=periods,
        until=min(periods.day_end, changes_at) if changes_at > now else periods.day_end,
        keys=tuple(builder.keys),
        packed=share(msgspec.msgpack.encode([len(builder.uses), *builder.times, *builder.limits])),
        held=msgspec.json.encode(held),
        limits=principal.limits,
    )


_limits_decoder = msgspec.json.Decoder(list[LimitRecord])
_strings_decoder = msgspec.json.Decoder(list[str])


def locate(raw: bytes) -> tuple[int, int, int, int, int]:
    """A locator's ids: shard, tenant, member, token, secret."""
    shard, tenant, member, token, secret = (int(part) for part in raw.split(b":"))
    return shard, tenant, member, token, secret


def read_principal(
    locator: tuple[int, int, int, int, int],
    token: Mapping[bytes, bytes],
    member: Mapping[bytes, bytes],
    tenant: Mapping[bytes, bytes],
) -> Principal:
    """Build a principal from the three records' hashes. Raises KeyError or ValueError on an incomplete record."""
    shard, tenant_id, member_id, token_id, secret_id = locator
    scoped = [
        share(ScopedLimit(scope, limit if limit.period == "total" else replace(limit, id=0, start=0)))
        for scope, record in (("token", token), ("member", member), ("tenant", tenant))
        for limit in _limits_decoder.decode(record[b"limits"])
    ]
    return Principal(
        shard=shard,
        tenant=tenant_id,
        member=member_id,
        token=token_id,
        secret=secret_id,
        versions=share((int(token[b"version"]), int(member[b"version"]), int(tenant[b"version"]))),
        active=token[b"status"] == member[b"status"] == tenant[b"status"] == b"active",
        expires=int(token[b"expires"]),
        accepted_until=int(token.get(b"secret:%d" % secret_id, b"-1")),
        networks=share(tuple(ipaddress.ip_network(text) for text in _strings_decoder.decode(token[b"networks"]))),
        origins=share(frozenset(text.lower() for text in _strings_decoder.decode(tenant[b"origins"]))),
        model=share((token.get(b"model") or tenant[b"model"]).decode()),
        calendar=share(
            Calendar(
                tenant[b"timezone"].decode(), tenant[b"next_timezone"].decode(), int(tenant[b"next_timezone_from"])
            )
        ),
        limits=share(tuple(scoped)),
    )

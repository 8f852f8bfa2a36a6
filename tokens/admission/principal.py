"""The principal: who calls, as the directory in the store knows them, with the plan of what a call of theirs counts in.

A process keeps principals in memory. What it remembers never admits anybody: the admit script compares versions and
answers STALE when a record has changed since.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tokens.admission import keys
from tokens.admission.periods import Calendar, OpenPeriods, open_periods

RATE_MICROSECONDS = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000}
METRIC_NUMBERS = {"requests": 1, "images": 2, "tokens": 3}
FIXED_KEYS = 11  # of the admit script, before the use counters


class LimitRecord(msgspec.Struct, frozen=True):
    """A limit as the directory holds it. `burst` 0: not given; `start`: epoch seconds of its creation."""

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
    """A limit with the scope it belongs to: "tenant", "member" or "token"."""

    scope: str
    limit: LimitRecord


@dataclass(frozen=True, slots=True)
class Plan:
    """The part of an admission that is the same for every call of a principal within one tenant-local day."""

    periods: OpenPeriods
    until: float  # epoch seconds
    keys: tuple[str, ...]  # in flight, use counters, rates
    periods_arguments: tuple[int, ...]
    limits_arguments: tuple[Any, ...]
    uses: int
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
        return "*" in self.origins or origin in self.origins

    def plan(self, now: float) -> Plan:
        """The plan in force at `now` (epoch seconds)."""
        plan = self._plan
        if plan is None or not plan.periods.day_start <= now < plan.until:
            plan = self._plan = _make_plan(self, now)
        return plan


def _make_plan(principal: Principal, now: float) -> Plan:
    periods = open_periods(principal.calendar, now)
    changes_at = principal.calendar.changes_at
    until = min(periods.day_end, changes_at) if changes_at > now else periods.day_end
    shard = principal.shard
    scopes = {
        "token": f"token:{principal.token}",
        "member": f"member:{principal.member}",
        "tenant": f"tenant:{principal.tenant}",
    }
    names = [keys.inflight(shard, scope) for scope in scopes.values()]
    at = {("concurrent", scope): FIXED_KEYS - 2 + number for number, scope in enumerate(scopes)}
    times: list[int] = []

    def add_use(mark: tuple[str, str], scope: str, period: str, start: int, end: int) -> None:
        names.append(keys.use(shard, scopes[scope], period))
        times.extend((start, end))
        at[mark] = FIXED_KEYS - 3 + len(names)

    for scope in scopes:
        add_use(("day", scope), scope, f"day:{periods.day}", periods.day_start, periods.day_end)
        add_use(("month", scope), scope, f"month:{periods.month}", periods.month_start, periods.month_end)
    for scoped in principal.limits:
        if scoped.limit.period == "total":
            add_use(
                (f"total{scoped.limit.id}", scoped.scope),
                scoped.scope,
                f"total:{scoped.limit.id}",
                scoped.limit.start,
                0,
            )
    uses = names[3:]

    arguments: list[Any] = []
    rates: list[tuple[str, int, int]] = []
    for scoped in principal.limits:
        limit = scoped.limit
        metric = METRIC_NUMBERS.get(limit.metric, 1)
        if limit.is_rate:
            # The microseconds that one unit costs, rounded up: never more than the amount passes in a period.
            unit = -(-RATE_MICROSECONDS[limit.period] // limit.amount)
            name = keys.rate(shard, scopes[scoped.scope], limit.metric, limit.period)
            names.append(name)
            rates.append((name, metric, unit))
            arguments += (
                "rate",
                FIXED_KEYS - 3 + len(names),
                metric,
                limit.amount,
                unit,
                unit * (limit.burst or limit.amount),
            )
        elif limit.metric == "concurrent":
            arguments += ("concurrent", at["concurrent", scoped.scope], metric, limit.amount, 0, 0)
        else:
            mark = f"total{limit.id}" if limit.period == "total" else limit.period
            arguments += ("quota", at[mark, scoped.scope], metric, limit.amount, 0, 0)
    held = msgspec.json.encode({"use": uses, "rates": rates, "inflight": names[:3]})
    return Plan(periods, until, tuple(names), tuple(times), tuple(arguments), len(uses), held, principal.limits)


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
        ScopedLimit(scope, limit)
        for scope, record in (("token", token), ("member", member), ("tenant", tenant))
        for limit in _limits_decoder.decode(record[b"limits"])
    ]
    return Principal(
        shard=shard,
        tenant=tenant_id,
        member=member_id,
        token=token_id,
        secret=secret_id,
        versions=(int(token[b"version"]), int(member[b"version"]), int(tenant[b"version"])),
        active=token[b"status"] == member[b"status"] == tenant[b"status"] == b"active",
        expires=int(token[b"expires"]),
        accepted_until=int(token.get(b"secret:%d" % secret_id, b"-1")),
        networks=tuple(ipaddress.ip_network(text) for text in _strings_decoder.decode(token[b"networks"])),
        origins=frozenset(_strings_decoder.decode(tenant[b"origins"])),
        model=tenant[b"model"].decode(),
        calendar=Calendar(
            tenant[b"timezone"].decode(), tenant[b"next_timezone"].decode(), int(tenant[b"next_timezone_from"])
        ),
        limits=tuple(scoped),
    )

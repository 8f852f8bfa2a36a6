"""Admission: the request that the admit script gets, and what it decided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokens.admission import keys, scripts
from tokens.admission.connection import StoreConnection
from tokens.admission.principal import Plan, Principal, ScopedLimit


@dataclass(frozen=True, slots=True)
class Claim:
    """What one call asks to take: `images` and at most `tokens`, for `lease` seconds.

    `fingerprint` and `idempotency` (a hash of the client's key) are empty when the client gave no key; `call` is the
    JSON that goes into the usage event.
    """

    request_id: str
    images: int
    tokens: int
    lease: float
    call: bytes
    idempotency: str = ""
    fingerprint: str = ""


class Standing(NamedTuple):
    """What is left of one limit: units, and seconds until it is whole again (-1: never)."""

    scoped: ScopedLimit
    remaining: int
    reset: int


@dataclass(frozen=True, slots=True)
class Decision:
    """The admit script's answer.

    `status`: ADMITTED · INVALID (the token doesn't count any more) · STALE (records changed, reload) · PERIOD (the
    day turned, try again) · GENERATION (the store was replaced) · NOT_READY · STOPPED · BACKLOG · MISMATCH, IN_FLIGHT
    and REPLAY (idempotency; `request_id` is the first call's, `answer` what it was answered) · EXCEEDS and REFUSED
    (`limit` is the one to name, `reserved` what calls under way hold of it, `retry_after` whole seconds, 0: never) ·
    REPEATED (this request id is known).
    """

    status: str
    standings: tuple[Standing, ...] = ()
    limit: ScopedLimit | None = None
    retry_after: int = 0
    request_id: str = ""
    answer: bytes = b""
    reserved: int = 0


def _standings(plan: Plan, flat: Sequence[int]) -> tuple[Standing, ...]:
    figures = iter(flat)
    return tuple(
        [
            Standing(scoped, remaining, -1 if reset == -1 else -(-reset // 1_000_000))
            for scoped, remaining, reset in zip(plan.limits, figures, figures, strict=True)
        ]
    )


def command(principal: Principal, plan: Plan, claim: Claim, generation: str, backlog_limit: int) -> list[Any]:
    """The keys and arguments of the admit script, the number of keys first."""
    shard = principal.shard
    reservation = keys.reservation(shard, claim.request_id)
    idempotency = keys.idempotency(shard, principal.token, claim.idempotency) if claim.idempotency else reservation
    return [
        8 + len(plan.keys),
        keys.meta(shard),
        keys.token(shard, principal.token),
        keys.member(shard, principal.member),
        keys.tenant(shard, principal.tenant),
        reservation,
        keys.deadlines(shard),
        keys.usage(shard),
        idempotency,
        *plan.keys,
        generation,
        claim.request_id,
        principal.secret,
        principal.token,
        principal.member,
        principal.tenant,
        *principal.versions,
        claim.images,
        claim.tokens,
        int(claim.lease * 1_000_000),
        claim.fingerprint if claim.idempotency else "",
        plan.held,
        claim.call,
        backlog_limit,
        plan.packed,
    ]


async def admit(
    store: StoreConnection, principal: Principal, claim: Claim, now: float, generation: str, backlog_limit: int
) -> Decision:
    """Decide a call in one round trip. Raises StoreUnavailable and StoreError (the server's memory is full)."""
    plan = principal.plan(now)
    reply = await store.run(scripts.admit(), *command(principal, plan, claim, generation, backlog_limit))
    status = reply[0].decode()
    if status == "ADMITTED":
        return Decision(status, _standings(plan, reply[2]))
    if status == "EXCEEDS":
        return Decision(status, _standings(plan, reply[2]), plan.limits[reply[1] - 1])
    if status == "REFUSED":
        wait = reply[2]
        retry_after = max(1, math.ceil(wait / 1_000_000)) if wait >= 0 else 0
        limit = plan.limits[reply[1] - 1]
        return Decision(status, _standings(plan, reply[3]), limit, retry_after, reserved=reply[4])
    if status in {"REPLAY", "IN_FLIGHT"}:
        answer = reply[2] if status == "REPLAY" else b""
        return Decision(status, request_id=reply[1].decode(), answer=answer)
    return Decision(status)


def standing_command(plan: Plan) -> list[Any]:
    """The keys and arguments of the standing script, the number of keys first."""
    return [len(plan.keys), *plan.keys, plan.packed]


async def standing(store: StoreConnection, principal: Principal, now: float) -> tuple[Standing, ...]:
    """What is left of each of a principal's limits, changing nothing."""
    plan = principal.plan(now)
    if not plan.limits:
        return ()
    return _standings(plan, await store.run(scripts.standing(), *standing_command(plan)))

"""How long the two scripts of a call take, one call after the other: the floor of what a gateway adds to one."""

import asyncio
import os
import statistics
import time
from typing import Any

import msgspec
import uvloop
from django.conf import settings

from bench import cores
from config.redis import parse_address, store
from config.requestids import make_request_id
from tokens import secrets
from tokens.admission import keys
from tokens.admission.admission import Claim, admit
from tokens.admission.connection import StoreConnection
from tokens.admission.principal import Principal, locate, read_principal
from tokens.admission.settlement import Ending, finish

TOKENS = 1500
RESULT = msgspec.json.encode(
    {"images": 1, "input": 20, "output": 1480, "reported": TOKENS, "charged": TOKENS, "provenance": "reported"}
)


def median_ms(secret: str, core: int, seconds: float) -> float:
    """The median of admit and finish together in milliseconds, on that core, over so many seconds.

    `secret` is the token whose limits they check.
    """
    principal, generation = _principal(secret)
    cores.pin(os.getpid(), core)
    return statistics.median(uvloop.run(_measure(principal, generation, seconds))) * 1000


def _principal(secret: str) -> tuple[Principal, str]:
    digest = secrets.digest(secret, settings.TOKEN_PEPPERS[max(settings.TOKEN_PEPPERS)])
    locator = store().get(keys.locator(digest))
    assert isinstance(locator, bytes), "the token was not published"
    located = shard, tenant, member, token, _ = locate(locator)
    generation = store().hget(keys.meta(shard), "generation")
    assert isinstance(generation, bytes), "the store isn't open"
    names = keys.token(shard, token), keys.member(shard, member), keys.tenant(shard, tenant)
    records: list[Any] = [store().hgetall(name) for name in names]
    return read_principal(located, *records), generation.decode()


async def _measure(principal: Principal, generation: str, seconds: float) -> list[float]:
    async def nothing() -> None:
        pass

    connection = StoreConnection(parse_address(settings.REDIS_URL), settings.STORE_TIMEOUT, nothing)
    connection.start()
    while not connection.ready:
        await asyncio.sleep(0.01)
    connection.run_id = generation.partition(":")[2]  # as a web process does; without it finish takes longer
    times, end = [], time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        await _call(connection, principal, generation)
        times.append(time.perf_counter() - begun)
    await connection.close()
    return times[len(times) // 10 :]  # the first ones warmed the scripts up


async def _call(connection: StoreConnection, principal: Principal, generation: str) -> None:
    now = time.time()
    fields = {"v": 1, "tenant": principal.tenant, "member": principal.member, "token": principal.token}
    fields |= {"secret": principal.secret, "n": 1, "estimate": TOKENS}
    call = msgspec.json.encode(
        {**fields, "model": "instant-1", "size": "512x512", "provider": "bench", "day": principal.plan(now).periods.day}
    )
    claim = Claim(make_request_id(), 1, TOKENS, settings.LEASE_SECONDS, call)
    decision = await admit(connection, principal, claim, now, generation, settings.BACKLOG_LIMIT)
    assert decision.status == "ADMITTED", decision.status
    ending = Ending(claim.request_id, principal.shard, principal.tenant, "exact", 1, TOKENS, True, RESULT, call)
    await finish(connection, ending)

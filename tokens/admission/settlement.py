"""Ending a call: the arguments of the finish script for settle, void and expire."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from tokens.admission import keys, scripts
from tokens.admission.connection import StoreConnection


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended.

    `kind`: exact (settle), void, or unresolved (expire; the reservation's own figures are held, `images` and `tokens`
    are not read). `keep_request`: a call that was never dispatched gives its request back too. `result` and `call`
    are the usage event's JSON; `answer` is what an idempotency key replays, empty to forget the key. `decided`: a
    person says void of an unresolved call; should the provider's answer come after all, exact replaces it.
    """

    request_id: str
    shard: int
    tenant: int
    kind: str
    images: int
    tokens: int
    keep_request: bool
    result: bytes
    call: bytes
    answer: bytes = b""
    decided: bool = False


def command(ending: Ending, only_overdue: bool = False, run_id: str = "") -> list[Any]:
    """The keys and arguments of the finish script, the number of keys first.

    `run_id` is that of the server which will run it, to be given only by who can't be connected to another meanwhile.
    """
    shard = ending.shard
    return [
        5,
        keys.reservation(shard, ending.request_id),
        keys.deadlines(shard),
        keys.usage(shard),
        keys.sequence(shard, ending.tenant),
        keys.meta(shard),
        ending.request_id,
        ending.kind,
        ending.tenant,
        ending.images,
        ending.tokens,
        int(ending.keep_request),
        ending.result,
        ending.call,
        ending.answer,
        int(only_overdue),
        int(ending.decided),
        run_id,
    ]


async def finish(store: StoreConnection, ending: Ending) -> bytes:
    """End a call; DONE or REPEAT. Raises StoreUnavailable and StoreError."""
    reply = await store.run(scripts.finish(), *command(ending, run_id=store.run_id))
    return bytes(reply[0])


def finish_from_task(client: redis.Redis, ending: Ending) -> bytes:
    """`finish` for synchronous code. Raises redis.RedisError."""
    return _run(client, command(ending))


def finish_together(client: redis.Redis, endings: Sequence[Ending]) -> list[Ending]:
    """End many calls in one round trip; returns those that the store took. Raises redis.ConnectionError."""
    script = scripts.finish()
    with client.pipeline(transaction=False) as pipeline:
        pipeline.script_load(script.text)
        for ending in endings:
            pipeline.evalsha(script.sha, *command(ending))
        _, *replies = pipeline.execute(raise_on_error=False)
    return [ending for ending, reply in zip(endings, replies, strict=True) if not isinstance(reply, Exception)]


def expire(client: redis.Redis, ending: Ending) -> bytes:
    """End an overdue call as unresolved, from a task; DONE, REPEAT, or EARLY when its lease still runs."""
    return _run(client, command(ending, only_overdue=True))


def _run(client: redis.Redis, arguments: list[Any]) -> bytes:
    reply = scripts.finish().run(client, arguments[1:6], arguments[6:])
    return bytes(reply[0])

"""Ending a call: the arguments of the finish script for settle, void and expire."""

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
    are the usage event's JSON; `answer` is what an idempotency key replays, empty to forget the key.
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


def command(ending: Ending, only_overdue: bool = False) -> list[Any]:
    """The keys and arguments of the finish script, the number of keys first."""
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
    ]


async def finish(store: StoreConnection, ending: Ending) -> bytes:
    """End a call; DONE or REPEAT. Raises StoreUnavailable and StoreError."""
    reply = await store.run(scripts.finish(), *command(ending))
    return bytes(reply[0])


def expire(client: redis.Redis, ending: Ending) -> bytes:
    """End an overdue call as unresolved, from a task; DONE, REPEAT, or EARLY when its lease still runs."""
    arguments = command(ending, only_overdue=True)
    reply = scripts.finish().run(client, arguments[1:6], arguments[6:])
    return bytes(reply[0])

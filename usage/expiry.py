"""Ending calls whose process never did: when a lease is over the call becomes `unresolved` at its estimate."""

import logging
import time
from contextlib import suppress
from typing import Any

import msgspec
import redis
from django.conf import settings

from config.redis import store
from tokens.admission import keys
from tokens.admission.settlement import Ending, expire

logger = logging.getLogger(__name__)
BATCH = 1000  # calls a shard and run

# What a reservation raises that isn't as admission writes it: other JSON, a key of another type.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, redis.ResponseError)


class _Call(msgspec.Struct):
    """What is read of a call's JSON."""

    tenant: int
    n: int
    estimate: int


def expire_overdue() -> int:
    """Expire every reservation whose lease is over; returns how many.

    One that can't be read stays, is logged and keeps no other from its end. Raises redis.RedisError when the store
    doesn't answer.
    """
    client = store()
    now_us = int(time.time() * 1_000_000)
    expired = 0
    for shard in range(settings.SHARDS):
        overdue: Any = client.zrangebyscore(keys.deadlines(shard), "-inf", now_us, start=0, num=BATCH)
        for raw in overdue:
            try:
                expired += _expire(shard, raw)
            except redis.ReadOnlyError:
                raise  # the store's own state, the same for every call
            except UNREADABLE as exc:
                text = "an overdue call can't be ended: its reservation can't be read (%s)"
                logger.error(text, type(exc).__name__, extra={"request_id": raw.decode(errors="replace")})
    return expired


def _expire(shard: int, raw: bytes) -> bool:
    client, request_id = store(), raw.decode()
    call: Any = client.hget(keys.reservation(shard, request_id), "call")
    if call is None:  # ended since the list was read, or gone; what is gone would be first in the list for ever
        client.zrem(keys.deadlines(shard), raw)
        return False
    done = expire(client, _ending(shard, request_id, call)) == b"DONE"
    if done:
        with suppress(redis.OutOfMemoryError):  # a full store ends calls and takes nothing else
            client.incr(keys.EXPIRED)
        logger.warning("a call's lease ended without an outcome", extra={"request_id": request_id})
    return done


def _ending(shard: int, request_id: str, call: bytes) -> Ending:
    fields = msgspec.json.decode(call, type=_Call)
    result = {
        "images": fields.n,
        "input": None,
        "output": None,
        "reported": None,
        "charged": fields.estimate,
        "provenance": "estimated",
        "provider_request_id": "",
        "latency_ms": 0,
        "reason": "lease_ended",
    }
    return Ending(
        request_id,
        shard,
        fields.tenant,
        "unresolved",
        fields.n,
        fields.estimate,
        True,
        msgspec.json.encode(result),
        call,
        b'{"error":"outcome_unknown"}',
    )

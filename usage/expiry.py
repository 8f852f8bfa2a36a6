"""Ending calls whose process never did: when a lease is over the call becomes `unresolved` at its estimate."""

import logging
import time
from typing import Any

import msgspec
from django.conf import settings

from config.redis import store
from tokens.admission import keys
from tokens.admission.settlement import Ending, expire

logger = logging.getLogger(__name__)
BATCH = 1000  # calls a shard and run


def expire_overdue() -> int:
    """Expire every reservation whose lease is over; returns how many. Raises redis.RedisError."""
    client = store()
    now_us = int(time.time() * 1_000_000)
    expired = 0
    for shard in range(settings.SHARDS):
        overdue: Any = client.zrangebyscore(keys.deadlines(shard), "-inf", now_us, start=0, num=BATCH)
        for raw in overdue:
            expired += _expire(shard, raw.decode())
    return expired


def _expire(shard: int, request_id: str) -> bool:
    client = store()
    call: Any = client.hget(keys.reservation(shard, request_id), "call")
    if call is None:  # ended since the list was read
        return False
    fields = msgspec.json.decode(call)
    result = {
        "images": fields["n"],
        "input": None,
        "output": None,
        "reported": None,
        "charged": fields["estimate"],
        "provenance": "estimated",
        "provider_request_id": "",
        "latency_ms": 0,
        "reason": "lease_ended",
    }
    ending = Ending(
        request_id,
        shard,
        fields["tenant"],
        "unresolved",
        fields["n"],
        fields["estimate"],
        True,
        msgspec.json.encode(result),
        call,
        b'{"error":"outcome_unknown"}',
    )
    done = expire(client, ending) == b"DONE"
    if done:
        logger.warning("a call's lease ended without an outcome", extra={"request_id": request_id})
    return done

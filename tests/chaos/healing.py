"""After the faults: waiting until everything that was begun has ended."""

import time
from pathlib import Path

import redis
from django.conf import settings
from django.db import DatabaseError, connection

from config.redis import store
from tests.chaos.stack import Stack
from tokens.admission import keys
from usage.models import UnsettledCall


def heal(stack: Stack, seconds: float) -> str:
    """Wait until all admit, no lease runs, no event waits; returns what did not come to its end, '' for nothing."""
    stack.wait_until_ready(seconds)
    end = time.monotonic() + seconds
    while waiting := _waiting():
        if time.monotonic() > end:
            return waiting
        time.sleep(0.1)
    return ""


def _waiting() -> str:
    try:
        client, shards = store(), range(settings.SHARDS)
        counts = {
            "open reservations": sum(client.zcard(keys.deadlines(shard)) for shard in shards),
            "undrained events": sum(client.xlen(keys.usage(shard)) for shard in shards),
            "unsettled calls": UnsettledCall.objects.count(),
            "spooled endings": len(list(Path(settings.SPOOL_ROOT).glob("*"))) if settings.SPOOL_ROOT.exists() else 0,
        }
    except (redis.RedisError, DatabaseError) as exc:
        connection.close()  # it was made before PostgreSQL was killed
        return f"a server does not answer: {type(exc).__name__}"
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)

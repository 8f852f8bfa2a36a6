"""Shedding: new calls are refused before the store is full, so that those in flight can still end in it.

The store holds what every call needs, and usage waits in it while PostgreSQL or the worker is down. Past a share of its
memory, or with too many events waiting, web processes answer 503 by themselves; calls in flight settle as ever. The
store's own limit, and the one a shard that its scripts keep, are the hard stop behind that.
"""

import asyncio

from django.conf import settings

from tokens.admission import keys
from tokens.admission.connection import StoreConnection
from tokens.admission.memory import share_in_use


class StoreLoad:
    """What the store holds, as last read."""

    def __init__(self) -> None:
        self.problem = ""  # why no new call is admitted; empty: there is room

    async def read(self, store: StoreConnection) -> None:
        """Ask the store, all in one round trip. Raises StoreUnavailable and StoreError; the last reading holds then."""
        info, *lengths = await asyncio.gather(
            store.setup_call("INFO", "memory"),
            *[store.setup_call("XLEN", keys.usage(shard)) for shard in range(settings.SHARDS)],
        )
        share, waiting, most = memory_share(info), sum(lengths), settings.MEMORY_LIMIT_SHARE
        if share > most:
            self.problem = f"{share:.0%} of its memory is used; above {most:.0%} new calls are refused"
        elif waiting >= settings.BACKLOG_LIMIT:
            self.problem = f"{waiting} usage events wait in it for the ledger; so many stop new calls"
        else:
            self.problem = ""


def memory_share(info: bytes) -> float:
    """How full a store is, 0 to 1, from its answer to INFO memory; 0 where it doesn't tell."""
    return share_in_use(dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line))

"""What waits in the streams, told apart by tenant: an event that waits isn't lost, only not in the books yet."""

from typing import Any, NamedTuple

from config.redis import store
from tokens.admission import keys

MOST = 5_000  # entries that are looked at in one stream
PIECE = 1_000


class Waiting(NamedTuple):
    """The events that wait in a shard's stream, as far as was looked.

    `tenants` have one. `oldest` is the lowest waiting sequence number of (tenant, uuid of the generation). `complete`
    tells whether the whole stream was looked at.
    """

    tenants: set[int]
    oldest: dict[tuple[int, str], int]
    complete: bool


def waiting(shard: int) -> Waiting:
    """Look at the oldest entries of a shard's stream, whether a worker has taken them or nobody has.

    A script gives a tenant's numbers and appends its events in one step, so they stand in the stream in their order:
    what is below the oldest one isn't in the stream any more. Raises redis.RedisError.
    """
    found = Waiting(set(), {}, complete=True)
    start, looked = "-", 0
    while looked < MOST:
        entries: Any = store().xrange(keys.usage(shard), start, "+", count=PIECE)
        for _, fields in entries:
            _note(found, fields)
        if len(entries) < PIECE:
            return found
        looked += len(entries)
        start = f"({entries[-1][0].decode()}"
    return found._replace(complete=False)


def _note(found: Waiting, fields: dict[bytes, bytes]) -> None:
    try:
        tenant = int(fields[b"tenant"])
        found.tenants.add(tenant)
        name = fields[b"generation"].decode().partition(":")[0]
        found.oldest.setdefault((tenant, name), int(fields[b"sequence"]))
    except (KeyError, ValueError):  # no number, or nothing that can be read: the drain quarantines it
        return

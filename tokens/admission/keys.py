"""Names of the keys in the admission store.

A tenant belongs to one shard and every key of it carries the shard's hash tag, so one script touches one slot and a
shard's keys can be listed. `scope` is ``tenant:<id>``, ``member:<id>`` or ``token:<id>``.
"""

DIRECTORY = "directory"  # hash: `complete` = 1 when every token is in the store, so that a miss is an answer
CATALOG = "catalog"  # string: the providers and models, published by gateway.catalog
EXCEEDED = "exceeded"  # hash: `model:size` -> the bound, in tokens an image, that the provider has exceeded
EXPIRED = "expired"  # integer: calls that the lease ended, since the store was made; for the metrics
DECISIONS = "decisions"  # stream: why calls weren't admitted, the last 200,000 or so; for people who ask
NOBODY = "nobody"  # the tally's zone of calls whose token isn't known
GROUP = "ledger"  # the consumer group that drains the usage streams


def shard_of(tenant: int, shards: int) -> int:
    """The shard of a tenant: fixed by its id and the installation's number of shards."""
    return tenant % shards


def locator(digest: str) -> str:
    """String ``shard:tenant:member:token:secret`` (ids) for the digest of a secret. Immutable."""
    return f"token:{digest}"


def token(shard: int, token_id: int) -> str:
    """Hash: a token's record."""
    return f"{{s{shard}}}:token:{token_id}"


def member(shard: int, member_id: int) -> str:
    """Hash: a member's record."""
    return f"{{s{shard}}}:member:{member_id}"


def tenant(shard: int, tenant_id: int) -> str:
    """Hash: a tenant's record."""
    return f"{{s{shard}}}:tenant:{tenant_id}"


def meta(shard: int) -> str:
    """Hash: generation, counted_since (seconds), stopped (1: admit nobody)."""
    return f"{{s{shard}}}:meta"


def control(shard: int) -> str:
    """Hash ``token:<id>`` or ``tenant:<id>`` -> JSON: orders that PostgreSQL has yet to learn of (tokens.control)."""
    return f"{{s{shard}}}:control"


def use(shard: int, scope: str, period: str) -> str:
    """Hash: requests, images, tokens used, and the same with `reserved_`. `period` is such as ``day:2026-11-22``."""
    return f"{{s{shard}}}:use:{scope}:{period}"


def rate(shard: int, scope: str, metric: str, period: str) -> str:
    """String: GCRA theoretical arrival time, µs."""
    return f"{{s{shard}}}:rate:{scope}:{metric}:{period}"


def inflight(shard: int, scope: str) -> str:
    """Sorted set: request id -> lease end (µs)."""
    return f"{{s{shard}}}:inflight:{scope}"


def reservation(shard: int, request_id: str) -> str:
    """Hash: a call's state between admission and an hour after its end."""
    return f"{{s{shard}}}:reservation:{request_id}"


def deadlines(shard: int) -> str:
    """Sorted set: request id -> lease end (µs) of every open reservation."""
    return f"{{s{shard}}}:deadlines"


def sequence(shard: int, tenant_id: int) -> str:
    """Integer: the last sequence number of a tenant's usage events; gapless."""
    return f"{{s{shard}}}:sequence:{tenant_id}"


def usage(shard: int) -> str:
    """Stream: usage events, read by the group `ledger`."""
    return f"{{s{shard}}}:usage"


def idempotency(shard: int, token_id: int, key_hash: str) -> str:
    """Hash: fingerprint, request id, state and answer under an idempotency key."""
    return f"{{s{shard}}}:idempotency:{token_id}:{key_hash}"


# Telemetry (gateway.telemetry): nothing is decided or invoiced by it, and it may be lost. `day` is the tenant's own.


def tally(shard: int, tenant_id: int, day: str) -> str:
    """Hash: outcome or latency bucket -> calls of a tenant on a day."""
    return f"{{s{shard}}}:tally:{tenant_id}:{day}"


def zone_tally(zone: str, day: str) -> str:
    """The same for all tenants of a time zone; for calls whose token isn't known in the zone `NOBODY`, by UTC."""
    return f"tally:{{{zone}}}:{day}"


def tally_hours(tally_key: str) -> str:
    """Beside a tally, hash ``<hours since the day began>:<served, refused or failed>`` -> calls."""
    return f"{tally_key}:hours"


def tally_refused(tally_key: str) -> str:
    """Beside a tally, sorted set ``<tenant>:<token>:<error type>`` by the number of calls that were refused so."""
    return f"{tally_key}:refused"

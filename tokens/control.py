"""Orders that take effect in the admission store before PostgreSQL knows: revoke, suspend, stop.

The order is written by the script that carries it out into its shard's control hash, and dropped once the database
has it. So it survives a crash in between, and a database that is down: a task makes it durable later.
"""

from collections.abc import Iterator

import msgspec
from django.conf import settings

from config.redis import store
from tokens import records
from tokens.actors import SYSTEM, Actor
from tokens.admission import keys
from tokens.outbox import Entry, Kind
from tokens.scripts import answered, control_field, script


class Order(msgspec.Struct, frozen=True):
    """What the database must learn: the record's new status (``revoked``, ``suspended``), when, by whom and why.

    `actor` is for the audit trail, which tells of the order as it was given, whoever makes it durable.
    """

    status: str
    at: float  # epoch seconds
    by: str
    reason: str = ""
    actor: Actor = SYSTEM


def carry_out(entry: Entry, order: Order) -> bool:
    """Change the record in the store and keep the order. False when there is no such record. Raises StoreUnavailable.

    When this has returned True, no admission succeeds under the record.
    """
    names = [records.key_of(entry), keys.control(records.shard_of(entry.tenant_id))]
    with answered():
        arguments: list[str | bytes] = [order.status, control_field(entry), msgspec.json.encode(order)]
        return bool(script("revoke")(names, arguments, client=store()))


def forget(entry: Entry, order: Order) -> None:
    """Drop an order that the database has; a newer one stays. Raises StoreUnavailable."""
    control = keys.control(records.shard_of(entry.tenant_id))
    with answered():
        script("forget")([control], [control_field(entry), msgspec.json.encode(order)], client=store())


def pending_order(entry: Entry) -> Order | None:
    """The order for a record that the database has yet to learn of. Raises StoreUnavailable."""
    with answered():
        raw = store().hget(keys.control(records.shard_of(entry.tenant_id)), control_field(entry))
    return msgspec.json.decode(raw, type=Order) if isinstance(raw, bytes) else None


def withdraw(entry: Entry) -> int:
    """Drop whatever order there is for a record: the opposite was asked for. Raises StoreUnavailable.

    Returns the record's version in the store (0: none), which an order raises without the database: what is to
    replace the record must have a higher one.
    """
    with answered():
        pipeline = store().pipeline(transaction=True)
        pipeline.hdel(keys.control(records.shard_of(entry.tenant_id)), control_field(entry))
        pipeline.hget(records.key_of(entry), "version")
        return int(pipeline.execute()[1] or 0)


def pending_orders() -> Iterator[tuple[Kind, int, Order]]:
    """Every order that the database has yet to learn of: kind, id, order. Raises StoreUnavailable."""
    with answered():
        pipeline = store().pipeline(transaction=False)
        for shard in range(settings.SHARDS):
            pipeline.hgetall(keys.control(shard))
        replies = pipeline.execute()
    for reply in replies:
        for name, raw in reply.items():
            kind, _, number = name.decode().partition(":")
            if kind in Kind.values:
                yield Kind(kind), int(number), msgspec.json.decode(raw, type=Order)


def find_token(token_id: int) -> Entry | None:
    """A token by its id alone, for when the database is down. Raises StoreUnavailable."""
    with answered():
        pipeline = store().pipeline(transaction=False)
        for shard in range(settings.SHARDS):
            pipeline.hget(keys.token(shard, token_id), "tenant")
        tenants = [reply for reply in pipeline.execute() if reply is not None]
    return Entry(Kind.TOKEN, token_id, int(tenants[0])) if tenants else None


def find_tenant(slug: str) -> Entry | None:
    """A tenant by its short name, for when the database is down; reads every tenant's record. As find_token."""
    with answered():
        for raw in store().scan_iter(match="{s*}:tenant:*", count=1_000):
            number = raw.rpartition(b":")[2]
            if number.isdigit() and store().hget(raw, "slug") == slug.encode():
                return Entry(Kind.TENANT, int(number), int(number))
    return None

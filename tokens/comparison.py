"""Comparing the token directory with PostgreSQL, and putting right what differs.

Both change while they are compared, so the order of reading matters. For what the store has too much of, the store is
read first: whatever was published by then is visible in the database afterwards. What looks missing or different is
looked at again the other way round before it counts.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django.db import transaction
from django.utils.timezone import now

from config.redis import store
from tokens import directory, records, stopping
from tokens.admission import keys
from tokens.directory import BATCH, MODELS
from tokens.models import OutboxEntry, ProxyToken, Secret, TokenStatus
from tokens.outbox import Entry, Kind
from tokens.records import Record
from tokens.scripts import answered

T = TypeVar("T")


@dataclass(slots=True)
class Differences:
    """Where the store and the database differ, without changes that are still on their way.

    Attributes:
        missing: records that the store lacks or has an older version of, or that lack a locator.
        different: record -> version in the store, which isn't older than the database's but has other content.
        revoked: tokens that only the store knows to be revoked; that is final, so the database is wrong.
        orphans: keys of records and locators that no row stands behind.
    """

    missing: set[Entry] = field(default_factory=set)
    different: dict[Entry, int] = field(default_factory=dict)
    revoked: set[Entry] = field(default_factory=set)
    orphans: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.missing or self.different or self.revoked or self.orphans)

    def counts(self) -> dict[str, int]:
        """How many of each, for a log line."""
        return {
            "missing": len(self.missing),
            "different": len(self.different),
            "revoked": len(self.revoked),
            "orphans": len(self.orphans),
        }


def compare() -> Differences:
    """Compare every record and locator, in batches. Raises StoreUnavailable."""
    found = Differences()
    found.orphans.update(_orphan_locators(), *(_orphan_records(kind) for kind in Kind))
    for kind in Kind:
        for ids in directory.id_batches(kind):
            if suspects := _judge(kind, ids):
                _look_again(kind, suspects, found)
    return found


def repair(found: Differences) -> None:
    """Put right what `compare` found. Raises StoreUnavailable."""
    if found.revoked:
        stopping.apply_orders()  # where the store has the order, the database learns by whom and why
    for entry in found.revoked:
        _revoke_in_database(entry)
    for entry, version in found.different.items():
        _outdo(entry, version)
    for batch in _batches(found.missing):
        directory.publish(batch)
    with answered():
        for names in _batches(found.orphans):
            store().delete(*names)


def _revoke_in_database(entry: Entry) -> None:
    with transaction.atomic():
        token = ProxyToken.objects.select_for_update(no_key=True).filter(pk=entry.object_id).first()
        if token is not None and token.status != TokenStatus.REVOKED:
            token.status, token.revoked_at = TokenStatus.REVOKED, now()
            token.revoke_reason = "Found revoked in the admission store."
            token.save(update_fields=["status", "revoked_at", "revoke_reason"])


def _outdo(entry: Entry, version: int) -> None:
    """Publish a row under a version that the store doesn't know yet; processes that remember another one reload."""
    with transaction.atomic():
        row = MODELS[entry.kind]._default_manager.select_for_update(no_key=True).filter(pk=entry.object_id).first()
        if row is not None:
            row.raise_version(at_least=version + 1)


def _judge(kind: Kind, ids: list[int]) -> list[int]:
    """Database first: the ids of the records that don't stand in the store as they should."""
    made = records.read(kind, ids)
    return [record.entry.object_id for record, _, _ in _unequal(made, _stored(made))]


def _look_again(kind: Kind, ids: list[int], found: Differences) -> None:
    """Store first, then the database; what has an outbox entry is on its way and no difference."""
    stored = _stored(records.read(kind, ids))
    made = records.read(kind, ids)
    waiting = set(OutboxEntry.objects.filter(kind=kind, object_id__in=ids).values_list("object_id", flat=True))
    for record, version, status in _unequal(made, stored):
        if record.entry.object_id in waiting:
            continue
        if status == TokenStatus.REVOKED:
            found.revoked.add(record.entry)
        elif version >= record.version and record.status != TokenStatus.REVOKED and _content(record, stored):
            found.different[record.entry] = version
        else:
            found.missing.add(record.entry)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the store holds: the hashes of records by key, and locators."""

    hashes: dict[str, dict[str, str]]
    locators: dict[str, str | None]


def _stored(made: list[Record]) -> _Stored:
    names = [name for record in made for name in record.locators]
    with answered():
        pipeline = store().pipeline(transaction=False)
        for record in made:
            pipeline.hgetall(record.key)
        if names:
            pipeline.mget(names)
        replies: list[Any] = pipeline.execute()
    values = replies.pop() if names else []
    hashes = {
        record.key: {name.decode(): value.decode() for name, value in reply.items()}
        for record, reply in zip(made, replies, strict=True)
    }
    return _Stored(hashes, {name: v.decode() if v is not None else None for name, v in zip(names, values, strict=True)})


def _unequal(made: list[Record], stored: _Stored) -> Iterator[tuple[Record, int, str]]:
    """The records that differ, with version (0: none) and status in the store; a tombstone's content doesn't count."""
    for record in made:
        held = stored.hashes.get(record.key, {})
        status = held.get("status", "")
        if status == record.status == TokenStatus.REVOKED:
            continue
        if held != record.fields or _lacks_locator(record, stored):
            yield record, int(held.get("version", 0)), status


def _lacks_locator(record: Record, stored: _Stored) -> bool:
    return any(stored.locators.get(name) != value for name, value in record.locators.items())


def _content(record: Record, stored: _Stored) -> bool:
    """Whether the hash differs, not only a locator."""
    return stored.hashes.get(record.key) != record.fields


def _orphan_locators() -> Iterator[str]:
    """Locators of secrets that don't exist or have ended."""
    prefix = keys.locator("")
    for names in _batches(_scan(f"{prefix}*")):
        digests = [name.removeprefix(prefix) for name in names]
        known = set(Secret.objects.filter(digest__in=digests, ended_at=None).values_list("digest", flat=True))
        yield from (keys.locator(digest) for digest in digests if digest not in known)


def _orphan_records(kind: Kind) -> Iterator[str]:
    """Records without a row, but for tombstones, which stay for good; and records in another shard than their own."""
    for names in _batches(_scan(f"{{s*}}:{kind}:*")):
        numbers = [int(name.rpartition(":")[2]) for name in names]
        column = "pk" if kind is Kind.TENANT else "tenant_id"
        rows = MODELS[kind]._default_manager.filter(pk__in=numbers).values_list("pk", column)
        homes = {records.key_of(Entry(kind, number, tenant)) for number, tenant in rows}
        strays = [name for name in names if name not in homes]
        if kind is Kind.TOKEN:
            strays = [name for name in strays if not _is_tombstone(name)]
        yield from strays


def _is_tombstone(name: str) -> bool:
    with answered():
        return store().hget(name, "status") == TokenStatus.REVOKED.encode()


def _scan(pattern: str) -> Iterator[str]:
    cursor = 0
    while True:
        with answered():
            reply: Any = store().scan(cursor, match=pattern, count=BATCH)
        cursor, names = reply
        yield from (name.decode() for name in names)
        if not cursor:
            return


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch

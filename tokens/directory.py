"""The token directory: the records in the admission store, kept equal to PostgreSQL's rows.

A put is ordered by version, so publishing needs no lock and may be repeated or run twice at once: whoever is late
changes nothing. What is published is always read after the commit that asked for it.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from django.db.models import QuerySet
from django.dispatch import receiver

from config.redis import store
from tokens import installation, records
from tokens.admission import keys
from tokens.admission.connection import StoreUnavailable
from tokens.errors import DATABASE_DOWN
from tokens.models import Membership, OutboxEntry, ProxyToken, Tenant
from tokens.outbox import Entry, Kind, Published, committed
from tokens.records import Record
from tokens.scripts import answered, control_field, script

BATCH = 1_000  # rows read, and records written, in one go
MODELS: dict[Kind, type[Published]] = {Kind.TENANT: Tenant, Kind.MEMBER: Membership, Kind.TOKEN: ProxyToken}

logger = logging.getLogger(__name__)


def publish(entries: Iterable[Entry]) -> None:
    """Bring the named records in the store to what the database holds now, or to something newer.

    A token's member and tenant come with it, so that the token works once this returns. A row that is gone takes its
    record along; a deleted token leaves a tombstone. Raises StoreUnavailable.
    """
    wanted: dict[Kind, dict[int, Entry]] = defaultdict(dict)
    for entry in entries:
        wanted[entry.kind][entry.object_id] = entry
    made: list[Record] = []
    gone: list[Entry] = []
    for kind in (Kind.TOKEN, Kind.MEMBER, Kind.TENANT):
        found = records.read(kind, wanted[kind])
        gone += [wanted[kind][number] for number in wanted[kind].keys() - {record.entry.object_id for record in found}]
        made += found
        for record in found if kind is Kind.TOKEN else ():
            member = int(record.fields["member"])
            tenant = record.entry.tenant_id
            wanted[Kind.MEMBER].setdefault(member, Entry(Kind.MEMBER, member, tenant))
            wanted[Kind.TENANT].setdefault(tenant, Entry(Kind.TENANT, tenant, tenant))
    with answered():
        _write(reversed(made), gone)


def _write(made: Iterable[Record], gone: Iterable[Entry]) -> None:
    """One round trip. Locators come after all records: a secret that is found always has its token."""
    made = list(made)
    pipeline = store().pipeline(transaction=False)
    for record in made:
        _put(pipeline, record)
    for entry in gone:
        control = keys.control(records.shard_of(entry.tenant_id))
        if entry.kind is Kind.TOKEN:
            script("revoke")([records.key_of(entry), control], ["revoked", control_field(entry), ""], client=pipeline)
        else:
            pipeline.delete(records.key_of(entry))
    locators = {name: value for record in made for name, value in record.locators.items()}
    if locators:
        pipeline.mset(locators)
    ended = [name for record in made for name in record.ended]
    if ended:
        pipeline.delete(*ended)
    pipeline.execute()


def _put(client: Any, record: Record) -> None:
    control = keys.control(records.shard_of(record.entry.tenant_id))
    fields = [text for pair in record.fields.items() for text in pair]
    arguments: list[str | int] = [record.status, record.version, control_field(record.entry), *fields]
    script("put")([record.key, control], arguments, client=client)


@receiver(committed)
def publish_committed(entry: Entry, **_kwargs: Any) -> None:
    """Publish a change right after its commit. The change stands even if that fails; a task publishes it later."""
    try:
        _publish_batch(OutboxEntry.objects.filter(kind=entry.kind, object_id=entry.object_id))
    except (StoreUnavailable, *DATABASE_DOWN) as exc:
        logger.warning("A change isn't published yet, a task will do it (%s).", type(exc).__name__)


def publish_outbox() -> int:
    """Publish every change that the store has yet to learn of. Returns their number. Raises StoreUnavailable."""
    count = 0
    while published := _publish_batch(OutboxEntry.objects.all()):
        count += published
    return count


def _publish_batch(queryset: QuerySet[OutboxEntry]) -> int:
    rows = list(queryset.order_by("pk")[:BATCH])
    if rows:
        publish({row.entry for row in rows})
        OutboxEntry.objects.filter(pk__in=[row.pk for row in rows]).delete()
    return len(rows)


def is_waiting(changed: Published) -> bool:
    """Whether the store has yet to learn of a change of this row or its parts: it didn't answer after the commit."""
    entry = changed.entry()
    return OutboxEntry.objects.filter(kind=entry.kind, object_id=entry.object_id).exists()


def require_published(changed: Published) -> None:
    """After a change that must hold at once: raise StoreUnavailable when the store can't be told now."""
    try:
        # Once more, whatever came of it after the commit: its outbox entry may be gone, or be another change's.
        publish([changed.entry()])
    except StoreUnavailable as exc:
        raise StoreUnavailable(
            "The change is saved, but the admission store did not answer: it takes effect when the store is back.",
            sent=exc.sent,
        ) from exc


def load_all() -> int:
    """Put every record into the store, and the emergency stop if there is one, then mark the directory complete.

    Returns the number of records. Changes made meanwhile publish themselves, and versions decide.
    Raises StoreUnavailable.
    """
    count = 0
    for kind in Kind:
        for ids in id_batches(kind):
            made = records.read(kind, ids)
            with answered():
                _write(made, ())
            count += len(made)
    installation.restore_switch()
    with answered():
        store().hset(keys.DIRECTORY, "complete", "1")
    return count


def id_batches(kind: Kind) -> Iterator[list[int]]:
    """The ids of all rows of a kind, ascending, BATCH at a time; rows added meanwhile come, too."""
    last = 0
    while True:
        ids = MODELS[kind]._default_manager.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:BATCH]
        batch = list(ids)
        if not batch:
            return
        yield batch
        last = batch[-1]

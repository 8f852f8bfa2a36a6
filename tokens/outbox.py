"""How a change in PostgreSQL reaches the admission store, whoever makes it.

A record in the store (of a tenant, a member or a token) is made of a `Published` row and its `Part` rows (limits,
secrets). Saving or deleting either raises the record's version under its row lock and writes an OutboxEntry, in one
transaction; after the commit `committed` is sent, which publishes at once (tokens.directory). An entry goes only when
the store has the change, so one that couldn't be published is published later by a task.
"""

from collections.abc import Collection, Iterable, Mapping
from copy import copy
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

from django.db import models, transaction
from django.db.models import F, Value
from django.db.models.functions import Greatest
from django.dispatch import Signal
from django.utils.timezone import now

from tokens.audited import Audited, AuditedQuerySet, ModelT

committed = Signal()  # sent with `entry` after the transaction that changed its record


class Kind(models.TextChoices):
    """Whose record changed."""

    TENANT = "tenant"
    MEMBER = "member"
    TOKEN = "token"  # noqa: S105  (a kind of record, not a secret)


class Entry(NamedTuple):
    """Names one record: its kind, its row's id, and its tenant's id, which decides the shard."""

    kind: Kind
    object_id: int
    tenant_id: int


class OutboxEntry(models.Model):
    """A change that the admission store must still learn of, written in the transaction that makes it."""

    kind = models.CharField(max_length=8, choices=Kind)
    object_id = models.PositiveBigIntegerField()
    tenant_id = models.PositiveBigIntegerField()
    created_at = models.DateTimeField(default=now)

    class Meta:
        verbose_name_plural = "outbox entries"
        indexes = [models.Index(fields=["kind", "object_id"], name="outbox_of_a_record")]

    def __str__(self) -> str:
        return f"{self.kind} {self.object_id}"

    @property
    def entry(self) -> Entry:
        """The record that it is about."""
        return Entry(Kind(self.kind), self.object_id, self.tenant_id)


def note_change(entry: Entry) -> None:
    """Within the transaction that changes a record: remember it, and publish it after the commit."""
    OutboxEntry.objects.create(kind=entry.kind, object_id=entry.object_id, tenant_id=entry.tenant_id)
    transaction.on_commit(partial(committed.send, sender=OutboxEntry, entry=entry))


class PublishedQuerySet(AuditedQuerySet[ModelT]):
    """Refuses what would change rows without raising versions, otherwise the store would keep the old truth.

    `delete()` stays: it collects the rows and tells of each. Fields in the model's UNPUBLISHED, which no record
    holds, may be updated in bulk, unless the audit trail tells of them.
    """

    def update(self, **fields: Any) -> int:
        """As Django's, for fields that are neither published nor audited. Raises TypeError for any other."""
        published = fields.keys() - getattr(self.model, "UNPUBLISHED", frozenset())
        if published:
            raise TypeError(
                f"update() of {', '.join(sorted(published))} would go round the admission store: save() each "
                f"{self.model._meta.verbose_name} or use the verbs of tokens.issuing and tokens.stopping."
            )
        return super().update(**fields)

    def bulk_create(self, *_args: Any, **_kwargs: Any) -> list[Any]:
        """Refused: raises TypeError."""
        raise TypeError(
            f"bulk_create() would go round the admission store: save() each {self.model._meta.verbose_name}."
        )


class Published(Audited):
    """A row that is one record in the store. `version` rises with every change of it and of its parts.

    A copy remembers what it read, and saving it writes what has been changed in it since: whatever else the row has
    become meanwhile, suspended above all, stays.
    """

    UNPUBLISHED: ClassVar[frozenset[str]] = frozenset()
    UNAUDITED = frozenset({"version"})

    _read: Mapping[str, Any] = {}  # what this copy read, by the field's name

    version = models.PositiveBigIntegerField(default=1, editable=False)

    objects = PublishedQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        abstract = True

    @classmethod
    def from_db(cls, *args: Any, **kwargs: Any) -> Self:
        """A copy of a row, which remembers what it read."""
        row = super().from_db(*args, **kwargs)
        row._read = row._held()
        return row

    def refresh_from_db(
        self,
        using: str | None = None,
        fields: Iterable[str] | None = None,
        from_queryset: models.QuerySet[Self] | None = None,
    ) -> None:
        """Read the row once more, or these fields of it."""
        names = None if fields is None else list(fields)
        super().refresh_from_db(using, names, from_queryset)
        self._remember(self._held(names))

    def entry(self) -> Entry:
        """The record's name in the outbox."""
        raise NotImplementedError

    def prepare(self, stored: Self | None, changed: Collection[str]) -> Iterable[str]:
        """Called before each save, with the row as it is now (locked; None: a new one).

        `changed` names the fields that the save is to change: those it was told of, or else those that differ from
        what this copy read. Keeps what must not change from changing: adjusts or raises ValidationError. Returns the
        names of fields that it set, so that a save of some fields writes them, too.
        """
        raise NotImplementedError

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save what has been changed, raise the version, and publish after the commit. Raises what `prepare` raises.

        `update_fields` names the fields to save instead, whether they differ from what this copy read or not.
        When none of them is in a record (UNPUBLISHED), the version stays and nothing is published.
        """
        some = kwargs.get("update_fields")
        with transaction.atomic():
            # NO KEY: inserting a row that refers to this one mustn't wait.
            rows = type(self)._default_manager.select_for_update(no_key=True)
            stored = rows.filter(pk=self.pk).first() if self.pk is not None else None
            changed = self._changed() if some is None else set(some)
            if stored is not None:
                self._take_over(stored, self._changed() | changed)
            prepared = self.prepare(stored, changed)
            published = stored is None or not changed or bool(changed - self.UNPUBLISHED)
            if stored is not None:
                self.version = stored.version + published
            if some is not None:
                kwargs["update_fields"] = {*some, *prepared, "version"}
            super().save(*args, **kwargs)
            # Not before the commit: after a rollback, what was changed in this copy is still to be saved.
            transaction.on_commit(partial(self._remember, self._held(kwargs.get("update_fields"))))
            if published:
                note_change(self.entry())

    def _held(self, names: Collection[str] | None = None) -> dict[str, Any]:
        """What this copy holds of these fields, or of all; lists are copied, as they may be changed in place."""
        held = self.__dict__
        return {
            field.name: copy(held[field.attname])
            for field in self._meta.concrete_fields
            if field.attname in held and (names is None or field.name in names or field.attname in names)
        }

    def _remember(self, values: Mapping[str, Any]) -> None:
        """These are what the database holds."""
        self._read = {**self._read, **values}

    def _changed(self) -> set[str]:
        """The fields that differ from what was read; of a copy that wasn't read, all."""
        return {name for name, value in self._held().items() if name not in self._read or value != self._read[name]}

    def _take_over(self, stored: Self, changed: Collection[str]) -> None:
        """Bring every other field to what the row holds now."""
        for field in self._meta.concrete_fields:
            if field.attname in self.__dict__ and field.name not in changed:
                setattr(self, field.attname, getattr(stored, field.attname))

    def raise_version(self, at_least: int = 0) -> None:
        """Within a transaction: raise the version, to `at_least` if that is more, and publish after the commit."""
        raised = Greatest(F("version") + 1, Value(at_least))
        type(self)._base_manager.filter(pk=self.pk).update(version=raised)
        note_change(self.entry())


class Part(Audited):
    """A row that is part of a record: a limit or a secret."""

    UNPUBLISHED: ClassVar[frozenset[str]] = frozenset()

    objects = PublishedQuerySet.as_manager()  # type: ignore[misc]

    class Meta:
        abstract = True

    def owner(self) -> Published:
        """The row whose record this one is part of."""
        raise NotImplementedError

    def audit_parent(self) -> models.Model:
        """Its owner, for the audit trail, too."""
        return self.owner()

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save under the owner's row lock, raise the owner's version, and publish after the commit."""
        some = kwargs.get("update_fields")
        if some is not None and set(some) <= self.UNPUBLISHED:
            super().save(*args, **kwargs)
            return
        with transaction.atomic():
            stored = type(self)._default_manager.filter(pk=self.pk).first() if self.pk is not None else None
            owners = {owner.entry(): owner for owner in (self.owner(), stored.owner() if stored else None) if owner}
            for entry in sorted(owners):
                owners[entry].raise_version()
            super().save(*args, **kwargs)


def note_deletion(instance: Published | Part, **_kwargs: Any) -> None:
    """Receiver of `pre_delete`, which Django sends for each row of a deletion, cascades too, in its transaction."""
    if isinstance(instance, Part):
        instance.owner().raise_version()
    else:
        note_change(instance.entry())

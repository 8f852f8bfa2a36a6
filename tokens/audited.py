"""Rows that people change, each writing its own audit entry whenever it is saved or deleted, by whichever way.

The values before and after are read from the database within the transaction of the change, so they are what it
really held. Bulk updates would go round this: an audited model refuses them.
"""

import datetime as dt
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any, ClassVar, Self, TypeVar

from django.db import models, transaction
from django.db.models.signals import class_prepared, pre_delete
from django.dispatch import receiver

from tokens import audit
from tokens.audit import HIDDEN, Change, Verb

ModelT = TypeVar("ModelT", bound=models.Model, covariant=True)

NOT_TOLD_WHEN_NEW = frozenset({"created_at", "date_joined"})  # the entry's own time says it


class AuditedQuerySet(models.QuerySet[ModelT]):
    """Refuses what would change rows without an audit entry. `delete()` stays: it tells of each row."""

    def update(self, **fields: Any) -> int:
        """As Django's, for the model's UNAUDITED fields only. Raises TypeError for any other."""
        audited = fields.keys() - getattr(self.model, "UNAUDITED", frozenset())
        if audited:
            raise TypeError(
                f"update() of {', '.join(sorted(audited))} would go round the audit trail: save() each "
                f"{self.model._meta.verbose_name}."
            )
        return super().update(**fields)

    def bulk_create(self, *_args: Any, **_kwargs: Any) -> list[Any]:
        """Refused: raises TypeError."""
        raise TypeError(f"bulk_create() would go round the audit trail: save() each {self.model._meta.verbose_name}.")


class Audited(models.Model):
    """A row whose every change is told in the audit trail."""

    UNAUDITED: ClassVar[frozenset[str]] = frozenset()  # fields that people don't change
    HIDDEN: ClassVar[frozenset[str]] = frozenset()  # fields whose values nobody may read, only that they changed
    PART: ClassVar[str] = ""  # what people call such a part of a row; otherwise the model's name
    VERB_WHEN_NEW: ClassVar[str] = Verb.CREATED
    VERBS: ClassVar[Mapping[str, Mapping[Any, str]]] = {}  # of a change: by the field's name and its new value

    objects = AuditedQuerySet.as_manager()

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save, and tell in the same transaction what that has changed."""
        some = kwargs.get("update_fields")
        if some is not None and not self.audits(set(some)):
            super().save(*args, **kwargs)
            return
        with transaction.atomic():
            rows = type(self)._base_manager.order_by("pk")  # an order by another table would be locked with it
            stored = rows.select_for_update(no_key=True).filter(pk=self.pk).first() if self.pk is not None else None
            super().save(*args, **kwargs)
            self._tell(stored, rows.get(pk=self.pk))

    def _tell(self, before: Self | None, after: Self) -> None:
        names = differing(before, after)
        verb = after.audit_verb(before, names)
        if verb is not None and (before is None or names):
            _note(verb, after, [(name, before, after) for name in names])

    def audits(self, names: Collection[str]) -> bool:
        """Whether a save of these fields has anything to tell."""
        return not self.UNAUDITED.issuperset(names)

    def audit_verb(self, before: Self | None, changed: Collection[str]) -> str | None:
        """What a save has done, from the row as it was (None: it is new); None when that is nothing to tell."""
        if before is None:
            return self.VERB_WHEN_NEW
        meant = (self.VERBS[name].get(getattr(self, name)) for name in changed if name in self.VERBS)
        return next(filter(None, meant), Verb.CHANGED)

    def audit_parent(self) -> models.Model | None:
        """The row that this one is a part of, for people: then the entry is that row's."""
        return None

    def audit_name(self) -> str:
        """What people call it."""
        return str(self)

    def audit_words(self, name: str) -> str | None:
        """The value of a field as people know it; None: as values of its kind are written."""
        return None


def differing(before: Audited | None, after: Audited) -> list[str]:
    """The names of the audited fields whose values differ; of a new row, of those that are not empty."""
    told = [
        field for field in after._meta.concrete_fields if not field.primary_key and field.name not in after.UNAUDITED
    ]
    if before is None:
        return [
            f.name for f in told if f.name not in NOT_TOLD_WHEN_NEW and getattr(after, f.attname) not in (None, "", [])
        ]
    return [field.name for field in told if getattr(before, field.attname) != getattr(after, field.attname)]


def value_in_words(row: Audited | None, name: str) -> str:
    """The value of a row's field as people know it; "" for nothing, and of what is hidden only that there is one."""
    if row is None:
        return ""
    field: Any = row._meta.get_field(name)
    value = getattr(row, field.attname)
    if value is None or value in ("", []):
        return ""
    told = row.audit_words(name)
    if told is not None:
        return told
    if name in row.HIDDEN or isinstance(value, bytes | memoryview):
        return HIDDEN
    if field.is_relation:
        related = field.related_model._base_manager.filter(pk=value).first()
        return (
            f"{field.related_model._meta.verbose_name} {value}" if related is None else audit.subject_of(related).name
        )
    if isinstance(value, Decimal):
        return f"{plain_amount(value)} {getattr(row, 'currency', '')}".strip()
    return next((str(label) for choice, label in field.flatchoices if choice == value), "") or _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dt.datetime):
        return audit.moment(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def plain_amount(amount: Decimal) -> str:
    """An amount without exponent, with at least two places and no further zeros: 12.50, 0.000418."""
    whole, _, places = f"{amount:f}".partition(".")
    return f"{whole}.{places.rstrip('0').ljust(2, '0')}"


def _note(verb: str, row: Audited, told: list[tuple[str, Audited | None, Audited | None]]) -> None:
    parent = row.audit_parent()
    left_out = {parent._meta.label_lower, "tokens.tenant"} if parent is not None else set()
    changes: list[Change] = []
    for name, before, after in told:
        field: Any = row._meta.get_field(name)
        if field.is_relation and field.related_model._meta.label_lower in left_out and None in (before, after):
            continue  # whose part it is, the entry says
        changes.append((str(field.verbose_name), value_in_words(before, name), value_in_words(after, name)))
    part = "" if parent is None else f"{row.PART or row._meta.verbose_name} {row.audit_name()}"
    audit.note(verb, row if parent is None else parent, changes=changes, part=part)


@receiver(class_prepared)
def watch_deletions(sender: type[models.Model], **_kwargs: Any) -> None:
    """Have Django tell of each row that is deleted, cascades too, in the transaction that deletes it."""
    if issubclass(sender, Audited) and not sender._meta.abstract:
        pre_delete.connect(note_deletion, sender=sender)


def note_deletion(instance: Audited, **_kwargs: Any) -> None:
    """Tell that a row goes, with what it held."""
    stored = type(instance)._base_manager.filter(pk=instance.pk).first()
    if stored is not None:
        _note(Verb.DELETED, stored, [(name, stored, None) for name in differing(None, stored)])

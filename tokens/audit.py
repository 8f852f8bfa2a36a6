"""The audit trail: who did what to which object, when, from where and by which way, with the values before and after.

It is append-only, which the database enforces, and written in the transaction of what it tells. Models that people
change write it themselves (tokens.audited); whatever else people do is told by `note`. An entry holds everything as
text, so that it outlives what it is about. Secrets are never in it, only that they changed.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from django.apps import apps
from django.contrib.postgres.indexes import OpClass
from django.db import models
from django.db.models.functions import Upper
from django.utils.timezone import now

from tokens import actors
from tokens.actors import Actor, Way

AGENT_CHARACTERS = 300
MOST_CHARACTERS = 2_000  # of one value, or of a reason
CHANGES_IN_A_SENTENCE = 3
HIDDEN = "(hidden)"
STAFF = "platform staff"  # what a tenant's people are told instead of the name of one of the platform's

Change = tuple[str, str, str]  # what, before, after; as people know them, "" for none


class Verb(StrEnum):
    """What can be done, as it stands in a sentence after who did it. Others may be noted, too."""

    CREATED = "created"
    CHANGED = "changed"
    DELETED = "deleted"
    ISSUED = "issued"
    SHOWN = "made and showed"
    IMPORTED = "imported"
    ENDED = "ended"
    REVOKED = "revoked"
    SUSPENDED = "suspended"
    ACTIVATED = "activated"
    STOPPED = "stopped all calls"
    STARTED = "admitted calls again"
    RESOLVED = "resolved"
    BOOKED = "booked"
    SET_ASIDE = "set aside"
    DEALT_WITH = "dealt with"
    SIGNED_IN = "signed in"
    SIGN_IN_FAILED = "failed to sign in"
    SIGNED_OUT = "signed out"
    EXPORTED = "exported"


# After these a sentence goes on with the values; the others say it all.
WITH_VALUES = {Verb.CHANGED, Verb.ENDED, Verb.RESOLVED, Verb.EXPORTED}


class Subject(NamedTuple):
    """What something was done to: the model's label (``tokens.tenant``), id and name, and its tenant's id if any.

    Without an id it is many at once, such as a list that was exported.
    """

    type: str
    id: str
    name: str
    tenant_id: int | None = None


class AuditEntry(models.Model):
    """One thing that somebody did. Its tenant and user may be gone: nothing checks that they are there."""

    at = models.DateTimeField(help_text="When it was done.")
    recorded_at = models.DateTimeField(default=now, help_text="When it was written; later if the database was down.")
    actor = models.TextField("who")
    user = models.ForeignKey(
        "tokens.User", on_delete=models.DO_NOTHING, null=True, db_constraint=False, related_name="+"
    )
    way = models.CharField("by way of", max_length=8, choices=Way)
    address = models.GenericIPAddressField(null=True)
    agent = models.CharField("client", max_length=AGENT_CHARACTERS, blank=True)
    of_platform = models.BooleanField(default=False, help_text="Done by one of the platform's own people.")
    verb = models.CharField(max_length=40)
    object_type = models.CharField(max_length=100)
    object_id = models.TextField(blank=True)
    object_name = models.TextField(blank=True)
    part = models.TextField(blank=True, help_text="The part of the object that it was done to, such as a limit.")
    tenant = models.ForeignKey(
        "tokens.Tenant",
        on_delete=models.DO_NOTHING,
        null=True,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    changes = models.JSONField(default=list, help_text="Triples of text: field, before, after.")
    reason = models.TextField(blank=True)

    class Meta:
        verbose_name_plural = "audit entries"
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["tenant", "id"], name="audit_of_a_tenant"),
            models.Index(fields=["object_type", "object_id", "id"], name="audit_of_an_object"),
            models.Index(fields=["object_id"], name="audit_of_an_id"),
            models.Index(fields=["verb", "id"], name="audit_of_a_verb"),
            models.Index(fields=["at"], name="audit_of_a_time"),
            models.Index(OpClass(Upper("object_name"), name="text_pattern_ops"), name="audit_of_a_name"),
            models.Index(OpClass(Upper("actor"), name="text_pattern_ops"), name="audit_of_an_actor"),
        ]

    def __str__(self) -> str:
        return self.sentence

    @property
    def kind(self) -> str:
        """What its object is, in words, such as "proxy token"."""
        try:
            return str(apps.get_model(self.object_type)._meta.verbose_name)
        except (LookupError, ValueError):  # a model that later versions no longer have
            return self.object_type

    @property
    def what(self) -> str:
        """The object, in words, and the part of it that it was done to."""
        if not self.object_name:
            return ""
        thing = f"{self.kind} {self.object_name}" if self.object_id else self.object_name
        return f"{self.part} of {thing}" if self.part else thing

    @property
    def sentence(self) -> str:
        """What was done, to be read after who did it."""
        if self.verb in {Verb.SIGNED_IN, Verb.SIGNED_OUT}:
            return self.verb
        if self.verb == Verb.SIGN_IN_FAILED:
            return f"{self.verb} as {self.object_name}"
        text = " ".join(word for word in (self.verb, self.what) if word)
        told = [_in_words(*change) for change in self.changes]
        if self.verb not in WITH_VALUES or not told:
            return text
        more = len(told) - CHANGES_IN_A_SENTENCE
        return f"{text}: {'; '.join(told[:CHANGES_IN_A_SENTENCE])}{f'; and {more} more' if more > 0 else ''}"


def _in_words(name: str, before: str, after: str) -> str:
    if HIDDEN in (before, after):
        return name
    return f"{name} {before or '–'} → {after or '–'}" if before or not after else f"{name} {after}"


def subject_of(row: models.Model) -> Subject:
    """A row as the subject of an entry, by what it says of itself if it does."""
    options = row._meta.concrete_model._meta if row._meta.concrete_model else row._meta
    told = getattr(row, "audit_name", None)
    name = str(row) if told is None else told()
    tenant = row.pk if options.label_lower == "tokens.tenant" else getattr(row, "tenant_id", None)
    if getattr(row, "PLATFORMS_OWN", False):  # nothing for the people of the tenant that it is about
        tenant = None
    return Subject(options.label_lower, str(row.pk), name, tenant)


def note(
    verb: str,
    subject: Subject | models.Model,
    *,
    changes: Sequence[Change] = (),
    reason: str = "",
    part: str = "",
    actor: Actor | None = None,
) -> None:
    """Note that somebody has done something. Call it in the transaction that does it.

    Args:
        verb: what was done, as in `Verb`; at most 40 characters.
        subject: what it was done to.
        changes: field, before and after, in words; never a secret.
        reason: why; otherwise that of the circumstances (tokens.actors).
        part: the part of the subject that it was done to.
        actor: who did it; otherwise whoever is acting.
    """
    AuditEntry.objects.bulk_create([_entry(verb, subject, changes, reason, part, actor or actors.current())])


def note_many(verb: str, told: Iterable[tuple[Subject, Sequence[Change]]], reason: str = "") -> None:
    """Note the same of many subjects, each with its changes. As `note`."""
    actor = actors.current()
    entries = [_entry(verb, subject, changes, reason, "", actor) for subject, changes in told]
    AuditEntry.objects.bulk_create(entries, batch_size=500)


def _entry(
    verb: str, subject: Subject | models.Model, changes: Sequence[Change], reason: str, part: str, actor: Actor
) -> AuditEntry:
    about = subject if isinstance(subject, Subject) else subject_of(subject)
    because = actors.circumstances()
    at = now()
    return AuditEntry(
        at=because.at or at,
        recorded_at=at,
        actor=_clean(actor.name),
        user_id=actor.user,
        way=actor.way,
        address=actor.address or None,
        agent=_clean(actor.agent)[:AGENT_CHARACTERS],
        of_platform=actor.platform,
        verb=verb,
        object_type=about.type,
        object_id=_clean(about.id),
        object_name=_clean(about.name),
        part=_clean(part),
        tenant_id=about.tenant_id,
        changes=[tuple(map(_clean, change)) for change in changes],
        reason=_clean(reason or because.reason),
    )


def _clean(text: str) -> str:
    """As PostgreSQL takes it, and not without end."""
    return text.replace("\0", "\ufffd")[:MOST_CHARACTERS]


def moment(at: dt.datetime) -> str:
    """A time as the trail writes it: UTC, to the second."""
    return f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"

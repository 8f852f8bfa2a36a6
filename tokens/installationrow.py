"""The row that is the installation."""

from collections.abc import Collection
from typing import Self

from django.db import models
from django.utils.timezone import now

from tokens.audit import Verb
from tokens.audited import Audited


class Installation(Audited):
    """The installation, in one row: its number of shards, which must never change under it, and its emergency stop."""

    UNAUDITED = frozenset({"store_name"})

    shards = models.PositiveSmallIntegerField()
    stopped_at = models.DateTimeField(null=True, editable=False)  # nobody is admitted since; None: calls are
    store_name = models.CharField(max_length=36, blank=True, editable=False)  # the uuid it was last opened under
    created_at = models.DateTimeField(default=now)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(pk=1), name="one_installation")]

    def __str__(self) -> str:
        return f"{self.shards} shards"

    def audit_verb(self, before: Self | None, changed: Collection[str]) -> str | None:
        """Stopped or started. That it is new, people don't do: the first start does."""
        if before is None:
            return None
        return (
            Verb.CHANGED if "stopped_at" not in changed else Verb.STARTED if self.stopped_at is None else Verb.STOPPED
        )

    def audit_name(self) -> str:
        """None: there is one."""
        return ""

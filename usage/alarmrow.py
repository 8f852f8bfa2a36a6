"""The row that is an alarm."""

import re

from django.db import models
from django.utils.timezone import now

STORE_UUID = re.compile(r" [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

KINDS = {  # usage.alarms.AlarmKind, for people
    "sequence_gap": "Lost usage events",
    "sequence_behind": "The store lost data",
    "counters_differ": "Counters differ from the books",
    "quarantine": "Events that couldn't be booked",
    "backlog": "The books are behind",
    "unresolved_old": "Calls long unresolved",
    "unsettled_old": "Quota that isn't freed",
    "spool": "Usage waits in the spool",
    "store_fenced": "The store was emptied",
    "store_down": "The store is out of reach",
    "store_full": "The store is nearly full",
    "bound_exceeded": "An upper bound was exceeded",
}


class Alarm(models.Model):
    """Something that a person must look at. It stays open until what raised it is found to be right again."""

    kind = models.CharField(max_length=40, help_text="A short name, such as sequence_gap.")
    subject = models.CharField(max_length=200, blank=True, help_text="What it is about, such as a tenant.")
    message = models.TextField()
    opened_at = models.DateTimeField(default=now)
    seen_at = models.DateTimeField(default=now, help_text="When it was last found to be so.")
    mailed_at = models.DateTimeField(null=True, blank=True)
    closed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "subject"], condition=models.Q(closed_at=None), name="one_open_alarm_of_a_kind"
            )
        ]

    def __str__(self) -> str:
        about = self.about
        return f"{self.kind_in_words}: {about}" if about else self.kind_in_words

    @property
    def kind_in_words(self) -> str:
        """Such as "Lost usage events"."""
        return KINDS.get(self.kind, self.kind)

    @property
    def about(self) -> str:
        """The subject for people: without a uuid of the store's, which only tells two subjects apart."""
        return STORE_UUID.sub("", self.subject)

"""What the audit trail is told of an export, by whichever way somebody makes or fetches it."""

from tokens import audit
from tokens.audit import Subject, Verb
from usage.exporting.formats import FORMATS
from usage.reports import Query


def note_export(query: Query, format_name: str, what: str) -> None:
    """Note that whoever is acting gets this usage in a format; `what` says which report or file it is.

    The entry belongs to the tenant whose usage it is. Call it before they have a byte of it.
    """
    tenant = query.tenant.pk if query.tenant else None
    changes = [("format", "", FORMATS[format_name].name), ("days", "", f"{query.start} to {query.end}, not included")]
    subject = Subject("usage.dailyusage", "", "usage report", tenant)
    audit.note(Verb.EXPORTED, subject, changes=[*changes, ("report", "", what)])

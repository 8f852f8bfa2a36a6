"""`manage.py audit`: the audit trail, to read or to take away."""

import datetime as dt
import json
from argparse import ArgumentParser
from typing import Any

from django.db.models import QuerySet

from tokens import audit
from tokens.audit import AuditEntry, Subject, Verb
from tokens.errors import Refused
from tokens.management.base import VerbCommand, find_tenant, moment, one_line
from usage.exports import write_csv
from usage.management.arguments import at_least_one, day

CHUNK = 1_000  # entries read at once
LISTED = 50
COLUMNS = [
    *("id", "at", "recorded_at", "who", "way", "address", "client", "verb", "object_type", "object_id", "object_name"),
    *("part", "tenant", "changes", "reason"),
]


class Command(VerbCommand):
    help = "List or export the audit trail: who did what to which object, when, from where and by which way."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        listing = verbs.add_parser(
            "list", help="one line an entry, newest first: id, time, who, way, address, what, why"
        )
        listing.add_argument(
            "--limit", type=at_least_one, default=LISTED, metavar="N", help=f"at most so many ({LISTED})"
        )
        export = verbs.add_parser("export", help="every entry, oldest first, with all that it holds")
        export.add_argument("--format", choices=["csv", "jsonl"], default="csv", help="default: csv")
        for verb in (listing, export):
            verb.add_argument("--tenant", metavar="SLUG", help="only what was done to this tenant's objects")
            verb.add_argument("--since", type=day, metavar="DAY", help="the first day, in UTC")
            verb.add_argument("--until", type=day, metavar="DAY", help="the day after the last")
            verb.add_argument("--who", metavar="NAME", help="only by whom, such as an e-mail address")
            verb.add_argument("--verb", dest="done", metavar="VERB", help="only what was done so, such as revoked")
            verb.add_argument("--object", metavar="TYPE:ID", help="only to this, such as tokens.proxytoken:12")

    def do_list(self, options: dict[str, Any]) -> None:
        """The newest entries, as sentences."""
        for entry in _entries(options).order_by("-pk")[: max(options["limit"], 0)]:
            done = (entry.actor, entry.way, entry.address or "-", entry.sentence, entry.reason)
            self.stdout.write(one_line(entry.pk, moment(entry.at), *done))

    def do_export(self, options: dict[str, Any]) -> None:
        """Everything, for other programs."""
        entries = _entries(options)
        asked = {name: options[name] for name in ("tenant", "since", "until", "who", "done", "object") if options[name]}
        chosen = ", ".join(f"{name} {value}" for name, value in asked.items()) or "all rows"
        tenant = find_tenant(options["tenant"]).pk if options["tenant"] else None
        plural = str(AuditEntry._meta.verbose_name_plural)
        subject = Subject(AuditEntry._meta.label_lower, "", plural, tenant)
        audit.note(Verb.EXPORTED, subject, changes=[("filter", "", chosen)])
        rows = map(_columns, entries.order_by("pk").iterator(chunk_size=CHUNK))
        if options["format"] == "csv":
            write_csv([COLUMNS], self.stdout)
            write_csv(map(_as_cells, rows), self.stdout)
            return
        for row in rows:
            self.stdout.write(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False))


def _entries(options: dict[str, Any]) -> QuerySet[AuditEntry]:
    """What the arguments let through. Raises Refused."""
    entries = AuditEntry.objects.select_related("tenant")
    if options["tenant"]:
        entries = entries.filter(tenant=find_tenant(options["tenant"]))
    if options["since"]:
        entries = entries.filter(at__gte=_midnight(options["since"]))
    if options["until"]:
        entries = entries.filter(at__lt=_midnight(options["until"]))
    if options["who"]:
        entries = entries.filter(actor__iexact=options["who"])
    if options["done"]:
        entries = entries.filter(verb=options["done"])
    if options["object"]:
        kind, colon, number = options["object"].partition(":")
        if not (kind and colon and number):
            raise Refused(
                f"{options['object']!r} is not an object: write its type and id, such as tokens.proxytoken:12."
            )
        entries = entries.filter(object_type=kind, object_id=number)
    return entries


def _midnight(first: dt.date) -> dt.datetime:
    return dt.datetime.combine(first, dt.time(), dt.UTC)


def _columns(entry: AuditEntry) -> list[Any]:
    times = [moment(entry.at), moment(entry.recorded_at)]
    about = [entry.verb, entry.object_type, entry.object_id, entry.object_name, entry.part]
    tenant = entry.tenant.slug if entry.tenant else None
    return [
        entry.pk,
        *times,
        entry.actor,
        entry.way,
        entry.address,
        entry.agent,
        *about,
        tenant,
        entry.changes,
        entry.reason,
    ]


def _as_cells(row: list[Any]) -> list[Any]:
    return [json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value for value in row]

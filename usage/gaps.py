"""Lost usage events: numbers that the admission store gave and that never came into the ledger.

The script that ends a call gives its event the tenant's next number, beginning with 1 under each uuid of the store's
generation, and every event that comes in leaves a receipt. The rule: below the tenant's oldest event that still waits
in the stream (with none waiting, up to the store's counter) every number must have come in. The counter is read first,
then the stream, then the receipts, and an entry leaves the stream only after its event is committed: a number that is
in neither is lost, whoever drains meanwhile. Under an earlier uuid nothing waits, since a store is opened under a new
one only with empty streams.

`SequenceCheck.through` goes on past a gap once the gap has its alarm, otherwise every check would look at all that came
since. The alarm's subject names the first and the last number; it is looked at in each check and closes when all have
come in. Old receipts are deleted, but not those between an open alarm's numbers, which would count as lost otherwise.
"""

import datetime as dt
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from django.conf import settings
from django.db import connection, transaction
from django.db.models.fields.json import KeyTextTransform

from config.redis import store
from tokens.admission import keys
from tokens.models import Tenant
from usage.alarms import AlarmKind, clear_alarms, open_subjects, raise_alarm
from usage.models import EventReceipt, QuarantinedEvent, SequenceCheck, UsageRecord
from usage.waiting import Waiting, waiting

KEPT = 100_000  # receipts of a tenant and uuid that are kept below what is checked
SHOWN = 5
NEWEST = 2_000  # ledger rows of a tenant in which the neighbours of what is lost are looked for
NEXT_TO = " Next to "  # begins the part of a message that stays as it was when the alarm opened
SUBJECT = re.compile(r"(\S+) (\S+) (\d+)-(\d+)")
RECEIPTS = EventReceipt._meta.db_table

# The distinct (tenant, generation) by one look into the index for each: DISTINCT would read every receipt.
GENERATIONS = f"""
WITH RECURSIVE generations AS (
    (SELECT tenant_id, generation FROM {RECEIPTS} ORDER BY tenant_id, generation LIMIT 1)
    UNION ALL
    SELECT next.* FROM generations g, LATERAL (
        SELECT tenant_id, generation FROM {RECEIPTS} r
        WHERE (r.tenant_id, r.generation) > (g.tenant_id, g.generation) ORDER BY tenant_id, generation LIMIT 1
    ) next
)"""  # noqa: S608 - constants
HIGHEST = f"""{GENERATIONS}
SELECT tenant_id, split_part(generation, ':', 1), max(top.sequence) FROM generations g, LATERAL (
    SELECT sequence FROM {RECEIPTS} r WHERE r.tenant_id = g.tenant_id AND r.generation = g.generation
    ORDER BY sequence DESC LIMIT 1
) top GROUP BY 1, 2
"""  # noqa: S608 - constants
MISSING = f"""{GENERATIONS}, asked AS (
    SELECT * FROM unnest(%s::bigint[], %s::text[], %s::bigint[], %s::bigint[]) AS a (tenant_id, name, after, upto)
), came AS (
    SELECT a.tenant_id, a.name, a.after, r.sequence FROM asked a
    JOIN generations g ON g.tenant_id = a.tenant_id AND split_part(g.generation, ':', 1) = a.name
    JOIN {RECEIPTS} r ON r.tenant_id = g.tenant_id AND r.generation = g.generation
        AND r.sequence > a.after AND r.sequence <= a.upto
    UNION ALL SELECT tenant_id, name, after, upto + 1 FROM asked
), steps AS (
    SELECT tenant_id, name, after, sequence, lag(sequence, 1, after) OVER w AS before
    FROM came WINDOW w AS (PARTITION BY tenant_id, name, after ORDER BY sequence)
)
SELECT tenant_id, name, after, before + 1, sequence - 1 FROM steps WHERE sequence > before + 1 ORDER BY 1, 2, 4
"""  # noqa: S608 - constants
ADVANCE = f"""
INSERT INTO {SequenceCheck._meta.db_table} AS c (tenant_id, generation, through, checked_at)
SELECT *, now() FROM unnest(%s::bigint[], %s::text[], %s::bigint[])
ON CONFLICT (tenant_id, generation) DO UPDATE
SET through = greatest(c.through, excluded.through), checked_at = excluded.checked_at
"""  # noqa: S608 - constants
PRUNE = f"""{GENERATIONS}
DELETE FROM {RECEIPTS} r USING generations g,
    unnest(%s::bigint[], %s::text[], %s::bigint[]) AS c (tenant_id, name, through)
WHERE g.tenant_id = c.tenant_id AND split_part(g.generation, ':', 1) = c.name
    AND r.tenant_id = g.tenant_id AND r.generation = g.generation AND r.sequence <= c.through
    AND NOT EXISTS (
        SELECT FROM unnest(%s::bigint[], %s::text[], %s::bigint[], %s::bigint[]) AS a (tenant_id, name, after, upto)
        WHERE a.tenant_id = c.tenant_id AND a.name = c.name AND r.sequence > a.after AND r.sequence <= a.upto
    )
"""  # noqa: S608 - constants

Group = tuple[int, str]  # tenant, uuid of the generation
Range = tuple[int, int]  # first and last number


class Asked(NamedTuple):
    """Numbers of a tenant under a uuid: those above `after`, up to `upto`."""

    tenant: int
    name: str
    after: int
    upto: int


def check_sequences() -> None:
    """Look for numbers that never came in, raise an alarm for what is missing, close alarms of what has come.

    Nothing is looked at while the store is fenced; what it lost then shows once it is open again. Raises
    redis.RedisError and django.db.OperationalError.
    """
    tops = _highest()
    slugs = dict(Tenant.objects.values_list("pk", "slug"))
    name, counters = _counters(list(slugs))
    if not name:
        return
    _look_at_open_alarms()
    _compare_counters({tenant: top for (tenant, known), top in tops.items() if known == name}, counters, slugs)
    through = _through()
    asked = [
        Asked(*group, through.get(group, 0), upto)
        for group, upto in _reaches(name, counters, tops, through).items()
        if upto > through.get(group, 0)
    ]
    lost = _lost(asked)
    with transaction.atomic():
        for item in asked:
            if ranges := lost.get(item):
                slug = slugs[item.tenant]
                subject = f"{slug} {item.name} {ranges[0][0]}-{ranges[-1][1]}"
                raise_alarm(AlarmKind.SEQUENCE_GAP, subject, _message(slug, ranges) + _neighbours(item, ranges))
        _advance(asked)
        _prune(asked, tops)


def _reaches(
    name: str, counters: Mapping[int, int], tops: Mapping[Group, int], through: Mapping[Group, int]
) -> dict[Group, int]:
    """Up to which number everything must have come in, as the rule says; what can't be told now is left out."""
    reaches = {group: top for group, top in tops.items() if group[1] != name}
    looked: dict[int, Waiting] = {}
    for tenant, counter in counters.items():
        group, shard = (tenant, name), keys.shard_of(tenant, settings.SHARDS)
        if counter <= through.get(group, 0):
            continue
        if shard not in looked:
            looked[shard] = waiting(shard)
        if group in looked[shard].oldest:
            reaches[group] = min(counter, looked[shard].oldest[group] - 1)
        elif looked[shard].complete:
            reaches[group] = counter
    return reaches


def _highest() -> dict[Group, int]:
    """The highest number that came in."""
    with connection.cursor() as cursor:
        cursor.execute(HIGHEST)
        return {(tenant, name): top for tenant, name, top in cursor.fetchall()}


def _counters(tenants: list[int]) -> tuple[str, dict[int, int]]:
    """The uuid of the store's generation ("": fenced) and each tenant's last number under it, at one moment."""
    pipeline = store().pipeline(transaction=True)
    pipeline.hget(keys.meta(0), "generation")
    for tenant in tenants:
        pipeline.get(keys.sequence(keys.shard_of(tenant, settings.SHARDS), tenant))
    generation, *numbers = pipeline.execute()
    counters = {tenant: int(number) for tenant, number in zip(tenants, numbers, strict=True) if number}
    return (generation or b"").decode().partition(":")[0], counters


def _through() -> dict[Group, int]:
    rows = SequenceCheck.objects.values_list("tenant_id", "generation", "through")
    return {(tenant, name): through for tenant, name, through in rows}


def _lost(asked: Iterable[Asked]) -> dict[Asked, list[Range]]:
    """The numbers that neither came in nor are in quarantine, for those of `asked` that lack any."""
    by_start = {(item.tenant, item.name, item.after): item for item in asked}
    columns = [list(column) for column in zip(*by_start.values(), strict=True)]
    missing: dict[Asked, list[Range]] = defaultdict(list)
    if columns:
        with connection.cursor() as cursor:
            cursor.execute(MISSING, columns)
            for tenant, name, after, first, last in cursor.fetchall():
                missing[by_start[tenant, name, after]].append((first, last))
    aside = _quarantined({item.tenant for item in missing})
    lost = {}
    for item, ranges in missing.items():
        known = aside.get((item.tenant, item.name), set())
        if left := [part for found in ranges for part in _without(found, known)]:
            lost[item] = left
    return lost


def _quarantined(tenants: set[int]) -> dict[Group, set[int]]:
    """The numbers of these tenants' quarantined events."""
    if not tenants:
        return {}
    named = QuarantinedEvent.objects.annotate(whose=KeyTextTransform("tenant", "raw"))
    found: dict[Group, set[int]] = defaultdict(set)
    rows = named.filter(whose__in=[str(tenant) for tenant in tenants]).values_list("whose", "raw")
    for whose, raw in rows.iterator():
        try:
            found[int(whose), str(raw["generation"]).partition(":")[0]].add(int(raw["sequence"]))
        except (KeyError, ValueError, TypeError):
            continue
    return found


def _without(numbers: Range, known: set[int]) -> list[Range]:
    """What is left of a range without some of its numbers."""
    left, first = [], numbers[0]
    for number in sorted(known):
        if first <= number <= numbers[1]:
            if first < number:
                left.append((first, number - 1))
            first = number + 1
    return [*left, (first, numbers[1])] if first <= numbers[1] else left


def _message(slug: str, ranges: list[Range]) -> str:
    count = sum(last - first + 1 for first, last in ranges)
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges[:SHOWN])
    more = ", ..." if len(ranges) > SHOWN else ""
    return (
        f"{count} usage event{'s' if count > 1 else ''} of {slug} never came into the ledger:"
        f" number{'s' if count > 1 else ''} {shown}{more}."
    )


def _neighbours(item: Asked, ranges: list[Range]) -> str:
    """When the calls came in whose events stand before and after what is lost, as far as the newest rows tell."""
    rows = UsageRecord.objects.filter(tenant=item.tenant).order_by("-id")
    newest = rows.values_list("generation", "sequence", "at")[:NEWEST]
    known = sorted((number, at) for name, number, at in newest if number and name.partition(":")[0] == item.name)
    before = [at for number, at in known if number < ranges[0][0]][-1:]
    after = [at for number, at in known if number > ranges[-1][1]][:1]
    times = " and ".join(f"{at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}" for at in before + after)
    return f"{NEXT_TO}what is lost: calls of {times} UTC." if times else ""


def _alarmed(subjects: Iterable[str]) -> dict[str, Asked]:
    """The numbers from the first to the last of alarms, by their subjects; without subjects that can't be read."""
    matches = {subject: SUBJECT.fullmatch(subject) for subject in subjects}
    tenants = dict(Tenant.objects.filter(slug__in={m[1] for m in matches.values() if m}).values_list("slug", "pk"))
    return {
        subject: Asked(tenants[match[1]], match[2], int(match[3]) - 1, int(match[4]))
        for subject, match in matches.items()
        if match and match[1] in tenants
    }


def _look_at_open_alarms() -> None:
    """Close the alarms whose numbers have all come in; say of the others what is still missing."""
    messages = open_subjects(AlarmKind.SEQUENCE_GAP)
    asked = _alarmed(messages)
    still_open = [subject for subject in messages if subject not in asked]
    lost = _lost(asked.values())
    for subject, item in asked.items():
        if ranges := lost.get(item):
            when = "".join(messages[subject].partition(NEXT_TO)[1:])
            raise_alarm(AlarmKind.SEQUENCE_GAP, subject, _message(subject.split()[0], ranges) + when)
            still_open.append(subject)
    clear_alarms(AlarmKind.SEQUENCE_GAP, still_open)


def _compare_counters(tops: Mapping[int, int], counters: Mapping[int, int], slugs: Mapping[int, str]) -> None:
    """A counter below what came in before it was read: numbers will be given twice, calls may be counted twice."""
    behind = {slugs[tenant]: top for tenant, top in tops.items() if tenant in slugs and counters.get(tenant, 0) < top}
    for slug, top in behind.items():
        text = f"The store's sequence of {slug} is behind number {top}, which has come in: the store lost data."
        raise_alarm(AlarmKind.SEQUENCE_BEHIND, slug, text)
    clear_alarms(AlarmKind.SEQUENCE_BEHIND, behind)


def _advance(asked: list[Asked]) -> None:
    if asked:
        with connection.cursor() as cursor:
            cursor.execute(ADVANCE, [list(column) for column in zip(*sorted(_ends(asked)), strict=True)])


def _ends(asked: Iterable[Asked]) -> list[tuple[int, str, int]]:
    return [(item.tenant, item.name, item.upto) for item in asked]


def _prune(asked: list[Asked], tops: Mapping[Group, int]) -> None:
    """Delete old receipts; never the highest, which tells the guardian what the store must know.

    Those between the numbers of an open alarm stay until it closes: without them all its numbers would seem missing.
    """
    bounds = [(tenant, name, min(upto, tops.get((tenant, name), 0)) - KEPT) for tenant, name, upto in _ends(asked)]
    if old := [bound for bound in bounds if bound[2] > 0]:
        with connection.cursor() as cursor:
            alarmed = _alarmed(open_subjects(AlarmKind.SEQUENCE_GAP)).values()
            kept = [list(column) for column in zip(*alarmed, strict=True)] if alarmed else [[], [], [], []]
            cursor.execute(PRUNE, [*[list(column) for column in zip(*old, strict=True)], *kept])

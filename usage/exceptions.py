"""What a person should look at before usage is invoiced, one row each, streamed.

Unresolved calls; calls charged at an estimate, because the provider's figure was missing or absurd; calls without a
price; events that were lost (gaps in the numbers), or are in quarantine; and, given a provider's own usage, the days
and models on which it and the ledger differ.
"""

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from enum import StrEnum
from itertools import chain
from typing import Any, NamedTuple

import msgspec
from django.conf import settings
from django.db import connection
from django.urls import reverse

from tokens.models import Membership, Tenant, User
from usage.alarms import AlarmKind
from usage.models import Alarm, QuarantinedEvent, Unpriced
from usage.providerusage import Difference, ProviderUsage, differences
from usage.quarantine import whose
from usage.reports import Query


class ExceptionKind(StrEnum):
    """Why it is an exception; the order is that of the rows of one call."""

    UNRESOLVED = "unresolved"
    MISSING = "usage missing"
    ESTIMATED = "usage unreadable"
    ABSURD = "usage absurd"
    UNPRICED = "unknown price"
    GAP = "lost events"
    QUARANTINED = "quarantined"
    PROVIDER = "provider differs"


WHAT = {
    ExceptionKind.UNRESOLVED: "The outcome isn't known; not invoiced until it is resolved.",
    ExceptionKind.MISSING: "The provider reported no tokens; charged at the estimate.",
    ExceptionKind.ESTIMATED: "The provider's figure was no number; charged at the estimate.",
    ExceptionKind.ABSURD: "The provider reported {reported:,} tokens, which can't be; charged at the estimate.",
    ExceptionKind.UNPRICED: "No price was known; the amount isn't in any total.",
}
SPLIT_UNKNOWN = (
    "The price needs input and output tokens apart, which the provider didn't report; the amount isn't in any total."
)


class Exceptional(NamedTuple):
    """One exception. Amounts are what is at stake, None where nobody can say; `at` is aware and in UTC."""

    kind: ExceptionKind
    at: dt.datetime
    tenant: str | None
    model: str | None
    what: str
    reference: str  # the request id, or the numbers of lost events
    tokens: int | None
    amount: Decimal | None
    currency: str | None
    link: str


# Suspicious rows are few; only for them the rest of their call is looked at. A later row makes an earlier one history.
FROM_LEDGER = f"""
SELECT r.request_id, r.at, t.slug, r.model, r.reported_tokens, c.tokens, c.cost, nullif(r.currency, ''), k.kind,
       r.unpriced
FROM usage_record r JOIN {Tenant._meta.db_table} t ON t.id = r.tenant_id
CROSS JOIN LATERAL (
    SELECT sum(charged_tokens)::bigint AS tokens, CASE WHEN r.cost IS NOT NULL THEN sum(cost) END AS cost
    FROM usage_record e WHERE e.request_id = r.request_id
) c CROSS JOIN LATERAL unnest(ARRAY[
    CASE WHEN r.outcome = 'unresolved' THEN 'unresolved' END,
    CASE WHEN r.outcome = 'exact' AND r.provenance = 'missing' THEN 'usage missing' END,
    CASE WHEN r.outcome = 'exact' AND r.provenance = 'estimated' AND r.reported_tokens IS NULL
        THEN 'usage unreadable' END,
    CASE WHEN r.outcome = 'exact' AND r.provenance = 'estimated' AND r.reported_tokens IS NOT NULL
        THEN 'usage absurd' END,
    CASE WHEN r.outcome = 'exact' AND r.cost IS NULL THEN 'unknown price' END
]) WITH ORDINALITY AS k (kind, place)
WHERE (%s::bigint IS NULL OR r.tenant_id = %s) AND (%s::bigint IS NULL OR r.token_id = %s)
    AND (%s = '' OR r.model = %s) AND (%s = '' OR r.member_id IN (
        SELECT m.id FROM {Membership._meta.db_table} m JOIN {User._meta.db_table} u ON u.id = m.user_id
        WHERE u.email = %s
    ))
    AND r.booked_day >= %s AND r.booked_day < %s AND k.kind = ANY(%s)
    AND (r.outcome = 'unresolved'
         OR (r.outcome = 'exact' AND (r.cost IS NULL OR r.provenance IN ('missing', 'estimated'))))
    AND NOT EXISTS (SELECT FROM usage_record l WHERE l.request_id = r.request_id AND l.number > r.number)
ORDER BY r.request_id, k.place
"""  # noqa: S608 - constants


def exceptions(
    query: Query, provider_usage: Iterable[ProviderUsage] = (), kinds: Collection[ExceptionKind] = tuple(ExceptionKind)
) -> Iterator[Exceptional]:
    """The exceptions of these kinds among the usage of a query, and of a provider's usage if it is given.

    A query's groups don't matter. Those of the ledger come in the order of the calls, then gaps, quarantine,
    differences to the provider. Whose lost and quarantined events were isn't known beyond the tenant, so those of the
    tenant come whichever user, token or model is asked for.
    """
    of_calls = [kind for kind in WHAT if kind in kinds]
    found = [_from_ledger(query, of_calls)] if of_calls else []
    found += [_gaps(query)] if ExceptionKind.GAP in kinds else []
    found += [_quarantined(query)] if ExceptionKind.QUARANTINED in kinds else []
    return chain(*found, map(_difference, differences(query, provider_usage)))


def unresolved(query: Query) -> Iterator[Exceptional]:
    """Only the calls whose outcome isn't known, in their order."""
    return _from_ledger(query, [ExceptionKind.UNRESOLVED])


def _from_ledger(query: Query, only: Sequence[ExceptionKind] = tuple(WHAT)) -> Iterator[Exceptional]:
    tenant, calls = query.tenant.pk if query.tenant else None, _page("usagerecord_changelist")
    user = query.user.strip().lower()
    with connection.chunked_cursor() as cursor:
        whose = [query.token, query.token, query.model, query.model, user, user]
        cursor.execute(FROM_LEDGER, [tenant, tenant, *whose, query.start, query.end, list(only)])
        for request_id, at, slug, model, reported, tokens, cost, currency, name, unpriced in cursor:
            kind, link = ExceptionKind(name), f"{calls}?q={request_id}"
            what = WHAT[kind].format(reported=reported or 0)
            if kind == ExceptionKind.UNPRICED and unpriced == Unpriced.SPLIT_UNKNOWN:
                what = SPLIT_UNKNOWN
            yield Exceptional(kind, at, slug, model, what, str(request_id), tokens, cost, currency, link)


def _gaps(query: Query) -> Iterator[Exceptional]:
    """The open alarms about lost events that were raised in these days."""
    since, before = _moments(query)
    found = Alarm.objects.filter(
        kind=AlarmKind.SEQUENCE_GAP, closed_at=None, opened_at__gte=since, opened_at__lt=before
    )
    for alarm in found.order_by("pk").iterator():
        slug, _, numbers = alarm.about.partition(" ")
        if query.tenant is None or slug == query.tenant.slug:
            link = _page("alarm_change", alarm.pk)
            yield _bare(ExceptionKind.GAP, alarm.opened_at, slug, alarm.message, numbers.strip(), None, link)


def _quarantined(query: Query) -> Iterator[Exceptional]:
    """The events that came in these days, couldn't be booked, and were not dealt with."""
    since, before = _moments(query)
    slugs = dict(Tenant.objects.values_list("pk", "slug"))
    found = QuarantinedEvent.objects.filter(resolved_at=None, at__gte=since, at__lt=before).order_by("pk")
    for event in found.iterator():
        tenant, request_id = whose(event.raw)
        if query.tenant is None or tenant == query.tenant.pk:
            what = f"{event.error}: {event.message}" if event.message else event.error
            link, slug = _page("quarantinedevent_change", event.pk), slugs.get(tenant or 0)
            tokens = _charged(event.raw)
            yield _bare(ExceptionKind.QUARANTINED, event.at, slug, what, str(request_id or ""), tokens, link)


def _charged(raw: dict[str, Any]) -> int | None:
    """The tokens that an event in quarantine would charge, where that can be read."""
    charged = raw.get("charged")
    if isinstance(raw.get("result"), str):  # a stream entry has them within its result
        try:
            charged = msgspec.json.decode(raw["result"], type=dict[str, Any]).get("charged")
        except msgspec.MsgspecError:
            charged = None
    return charged if type(charged) is int else None


def _bare(
    kind: ExceptionKind,
    at: dt.datetime,
    tenant: str | None,
    what: str,
    reference: str,
    tokens: int | None,
    link: str,
) -> Exceptional:
    return Exceptional(kind, at, tenant, None, what, reference, tokens, None, None, link)


def _difference(found: Difference) -> Exceptional:
    at = dt.datetime.combine(found.day, dt.time(), dt.UTC)
    link = _page("usagerecord_changelist")
    more, what = found.tokens, found.in_words()
    return Exceptional(ExceptionKind.PROVIDER, at, None, found.model, what, "", more, None, None, link)


def _moments(query: Query) -> tuple[dt.datetime, dt.datetime]:
    """The days of a query as moments of UTC; tenants' own days begin and end up to 14 hours from these."""
    midnight = dt.time(tzinfo=dt.UTC)
    return dt.datetime.combine(query.start, midnight), dt.datetime.combine(query.end, midnight)


def _page(name: str, *args: Any) -> str:
    return f"{settings.PUBLIC_URL}{reverse(f'admin:usage_{name}', args=args)}"

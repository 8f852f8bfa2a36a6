"""The page that people land on: what was called, made, refused and spent, and what needs somebody's attention.

Calls, images, tokens and cost are the books' own sums. What never reaches the books (refusals, errors, how long calls
took) is what the web processes have counted. Either may be out of reach; the page then says what is missing.
"""

import datetime as dt
import logging
from dataclasses import dataclass
from typing import Any

import redis
from django.contrib import admin
from django.db import InterfaceError, OperationalError
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.http import urlencode
from django.utils.timezone import now

from config.redis import PAGE_SECONDS, store
from gateway import tallies
from gateway.admin import figures, panels
from gateway.admin.explaining import page_of
from gateway.admin.panels import Links
from gateway.admin.spans import PERIODS, Span, booked_in, days_in, each_day, span
from gateway.models import Model
from gateway.tallies import Told
from tokens import records
from tokens.admin.nearlimits import nearly_reached
from tokens.admin.scoping import row_id
from tokens.admission import keys
from tokens.admission.connection import StoreUnavailable
from tokens.issuing import Scope
from tokens.models import ProxyToken, Tenant
from tokens.roles import is_platform, narrow, rights_of, visible_tenants
from usage import drain
from usage.models import Alarm, DailyUsage, QuarantinedEvent, UsageRecord
from usage.unresolved import admitted_between, still_unresolved

logger = logging.getLogger(__name__)

SEES = "usage.view_dailyusage"
SHOWN = 8  # rows of a table
MOST_ACTIVE = 60  # tokens of which limits are looked at
MOST_COUNTED = 10_000  # unresolved calls; more are "10,000 or more"
ONE_DAY = dt.timedelta(days=1)

admin.site.index_title = "Dashboard"


@dataclass(frozen=True)
class Asked:
    """What a person asked for: a period, and one tenant or (None) all that they may look at."""

    user: Any
    tenants: QuerySet[Tenant]
    tenant: Tenant | None
    at: dt.datetime
    span: Span

    @property
    def everybody(self) -> bool:
        """Whether it is about all tenants there are."""
        return self.tenant is None and rights_of(self.user).tenants(SEES) is None

    @property
    def several(self) -> bool:
        """Whether it can be about more than one tenant."""
        mine = rights_of(self.user).tenants(SEES)
        return self.tenant is None and (mine is None or len(mine) > 1)

    def usage(self, of: Span | None = None) -> QuerySet[DailyUsage]:
        """The rollups that it is about, of its own days or others."""
        mine = narrow(DailyUsage.objects.all(), self.user, SEES, "tenant_id")
        mine = mine.filter(tenant=self.tenant) if self.tenant is not None else mine
        return booked_in(mine, of or self.span, self.at)


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the figures to the landing page's context (unfold calls this), each person's own.

    Days are each tenant's own. What the person may not open is left out.
    """
    if not request.user.has_perm(SEES):
        return context
    period = request.GET.get("period", "")
    period = period if period in PERIODS else "today"
    context |= {"shown": True, "period": period}
    try:
        asked = _asked(request, period)
        told = _told(asked)
        context |= _overview(asked, told) | _refused(asked, told) | to_look_at(asked)
        context["store_away"] = told is None or "lag" not in context
        if is_platform(request.user) and asked.tenant is None:
            context |= _first_steps()
    except (OperationalError, InterfaceError):
        logger.exception("the dashboard can't read the books")
        context["books_away"] = True
    return context


def _asked(request: HttpRequest, period: str) -> Asked:
    tenants, at = visible_tenants(request.user), now()
    number = row_id(request.GET.get("tenant", ""))
    tenant = tenants.filter(pk=number).first() if number is not None else None
    about = tenants.filter(pk=tenant.pk) if tenant is not None else tenants
    return Asked(request.user, about, tenant, at, span(period, about, at))


def _told(asked: Asked) -> Told | None:
    """What the web processes have counted; None when the store can't tell."""
    if asked.everybody:
        wanted = [(zone, day) for zone, days in asked.span.zones.items() for day in each_day(days)]
        wanted += [(keys.NOBODY, day) for day in each_day(days_in(asked.span.period, asked.at))]
        named = [(day.isoformat(), keys.zone_tally(zone, day.isoformat())) for zone, day in wanted]
    else:
        named = [
            (day.isoformat(), keys.tally(records.shard_of(tenant.pk), tenant.pk, day.isoformat()))
            for tenant in asked.tenants
            for day in each_day(asked.span.zones[tenant.zone(asked.at).key])
        ]
    try:
        return tallies.read(named, hours=asked.span.period == "today")
    except StoreUnavailable:
        return None


def _overview(asked: Asked, told: Told | None) -> dict[str, Any]:
    """The figures, their charts, and who called most."""
    usage, links = asked.usage(), Links(asked.span, asked.tenant.pk if asked.tenant else None)
    days = figures.by_day(usage)
    total = figures.together(days.values())
    choices = [
        {"label": label, "link": _address(asked, period=name), "chosen": name == asked.span.period}
        for name, label in PERIODS.items()
    ]
    tokens = figures.leaders(usage, "token_id", SHOWN)
    names = ProxyToken.objects.select_related("tenant", "member__user").in_bulk([one.id for one in tokens])
    found = {
        "periods": choices,
        "span": asked.span,
        "tenant": asked.tenant,
        "everybody": _address(asked, tenant=None),
        "total": total,
        "cards": panels.cards(total, told, links),
        "charts": panels.charts(asked.span, days, told, links),
        "tokens": [
            {"token": names[one.id], "figures": one.figures, "usage": links.usage(token__id__exact=one.id)}
            for one in tokens
            if one.id in names
        ],
        "tenants": [],
    }
    if asked.several:
        first = figures.leaders(usage, "tenant_id", SHOWN)
        tenants = asked.tenants.in_bulk([one.id for one in first])
        found["tenants"] = [
            {
                "tenant": tenants[one.id],
                "figures": one.figures,
                "link": _address(asked, tenant=one.id),
                "usage": Links(asked.span, one.id).usage(),
            }
            for one in first
            if one.id in tenants
        ]
    return found


def _address(asked: Asked, **changes: object) -> str:
    """Of the page's question with some of it changed; None leaves out."""
    query = {"period": asked.span.period, "tenant": asked.tenant.pk if asked.tenant else None, **changes}
    return "?" + urlencode({name: str(value) for name, value in query.items() if value is not None})


def _refused(asked: Asked, told: Told | None) -> dict[str, Any]:
    """Why calls were refused and failed, who was refused most, and which limits are nearly used up."""
    if told is None:
        return {}
    links = Links(asked.span, asked.tenant.pk if asked.tenant else None)
    most = told.most_refused.most_common(SHOWN)
    tokens = narrow(ProxyToken.objects.all(), asked.user, "tokens.view_proxytoken", "tenant_id")
    names = tokens.select_related("tenant", "member__user").in_bulk([pair.token for pair, _ in most])
    found: dict[str, Any] = {
        "refused": panels.reasons(told.total.refused, links),
        "failed": panels.reasons(told.total.failed, links),
        "most_refused": [
            {
                "token": names[pair.token],
                "words": panels.in_words(pair.type),
                "count": count,
                "link": links.refusals(token=pair.token, type=pair.type),
            }
            for pair, count in most
            if pair.token in names
        ],
    }
    today = span("today", asked.tenants, asked.at)
    active = figures.active(asked.usage(today), MOST_ACTIVE)
    active += [(one.tenant_id, one.member_id, one.pk) for one in names.values()]
    try:
        found["near"] = [
            {"name": _owner(one.owner), "url": page_of(one.owner), "meter": one.meter}
            for one in nearly_reached(active, SHOWN)
        ]
    except StoreUnavailable:
        found["near"] = None
    return found


def _owner(owner: Scope) -> str:
    """Whose limit it is."""
    if isinstance(owner, Tenant):
        return f"Tenant {owner}"
    if isinstance(owner, ProxyToken):
        return f"Token {owner.name} of {owner.tenant.slug}"
    return f"Member {owner}"


def to_look_at(asked: Asked) -> dict[str, Any]:
    """What needs somebody's attention, of what the person may see: counts, and how far the books are behind."""
    user = asked.user
    # Older months are closed, and the ledger only grows: counting all of it would take ever longer.
    since = (asked.at.date().replace(day=1) - ONE_DAY).replace(day=1)
    calls = narrow(UsageRecord.objects.order_by(), user, "usage.view_unresolvedcall", "tenant_id")
    if asked.tenant is not None:
        calls = calls.filter(tenant=asked.tenant)
    found: dict[str, Any] = {
        "unresolved": still_unresolved(admitted_between(calls, since, None))[:MOST_COUNTED].count(),
        "unresolved_since": since,
    }
    if asked.tenant is None and user.has_perm("usage.view_alarm"):
        found["alarms"] = Alarm.objects.filter(closed_at=None).count()
    if asked.tenant is None and user.has_perm("usage.view_quarantinedevent"):
        found["quarantined"] = QuarantinedEvent.objects.filter(resolved_at=None)[:MOST_COUNTED].count()
    try:
        waiting, seconds = lag()
        found["lag"] = seconds
        if asked.everybody:
            found["backlog"] = waiting
    except redis.RedisError:
        return found
    return found


def lag() -> tuple[int, float]:
    """The usage events that aren't in the books yet, and the seconds that the oldest has waited.

    Raises redis.RedisError.
    """
    pipeline = store(PAGE_SECONDS).pipeline(transaction=False)
    pipeline.time()
    for stream in drain.streams():
        pipeline.xlen(stream)
        pipeline.xrange(stream, count=1)
    (seconds, micros), *answers = pipeline.execute()
    begun = [int(oldest[0][0].split(b"-")[0]) / 1000 for oldest in answers[1::2] if oldest]
    return sum(answers[::2]), max((seconds + micros / 1e6 - at for at in begun), default=0.0)


def _first_steps() -> dict[str, Any]:
    """What is still to do before the first call, until all of it is done."""
    done = {
        "tenant": Tenant.objects.exists(),
        "token": ProxyToken.objects.exists(),
        "model": Model.objects.filter(active=True, default=True).exists(),
    }
    return {} if all(done.values()) else {"first_steps": done}

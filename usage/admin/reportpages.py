"""The page Reports: a question in its address; totals, chart and table; from there exports and saved reports."""

import heapq
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from django.contrib import admin
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import urlencode

from tokens.models import Tenant
from tokens.roles import narrow, rights_of
from usage.admin.questionfields import MEASURED, fields
from usage.admin.reporttable import MOST_CURRENCIES, Cell, by_calls, cells, change_cell, charts, headers, lines, money
from usage.comparing import change, compare, matching, period_before, share, step_before, whole_by_currency
from usage.exporting.formats import FORMATS, refusal
from usage.exports import snapshot
from usage.questions import ONE_DAY, SEES, Question, Wrong, read, rest
from usage.reports import Query, Row, report

ROWS = 200
SORTED = 200_000  # rollups at most of which the largest groups are looked for


@dataclass
class Found:
    """The rows of a page of a report; `after`: where the next page begins, [] on the last."""

    rows: list[Row]
    after: list[str | int]
    note: str = ""


def reports(request: HttpRequest) -> HttpResponse:
    """The page, for everybody who may see usage; each person sees that of their own tenants."""
    if not request.user.has_perm(SEES):
        raise PermissionDenied
    question, query, wrong = ask(request)
    context: dict[str, Any] = {
        **admin.site.each_context(request),
        "title": "Reports",
        "fields": fields(question, request.user, wrong),
        "wrong": wrong,
        "question": question,
    }
    if query is not None:
        with snapshot():  # otherwise the totals would count what was booked while the rows were read
            context |= _answer(request, question, query)
    return TemplateResponse(request, "admin/reports/report.html", context)


def ask(request: HttpRequest) -> tuple[Question, Query | None, Wrong | None]:
    """What the address asks of this person, or what is wrong with it."""
    question = Question()
    try:
        question = read(request.GET)
        question = replace(question, tenant=question.tenant or _only_tenant(request))
        query = question.query(request.user)
        return (question.of(query.tenant) if query.tenant else question), query, None
    except Wrong as exc:
        return (rest(request.GET) if question == Question() else question), None, exc


def _only_tenant(request: HttpRequest) -> str:
    """For whoever may see a few tenants only: the first of them."""
    if rights_of(request.user).tenants(SEES) is None:
        return ""
    tenants = narrow(Tenant.objects.order_by("slug"), request.user, SEES, "pk")
    return tenants.values_list("slug", flat=True).first() or ""


def _answer(request: HttpRequest, question: Question, query: Query) -> dict[str, Any]:
    totals = list(report(query.ungrouped()))
    measure = question.measure or ("cost" if any(total["currency"] for total in totals) else "requests")
    found = _largest(query, measure, totals) if question.largest else _page(request, question, query)
    compared = compare(query, found.rows, totals, measure)
    is_whole = not (found.after or found.note or request.GET.get("after"))
    unit, _ = step_before(query)
    before = period_before(query)
    then = list(report(before.ungrouped()))
    return {
        "query": query,
        "last": query.end - ONE_DAY,
        "before": (before.start, before.end - ONE_DAY),
        "against": f"the {unit} before" if unit else "the period before",
        "zone": query.tenant.timezone if query.tenant else "",
        "groups": [group.capitalize() for group in query.groups],
        "headers": headers(query, measure),
        "lines": lines(query, compared, measure),
        "totals": [_total(query, total, totals, then, measure) for total in totals],
        "summary": _summary(totals, then),
        "charts": charts(query, found.rows, measure, whole=is_whole),
        "uncharted": by_calls(found.rows)[MOST_CURRENCIES:] if measure == "cost" else [],
        "note": found.note,
        "next": _next(question, found.after),
        "first": f"?{question.address}" if request.GET.get("after") else "",
        "formats": [(name, chosen.name, refusal(chosen, query)) for name, chosen in FORMATS.items()],
        "save": f"{reverse('admin:usage_savedreport_add')}?{urlencode({'question': question.address})}",
        "exceptions": f"{reverse('exceptions')}?{replace(question, by=(), measure='').address}",
    }


def _page(request: HttpRequest, question: Question, query: Query) -> Found:
    """The next rows in the order of the groups. A group's currencies stay together."""
    rows: list[Row] = []
    place: list[str | int] = []
    groups = 0
    with closing(report(query, _after(request, question))) as all_rows:  # type: ignore[type-var]
        for row in all_rows:
            its_place = query.place(row)
            if its_place != place:
                if groups == ROWS:
                    return Found(rows, place)
                groups, place = groups + 1, its_place
            rows.append(row)
    return Found(rows, [])


def _largest(query: Query, measure: str, totals: Sequence[Row]) -> Found:
    """The rows of the largest figures; of amounts in several currencies, one currency after the other."""
    if query.usage()[: SORTED + 1].count() > SORTED:
        with closing(report(query)) as rows:  # type: ignore[type-var]
            first = list(islice(rows, ROWS))
        return Found(
            first, [], "These are too many figures to put the largest first: ask for fewer days, or one tenant."
        )
    places = {currency: -place for place, currency in enumerate(by_calls(totals))} if measure == "cost" else {}

    def size(row: Row) -> tuple[bool, int, Any]:
        return row[measure] is not None, places.get(row["currency"], 0), row[measure] or 0

    found = heapq.nlargest(ROWS + 1, report(query), key=size)
    more = f"The {ROWS} largest are shown; an export has all of them." if len(found) > ROWS else ""
    return Found(found[:ROWS], [], more)


def _after(request: HttpRequest, question: Question) -> Sequence[str | int]:
    """The place after which a page begins: signed, so it is one that we wrote, and of this question."""
    try:
        place: list[str | int] = signing.loads(request.GET.get("after", ""), salt=question.address)
    except signing.BadSignature:
        return ()
    return place


def _next(question: Question, after: list[str | int]) -> str:
    if not after:
        return ""
    return f"?{question.address}&{urlencode({'after': signing.dumps(after, salt=question.address)})}"


def _total(query: Query, total: Row, totals: Sequence[Row], then: Sequence[Row], measure: str) -> list[Cell]:
    part = share(total[measure], whole_by_currency(totals, measure)(total))
    found = change(total, matching(total, then, measure), measure)
    return cells(query, total, part, found, measure)


def _summary(totals: Sequence[Row], then: Sequence[Row]) -> list[tuple[str, Cell, Cell]]:
    """What it comes to, and the change against the period before: a name, the figure, the change."""
    found = []
    for name in ("requests", "images", "tokens"):
        now, before = ({name: sum(row[name] for row in rows)} for rows in (totals, then))
        found.append((MEASURED[name], Cell(f"{now[name]:,}"), change_cell(change(now, before, name), name)))
    for total in totals:
        if total["currency"]:
            moved = change_cell(change(total, matching(total, then, "cost"), "cost"), "cost")
            found.append(("Cost", money(total["cost"], total["currency"]), moved))
    return found

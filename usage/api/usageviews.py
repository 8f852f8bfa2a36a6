"""/api/usage: the report, page by page, for finance's own tools."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from contextlib import closing
from decimal import Decimal
from typing import Any

import msgspec
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from tokens.api.apiview import ApiView
from tokens.api.errors import invalid
from tokens.api.forms import ERRORS, MOST_ID, make_cursor, read, read_cursor
from tokens.apikeyrow import ApiScope
from usage.api.forms import UsagePage, UsageQuery, UsageRow
from usage.exports import plain, snapshot
from usage.reports import Query, Row, report

TOLD = frozenset(UsageRow().fields)


class Place(msgspec.Struct, frozen=True):
    """A place in a report: which report it is, and the last group that was told."""

    of: str
    after: list[str | int]


class Usage(ApiView):
    """The report."""

    scope = ApiScope.USAGE_READ

    @extend_schema(
        operation_id="report_usage",
        summary="Report usage",
        parameters=[UsageQuery],
        responses={200: UsagePage, **ERRORS},
    )
    def get(self, request: Request) -> Response:
        """Usage by tenant, user, token, model, day, week or month, as the reports and exports of the admin count it.

        Days are booked days on each tenant's calendar. Pages follow each other by `cursor`; each is read when it is
        asked for, so ask for days that are over when the sum of the pages must hold.
        """
        asked = read(UsageQuery, request.query_params.dict())
        query = Query(
            self.tenant_of(asked["tenant"]),
            asked["start"],
            asked["end"],
            asked["group_by"],
            user=asked["user"],
            token=asked["token"],
            model=asked["model"],
            margins=self.key.tenant_id is None,
        )
        name = _name(query)
        after = _after(asked["cursor"], name, query)
        with snapshot():  # otherwise the totals would count what was booked while the rows were read
            rows, last = _page(query, after, asked["limit"])
            totals = [] if after else list(report(query.ungrouped()))
        answer: dict[str, Any] = {"rows": [_told(row) for row in rows]}
        if not after:
            answer["totals"] = [_told(row) for row in totals]
        answer["next"] = make_cursor(Place(name, last)) if last else None
        return Response(answer)


def _page(query: Query, after: list[str | int], limit: int) -> tuple[list[Row], list[str | int]]:
    """The rows of the next groups, and the last of these groups if more follow. A group's currencies stay together."""
    rows: list[Row] = []
    place: list[str | int] = []
    groups = 0
    with closing(report(query, after)) as found:  # type: ignore[type-var]  # it is a generator, which ends with this
        for row in found:
            its_place = query.place(row)
            if its_place != place:
                if groups == limit:
                    return rows, place
                groups, place = groups + 1, its_place
            rows.append(row)
    return rows, []


def _after(cursor: str, name: str, query: Query) -> list[str | int]:
    if not cursor:
        return []
    place: Place = read_cursor(cursor, Place)
    if place.of != name or not _is_place(place.after, query.groups):
        raise invalid("cursor: It belongs to another question; leave everything but `cursor` and `limit` as it was.")
    return place.after


def _is_place(values: Sequence[str | int], groups: Sequence[str]) -> bool:
    """Whether these values can be a place in a report by these groups; they may come from anybody."""
    return len(values) == len(groups) and all(map(_fits, groups, values))


def _fits(group: str, value: str | int) -> bool:
    if group == "token":
        return isinstance(value, int) and 0 <= value <= MOST_ID
    if not isinstance(value, str) or "\0" in value:
        return False
    if group not in {"day", "week", "month"}:
        return True
    try:
        dt.date.fromisoformat(f"{value}-01" if group == "month" else value)
    except ValueError:
        return False
    return True


def _name(query: Query) -> str:
    """Tells one question from another."""
    tenant = query.tenant.pk if query.tenant is not None else None
    told = [tenant, query.start, query.end, query.groups, query.user, query.token, query.model]
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:16]


def _told(row: Row) -> dict[str, Any]:
    """What the document names, and nothing else that a report may have for others' eyes."""
    return {name: _plain(value) for name, value in row.items() if name in TOLD}


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return plain(value)
    return value.isoformat() if isinstance(value, dt.date) else value

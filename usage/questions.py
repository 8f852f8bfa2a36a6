"""A report as an address asks for it: which days, whose usage, grouped how. So it can be kept, shared and asked again.

A question is text (`period=last-month&tenant=acme&by=model`), and only becomes a query for a person, at a moment: what
that person may see then is all that it can ever show.
"""

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import urlencode

from django.http import QueryDict
from django.utils.timezone import now

from tokens.models import Tenant
from tokens.roles import rights_of, sees_margins, visible_tenants
from usage.comparing import MEASURES, earlier_month
from usage.reports import GROUPS, Query

SEES = "usage.view_dailyusage"
FREE = "days"
PERIODS = {
    "this-month": "This month",
    "last-month": "Last month",
    "7d": "Last 7 days",
    "30d": "Last 30 days",
    "90d": "Last 90 days",
    "quarter": "This quarter",
    "last-quarter": "Last quarter",
    "year": "This year",
    "last-year": "Last year",
    FREE: "Other days",
}
LONGEST = 3660  # days
MOST_GROUPS = 3
ID_DIGITS = 18
ONE_DAY = dt.timedelta(days=1)


class Wrong(ValueError):
    """Something about a question that can't be: which part of it, and why, for people."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


@dataclass(frozen=True)
class Question:
    """What is asked; empty where it isn't said. `first` and `last` are days that are both included."""

    period: str = "this-month"
    first: dt.date | None = None
    last: dt.date | None = None
    tenant: str = ""
    user: str = ""
    token: int | None = None
    model: str = ""
    by: tuple[str, ...] = ("day",)
    measure: str = ""
    largest: bool = False  # first, instead of in the order of the groups
    margins: bool = False

    @property
    def address(self) -> str:
        """The question as the query of an address, each always the same."""
        said: list[tuple[str, Any]] = [("period", self.period)]
        if self.period == FREE:
            said += [("from", self.first), ("to", self.last)]
        said += [("tenant", self.tenant), ("user", self.user), ("token", self.token), ("model", self.model)]
        said += [*(("by", group) for group in self.by), ("measure", self.measure)]
        said += [("largest", self.largest), ("margins", self.margins)]
        return urlencode([(name, 1 if value is True else value) for name, value in said if value])

    @property
    def in_words(self) -> str:
        """A line for lists and mails."""
        days = f"{self.first} to {self.last}" if self.period == FREE else PERIODS[self.period]
        parts = [("tenant", self.tenant), ("user", self.user), ("token", self.token), ("model", self.model)]
        whose = ", ".join(f"{name} {value}" for name, value in parts if value) or "all usage"
        return f"{days}, {whose}" + (f", by {', '.join(self.by)}" if self.by else "")

    def query(self, user: Any, at: dt.datetime | None = None) -> Query:
        """For this person, at this moment; days are those of the tenant's calendar, of all tenants UTC's.

        Whoever may see one tenant only needn't name it. Raises Wrong, for what they may not see, too.
        """
        tenant = self._tenant(user)
        at = at or now()
        start, end = self.days(at.astimezone(tenant.zone(at) if tenant else dt.UTC).date())
        margins = self.margins and sees_margins(user)
        return Query(tenant, start, end, self.by, self.user, self.token, self.model, margins)

    def days(self, today: dt.date) -> tuple[dt.date, dt.date]:
        """The first day, and the day after the last. Periods that go on end with today."""
        month = today.replace(day=1)
        quarter, year = month.replace(month=(today.month - 1) // 3 * 3 + 1), today.replace(month=1, day=1)
        tomorrow = today + ONE_DAY
        match self.period:
            case "last-month":
                return earlier_month(month, 1), month
            case "last-quarter":
                return earlier_month(quarter, 3), quarter
            case "last-year":
                return earlier_month(year, 12), year
            case "7d" | "30d" | "90d":
                return tomorrow - dt.timedelta(days=int(self.period[:-1])), tomorrow
            case "days":
                if self.first is None or self.last is None:
                    raise Wrong("from", "Say from which day to which.")
                return self.first, self.last + ONE_DAY
        return {"quarter": quarter, "year": year}.get(self.period, month), tomorrow

    def of(self, tenant: Tenant | None) -> Self:
        """The same about this tenant, named."""
        return replace(self, tenant=tenant.slug if tenant else "")

    def _tenant(self, user: Any) -> Tenant | None:
        tenants = visible_tenants(user)
        every = rights_of(user).tenants(SEES)
        if every is not None:
            tenants = tenants.filter(pk__in=every)
        if self.tenant:
            found = tenants.filter(slug=self.tenant).first()
            if found is None:
                named = tenants.filter(name__iexact=self.tenant).order_by("slug")[:2]
                found = named[0] if len(named) == 1 else None
            if found is None:
                raise Wrong("tenant", f"There is no tenant {self.tenant} whose usage you may see.")
            return found
        if every is None:
            return None
        found = tenants.order_by("slug").first() if len(every) == 1 else None
        if found is None:
            raise Wrong("tenant", "Choose one of your tenants.")
        return found


def read(asked: QueryDict | str) -> Question:
    """The question of an address. Raises Wrong."""
    said = QueryDict(asked) if isinstance(asked, str) else asked
    period = said.get("period", "") or ("this-month" if not (said.get("from") or said.get("to")) else FREE)
    if period not in PERIODS:
        raise Wrong("period", "Choose one of the periods.")
    first, last = (_day(said, name) for name in ("from", "to")) if period == FREE else (None, None)
    if first and last and not dt.timedelta(0) <= last - first < dt.timedelta(days=LONGEST):
        raise Wrong("to", "The last day must follow the first, within ten years.")
    measure = said.get("measure", "")
    if measure and measure not in MEASURES:
        raise Wrong("measure", f"Choose one of {', '.join(MEASURES)}.")
    return Question(
        period,
        first,
        last,
        _text(said, "tenant"),
        _text(said, "user").lower(),
        _token(said),
        _text(said, "model"),
        _groups(said),
        measure,
        said.get("largest") in {"1", "on"},
        said.get("margins") in {"1", "on"},
    )


def rest(asked: QueryDict) -> Question:
    """What can be read of a question with something wrong in it, so that people mend that and keep the rest."""
    said = asked.copy()
    for _ in range(len(said) + 1):
        try:
            return read(said)
        except Wrong as exc:
            for part in [exc.part] if exc.part in said else ["period", "from", "to"]:
                said.pop(part, None)
    return Question()


def _groups(said: QueryDict) -> tuple[str, ...]:
    """In the order in which they are named; the first of a kind counts. Without any it is by day."""
    named = tuple(dict.fromkeys(name for name in said.getlist("by") if name))
    for name in named:
        if name not in GROUPS:
            raise Wrong("by", f"{name[:40]} is not one of {', '.join(GROUPS)}.")
    if len(named) > MOST_GROUPS:
        raise Wrong("by", f"Choose up to {MOST_GROUPS} groups.")
    return named or ("day",)


def _text(said: QueryDict, name: str) -> str:
    text: str = said.get(name, "").strip()
    if "\0" in text or len(text) > 254:
        raise Wrong(name, "This can't be a name.")
    return text


def _token(said: QueryDict) -> int | None:
    text = _text(said, "token")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= ID_DIGITS and int(text)):
        raise Wrong("token", "Give a token's number, as its page and the reports have it.")
    return int(text)


def _day(said: QueryDict, name: str) -> dt.date:
    try:
        day = dt.date.fromisoformat(said.get(name, ""))
    except ValueError:
        raise Wrong(name, "Give a day such as 2026-11-22.") from None
    if not 2000 <= day.year < 9000:
        raise Wrong(name, "Give a day such as 2026-11-22.")
    return day

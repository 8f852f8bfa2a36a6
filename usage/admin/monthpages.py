"""The page *Months*: how each tenant's next month stands, what is in the way, and closing what is ready."""

import datetime as dt
import time
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode

from tokens.errors import Refused
from tokens.models import Tenant, UnresolvedPolicy
from usage.admin.reporttable import Cell, money
from usage.closing import close as close_month
from usage.exportjobs import AT_ONCE
from usage.models import Statement
from usage.months import Standing, State, look
from usage.obstacles import WORDS, Obstacle

ONE_DAY = dt.timedelta(days=1)
MOST_TENANTS = 2_000  # that are looked at; of more, those that are searched for
MOST_ROWS = 200
MOST_AT_ONCE = 50  # months that one request closes; the command line has no such bound
SECONDS = 20.0  # after which a request closes no further month
NAMED = 8
FOR_OTHERS = "Ask a platform administrator."
TABS = {State.READY: "Ready", State.BLOCKED: "Blocked", State.OPEN: "Running", State.UNUSED: "No usage"}
COUNTS_AS = {
    UnresolvedPolicy.NOTHING: "not charged, and the quota held for it is free",
    UnresolvedPolicy.ESTIMATE: "charged at the estimate",
}


def may_close(request: HttpRequest) -> bool:
    """Platform administrators and finance."""
    return request.user.has_perm("usage.add_statement")


def months(request: HttpRequest) -> HttpResponse:
    """How every tenant's next month stands."""
    if not may_close(request):
        raise PermissionDenied
    query = request.GET.get("q", "").strip().replace("\0", "")[:100]
    found, more = _standings(query)
    by_state = {state: [one for one in found if one.state is state] for state in TABS}
    chosen = next((state for state in TABS if state.value == request.GET.get("state")), None)
    if chosen is None:
        chosen = next((state for state, standings in by_state.items() if standings), State.READY)
    rows = sorted(by_state[chosen], key=lambda one: (one.month or dt.date.min, one.tenant.slug))
    asked = {"q": query} if query else {}
    context = {
        **admin.site.each_context(request),
        "title": "Months",
        "q": query,
        "tabs": [
            {"name": name, "count": len(by_state[state]), "chosen": state is chosen, "url": _tab(state, asked)}
            for state, name in TABS.items()
        ],
        "state": chosen.value,
        "rows": [_row(one, request) for one in rows[:MOST_ROWS]],
        "left": max(0, len(rows) - MOST_ROWS),
        "more": MOST_TENANTS if more else 0,
        "ready": len(by_state[State.READY]),
        "close_all": _close_url(asked),
    }
    return TemplateResponse(request, "admin/usage/months.html", context)


def close(request: HttpRequest) -> HttpResponse:
    """Ask, then close one tenant's month (`tenant` in the address), or all that are ready (by `q`, as listed)."""
    if not may_close(request):
        raise PermissionDenied
    slug, query = request.GET.get("tenant", ""), request.GET.get("q", "")
    back = reverse("months")
    found = look(list(Tenant.objects.filter(slug=slug.replace("\0", ""))) if slug else _tenants(query)[0])
    ready = [one for one in found if one.state is State.READY]
    if slug and found and not ready:
        messages.warning(request, _why_not(found[0]))
    elif not ready:
        messages.info(request, "No month is ready to be closed.")
    if not ready:
        return HttpResponseRedirect(
            f"{back}?{urlencode({'state': found[0].state, 'q': slug})}" if slug and found else back
        )
    if request.method == "POST":
        asked = set(request.POST.getlist("month"))
        _close_these(request, [one for one in ready if _name(one) in asked])
        return HttpResponseRedirect(back)
    return _ask(request, ready, back)


def _ask(request: HttpRequest, ready: list[Standing], back: str) -> HttpResponse:
    """The page that says what will happen."""
    now, left = ready[:MOST_AT_ONCE], len(ready) - MOST_AT_ONCE
    unresolved = [one for one in now if one.unresolved]
    facts = [(f"{month:%B %Y}", _listed([str(one.tenant) for one in now if one.month == month])) for month in _of(now)]
    facts.append(("Amount", _listed(_in_words(now)) or "nothing that has a price"))
    for policy, words in COUNTS_AS.items():
        count = sum(one.unresolved for one in unresolved if one.tenant.unresolved_policy == policy)
        if count:
            facts.append(("Calls of unknown outcome", f"{count:,}: {words}"))
    if unpriced := sum(one.unpriced for one in now):
        facts.append(("Calls without a known price", f"{unpriced:,}: their amount is in no total, and stays unknown"))
    one_month = len(ready) == 1
    text = (
        "Closing is for good. The rows of the month are frozen and hashed, a numbered statement and its files are made,"
        " and nothing is booked into the month any more. What turns out later is booked in the next open month, as an "
        "adjustment that names this statement."
    )
    if left > 0:
        text += f" These are the first {MOST_AT_ONCE}; {left:,} more are ready after them."
    context = {
        **admin.site.each_context(request),
        "opts": Statement._meta,
        "original": None,
        "form": forms.Form(),
        "kept": [("month", _name(one)) for one in now],
        "title": f"Close {ready[0].month:%B %Y} of {ready[0].tenant}?" if one_month else f"Close {len(now)} months?",
        "text": text,
        "facts": facts,
        "submit_text": "Close the month for good" if one_month else "Close these months for good",
        "danger": True,
        "back": back,
    }
    return TemplateResponse(request, "admin/confirm.html", context)


def _close_these(request: HttpRequest, asked: list[Standing]) -> None:
    """Close month after month, and tell of each kind of outcome."""
    began, closed, refused = time.monotonic(), [], []
    for one in asked[:MOST_AT_ONCE]:
        if time.monotonic() - began > SECONDS:
            break
        try:
            closed.append(close_month(one, request.user, AT_ONCE))  # type: ignore[arg-type]
        except Refused as exc:
            refused.append(str(exc))
    if len(closed) == 1:
        url = reverse("admin:usage_statement_change", args=(closed[0].pk,))
        told = f"Closed {closed[0].month_name} of {closed[0].tenant}:"
        messages.success(request, format_html('{} <a class="gw-link" href="{}">statement {}</a>', told, url, closed[0]))
    elif closed:
        messages.success(request, f"Closed {len(closed)} months: statements {closed[0]} to {closed[-1]}.")
    for why in refused[:NAMED]:
        messages.warning(request, why)
    if len(refused) > NAMED:
        messages.warning(request, f"{len(refused) - NAMED} more could not be closed; they are listed as blocked.")
    if left := len(asked) - len(closed) - len(refused):
        messages.info(request, f"{left} more are ready: close them once more, or use manage.py usage close --all.")
    if not asked:
        messages.warning(request, "What was to be closed has changed meanwhile: look once more.")


def money_first(totals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a statement's totals, those with a currency first."""
    return sorted(totals, key=lambda row: (not row["currency"], row["currency"] or ""))


def _tenants(query: str) -> tuple[list[Tenant], bool]:
    """The tenants that are looked at, and whether there are more."""
    rows = Tenant.objects.order_by("slug")
    if query:
        rows = rows.filter(Q(slug__icontains=query) | Q(name__icontains=query))
    found = list(rows[: MOST_TENANTS + 1])
    return found[:MOST_TENANTS], len(found) > MOST_TENANTS


def _standings(query: str) -> tuple[list[Standing], bool]:
    tenants, more = _tenants(query)
    return look(tenants), more


def _tab(state: State, asked: dict[str, str]) -> str:
    return "?" + urlencode({**asked, "state": state.value})


def _close_url(asked: dict[str, str]) -> str:
    url = reverse("close_months")
    return f"{url}?{urlencode(asked)}" if asked else url


def _name(one: Standing) -> str:
    """What a confirmation is for: a month that was closed meanwhile isn't followed by the next one.

    Nor are calls decided that weren't spoken of, or otherwise than it was said.
    """
    policy = f":{one.tenant.unresolved_policy}" if one.unresolved else ""
    return f"{one.tenant.pk}:{one.month:%Y-%m}{policy}"


def _row(one: Standing, request: HttpRequest) -> dict[str, Any]:
    unresolved = COUNTS_AS[UnresolvedPolicy(one.tenant.unresolved_policy)] if one.unresolved else ""
    return {
        "standing": one,
        "month": f"{one.month:%B %Y}" if one.month else "",
        "amounts": _amounts([one]),
        "amount": _listed(_in_words([one])),
        "unresolved": unresolved,
        "obstacles": [_obstacle(found, request) for found in one.obstacles],
        "zone": one.tenant.zone(one.ends).key if one.ends else "",
        "close": _close_url({"tenant": one.tenant.slug}),
    }


def _obstacle(found: Obstacle, request: HttpRequest) -> dict[str, str]:
    """In words, with the page that tells of it, for those who may see that."""
    words, text = WORDS[found.kind], str(found)
    model = words.page.removeprefix("usage_").removesuffix("_changelist")
    seen = words.page and request.user.has_perm(f"usage.view_{model}")
    url = f"{reverse(f'admin:{words.page}')}?{words.query}" if seen else ""
    others = words.page and not request.user.has_perm(f"usage.change_{model}")
    advice = f"{found.advice} {FOR_OTHERS}" if others else found.advice
    return {"text": text[:1].upper() + text[1:], "advice": advice, "url": url}


def _why_not(one: Standing) -> str:
    if one.state is State.OPEN and one.month and one.ends:
        return f"{one.month:%B %Y} of {one.tenant} isn't over: it can be closed from {one.ends:%-d %B, %H:%M} UTC on."
    if one.state is State.UNUSED:
        return f"{one.tenant} has no month to close: nothing was ever booked for it."
    return f"{one.month:%B %Y} of {one.tenant} can't be closed yet: {_listed([str(each) for each in one.obstacles])}."


def _of(standings: list[Standing]) -> list[dt.date]:
    return sorted({one.month for one in standings if one.month})


def _in_words(standings: list[Standing]) -> list[str]:
    return [cell.text for cell in _amounts(standings)]


def _amounts(standings: list[Standing]) -> list[Cell]:
    """What they come to, in each currency."""
    sums: dict[str, Any] = {}
    for one in standings:
        for currency, cost in one.costs.items():
            sums[currency] = sums.get(currency, 0) + cost
    return [money(cost, currency) for currency, cost in sorted(sums.items())]


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")

"""The fields in which people ask for a report: all of them stand in the page's address."""

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from django.utils.safestring import SafeString
from django.utils.timezone import now
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from tokens.models import Membership, ProxyToken, Tenant
from tokens.roles import narrow, rights_of, sees_margins, visible_tenants
from usage.comparing import MEASURES
from usage.models import DailyUsage
from usage.questions import FREE, MOST_GROUPS, PERIODS, SEES, Question, Wrong
from usage.reports import GROUPS

SUGGESTED = 100  # of each kind; others can be typed
MODELS_OF = dt.timedelta(days=92)
MEASURED = {"cost": "Cost", "requests": "Calls", "images": "Images", "tokens": "Tokens"}


class Field(NamedTuple):
    """One input: its id, label, HTML, and what is wrong with it; `suggested` are values and what they mean."""

    id: str
    label: str
    html: SafeString
    error: str = ""
    suggested: Sequence[tuple[Any, str]] = ()


class _Days(UnfoldAdminTextInputWidget):
    input_type = "date"


def fields(question: Question, user: Any, wrong: Wrong | None = None, *, grouped: bool = True) -> list[Field]:
    """The inputs, filled with what is asked; `grouped`: also how it is grouped and what it is compared by."""
    tenant = visible_tenants(user).filter(slug=question.tenant).first() if question.tenant else None
    errors = {wrong.part: str(wrong)} if wrong else {}
    days = question.period == FREE
    found = [
        choice("period", "Period", PERIODS.items(), question.period, errors),
        _typed("from", "From", question.first.isoformat() if days and question.first else "", errors, days=True),
        _typed("to", "To", question.last.isoformat() if days and question.last else "", errors, days=True),
        _tenants(question, user, errors),
    ]
    if not grouped:
        return found
    found += [
        _typed("user", "User", question.user, errors, suggested=_users(user, tenant)),
        _typed("token", "Token", str(question.token or ""), errors, suggested=_tokens(user, tenant)),
        _typed("model", "Model", question.model, errors, suggested=_models(user, tenant)),
    ]
    for place in range(MOST_GROUPS):
        label = "Group by" if place == 0 else "Then by"
        chosen = question.by[place] if place < len(question.by) else ""
        groups = [("", "–"), *((name, name.capitalize()) for name in GROUPS)]
        found.append(
            choice("by", label, groups[1:] if place == 0 else groups, chosen, errors if place == 0 else {}, place)
        )
    measures = [(name, MEASURED[name]) for name in MEASURES]
    found.append(choice("measure", "Compare by", measures, question.measure or "cost", errors))
    orders = [("", "As grouped"), ("1", "Largest first")]
    found.append(choice("largest", "Order", orders, "1" if question.largest else "", errors))
    if sees_margins(user):
        shown = [("", "Charged"), ("1", "With margins")]
        found.append(choice("margins", "Amounts", shown, "1" if question.margins else "", errors))
    return found


def choice(
    name: str,
    label: str,
    choices: Iterable[tuple[str, str]],
    value: str,
    errors: dict[str, str],
    place: int = 0,
) -> Field:
    """A list to choose from; `errors` by name, `place` tells several of one name apart."""
    number = f"id_{name}{place or ''}"
    html = UnfoldAdminSelectWidget(choices=list(choices)).render(name, value, {"id": number})
    return Field(number, label, html, errors.get(name, ""))


def _typed(
    name: str,
    label: str,
    value: str,
    errors: dict[str, str],
    *,
    suggested: Sequence[tuple[Any, str]] = (),
    days: bool = False,
) -> Field:
    number = f"id_{name}"
    attrs = {"id": number, "autocomplete": "off", **({"list": f"{number}_list"} if suggested else {})}
    attrs |= {} if days else {"placeholder": "any", "spellcheck": "false"}
    html = (_Days if days else UnfoldAdminTextInputWidget)().render(name, value, attrs)
    return Field(number, label, html, errors.get(name, ""), suggested)


def _tenants(question: Question, user: Any, errors: dict[str, str]) -> Field:
    """A list for whoever may see a few only; whoever may see all can type any."""
    mine = rights_of(user).tenants(SEES)
    tenants = narrow(Tenant.objects.order_by("slug"), user, SEES, "pk").values_list("slug", "name")
    if mine is not None:
        return choice("tenant", "Tenant", list(tenants), question.tenant, errors)
    return _typed("tenant", "Tenant", question.tenant, errors, suggested=list(tenants[:SUGGESTED]))


def _users(user: Any, tenant: Tenant | None) -> list[tuple[str, str]]:
    if tenant is None:
        return []
    members = narrow(Membership.objects.filter(tenant=tenant), user, "tokens.view_membership", "tenant_id")
    return [(email, "") for email in members.order_by("user__email").values_list("user__email", flat=True)[:SUGGESTED]]


def _tokens(user: Any, tenant: Tenant | None) -> list[tuple[int, str]]:
    if tenant is None:
        return []
    tokens = narrow(ProxyToken.objects.filter(tenant=tenant), user, "tokens.view_proxytoken", "tenant_id")
    found = tokens.order_by("-pk").values_list("pk", "name", "member__user__email")[:SUGGESTED]
    return [(pk, f"{name}, {email}") for pk, name, email in found]


def _models(user: Any, tenant: Tenant | None) -> list[tuple[str, str]]:
    lately = DailyUsage.objects.filter(booked_day__gte=now().date() - MODELS_OF)
    lately = narrow(lately, user, SEES, "tenant_id")
    if tenant is not None:
        lately = lately.filter(tenant=tenant)
    return [(name, "") for name in lately.order_by("model").values_list("model", flat=True).distinct()[:SUGGESTED]]

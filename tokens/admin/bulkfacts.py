"""What a bulk action on tokens would do, as pairs of words for the page that asks."""

import datetime as dt
from collections.abc import Sequence

from django.db.models import Q, QuerySet
from django.utils.timezone import now

from tokens import limits
from tokens.models import Limit, ProxyToken, Secret

Facts = list[tuple[str, str]]

SHOWN = 4  # names


def of_tokens(ids: Sequence[int]) -> Facts:
    """Which tokens it is about, and whether anybody uses them."""
    at = now()
    tokens = ProxyToken.objects.filter(pk__in=ids).order_by()
    tenants = list(tokens.order_by("tenant__name").values_list("tenant__name", flat=True).distinct())
    members = tokens.values("member").distinct().count()
    uses = Secret.objects.filter(token__in=ids).order_by()
    used = {days: _used_since(uses, at - dt.timedelta(days=days)) for days in (1, 7)}
    return [
        ("Tokens", f"{len(ids):,}{_named(tokens, len(ids))}"),
        ("Tenants", f"{len(tenants):,}: {_listed(tenants)}"),
        ("Members", f"{members:,}"),
        ("Used in the last 24 hours", f"{used[1]:,}"),
        ("Used in the last 7 days", f"{used[7]:,}"),
    ]


def of_revoking(ids: Sequence[int]) -> Facts:
    """Whose calls will fail."""
    used = _used_since(Secret.objects.filter(token__in=ids).order_by(), now() - dt.timedelta(days=1))
    one = used == 1
    text = f"{used:,} token{' was' if one else 's were'} used in the last 24 hours: "
    text += f"{'its' if one else 'their'} next call gets 403."
    return [("Calls that will fail", text if used else "None that is known: no call in the last 24 hours.")]


def of_extending(ids: Sequence[int], until: dt.datetime | None) -> Facts:
    """Which tokens last longer, which work again, and which stay as they are."""
    tokens = ProxyToken.objects.filter(pk__in=ids).order_by()
    shorter = Q(expires_at__isnull=False) if until is None else Q(expires_at__lt=until)
    longer, again = tokens.filter(shorter).count(), tokens.filter(expires_at__lte=now()).count()
    return [
        ("They last until", "they are revoked" if until is None else f"{until:%Y-%m-%d %H:%M} UTC"),
        ("Tokens that last longer then", f"{longer:,}"),
        ("Expired ones that work again", f"{again:,}"),
        ("Tokens that stay as they are", f"{len(ids) - longer:,}"),
    ]


def of_limits(ids: Sequence[int], texts: Sequence[str], removed: Sequence[str]) -> Facts:
    """For each limit, on how many tokens it is new, and on how many it replaces another amount."""
    rows = Limit.objects.filter(token__in=ids).order_by()
    facts = []
    for limit in map(limits.parse, texts):
        same = rows.filter(metric=limit.metric, period=limit.period)
        equal = same.filter(amount=limit.amount, burst=limit.burst).count()
        there = same.count()
        said = f"new on {len(ids) - there:,}, replaces another amount on {there - equal:,}, unchanged on {equal:,}"
        facts.append((f"Set {limit}", said))
    for name in removed:
        metric, period = limits.parse_name(name)
        there = rows.filter(metric=metric, period=period).count()
        facts.append((f"Remove {name}", f"from {there:,} token{' that has' if there == 1 else 's that have'} it"))
    return facts


def _used_since(uses: QuerySet[Secret], at: dt.datetime) -> int:
    return uses.filter(last_used_at__gte=at).values("token").distinct().count()


def _named(tokens: QuerySet[ProxyToken], count: int) -> str:
    """The names of a few, where they are all."""
    return f": {', '.join(tokens.order_by('pk').values_list('name', flat=True))}" if count <= SHOWN else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")

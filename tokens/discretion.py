"""Who did something, as a tenant's people are told it: their own people and keys by name, the platform's by none."""

import re
from collections.abc import Iterable
from typing import Any

from tokens.audit import STAFF
from tokens.models import ApiKey, Membership
from tokens.roles import sees_staff

_KEY = re.compile(r"API key .* \((gemf_\w+)…\)", re.DOTALL)


def told(name: str, tenant_id: int | None, user: Any) -> str:
    """What this person is told of whoever did something to a row of the tenant; `name` as it was noted then."""
    return name if sees_staff(user) else names_told([name], tenant_id)[name]


def names_told(names: Iterable[str], tenant_id: int | None) -> dict[str, str]:
    """What the tenant's people are told in place of each of these names. Two queries at most."""
    wanted = set(names)
    people = Membership.objects.filter(tenant=tenant_id, user__email__in=wanted, user__is_superuser=False)
    own = set(people.exclude(user__is_finance=True).values_list("user__email", flat=True))
    shown = [match[1] for match in map(_KEY.fullmatch, wanted) if match]
    if shown:
        own.update(key.actor for key in ApiKey.objects.filter(tenant=tenant_id, shown__in=shown))
    return {name: name if not name or name in own else STAFF for name in wanted}

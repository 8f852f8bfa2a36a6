"""Finding tokens: by what people remember of them, or by a secret that somebody has found."""

import re
from typing import NamedTuple

from django.conf import settings
from django.db.models import Q, QuerySet

from tokens import apikeys, secrets
from tokens.models import ApiKey, ProxyToken, Secret, Tenant

MOST_SECRETS = 50  # of a pasted text
LEAST_FOR_A_PART = 3  # characters; fewer are looked for at the beginning, which the index finds too

_OURS = re.compile(r"gemf?_[0-9A-Za-z]{46}(?![0-9A-Za-z])")


class Found(NamedTuple):
    """A pasted secret that is known: of a token, or of a key of the management API."""

    secret: Secret | None
    key: ApiKey | None  # with `backed` (tokens.apikeys)


def matching(term: str) -> QuerySet[ProxyToken]:
    """The tokens of which a part of the name, of the member's address or of the tenant's name is `term`, whatever the
    case, or whose secret begins with it exactly. Every one of these has an index."""
    how = "icontains" if len(term) >= LEAST_FOR_A_PART else "istartswith"
    tokens = ProxyToken.objects.order_by()
    tenants = Tenant.objects.filter(Q(**{f"slug__{how}": term}) | Q(**{f"name__{how}": term}))
    places = [
        tokens.filter(**{f"name__{how}": term}).values("pk"),
        tokens.filter(**{f"member__user__email__{how}": term}).values("pk"),
        tokens.filter(tenant__in=tenants.order_by()).values("pk"),
        Secret.objects.filter(shown__startswith=term[: secrets.SHOWN_CHARACTERS]).order_by().values("token_id"),
    ]
    return tokens.filter(pk__in=places[0].union(*places[1:], all=True))


def holds_secret(text: str) -> bool:
    """Whether there is a whole secret of ours in a text, which then has no place in an address."""
    return _OURS.search(text) is not None


def find_secrets(text: str) -> list[Found]:
    """The secrets in a pasted text, such as a header or some lines of a log, that are known here, ended ones too.

    A text without any of ours is tried as a whole, as a secret that was imported.
    """
    candidates = list(dict.fromkeys(_OURS.findall(text)))[:MOST_SECRETS]
    whole = text.strip().removeprefix("Bearer ").strip()
    if not candidates and secrets.is_plausible(whole):
        candidates = [whole]
    digests = [digest for one in candidates for digest in secrets.digests(one, settings.TOKEN_PEPPERS)]
    own = Secret.objects.filter(digest__in=digests).select_related("token__tenant", "token__member__user")
    keys = apikeys.with_backing(ApiKey.objects.filter(digest__in=digests).select_related("tenant"))
    return [*(Found(secret, None) for secret in own), *(Found(None, key) for key in keys)]

"""Verbs on many tokens, each of which is done and audited as if it were the only one.

A verb goes through the tokens in the order given and ends early when the admission store or the database is away: what
was done stays done, and the outcome says how far it came. Whoever asks for thousands asks for a piece at a time.
"""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from django.core.exceptions import ValidationError
from django.db import transaction

from tokens import issuing, limits, stopping
from tokens.admission.connection import StoreUnavailable
from tokens.errors import DATABASE_DOWN, Refused
from tokens.models import ProxyToken, TokenStatus


@dataclass(slots=True)
class Outcome:
    """What became of some tokens: how many were done, why others were left as they are, and what ended it early."""

    done: int = 0
    left: Counter[str] = field(default_factory=Counter)
    stopped: str = ""
    last: int = 0  # the id that it came to


class _Left(Exception):
    """The token stays as it is; the text says why, to be read after a number of tokens."""


def revoke(ids: Iterable[int], by: str, reason: str) -> Outcome:
    """Revoke tokens for good; of each, no admission succeeds once it is done."""

    def one(token_id: int) -> None:
        stopping.revoke(token_id, by, reason)

    return _each(ids, one)


def extend(ids: Iterable[int], until: dt.datetime | None) -> Outcome:
    """Let tokens expire at that moment (None: never) if they would before it. Expired ones work again."""

    def one(token_id: int) -> None:
        with transaction.atomic():
            token = _lock(token_id)
            if token.expires_at is None or (until is not None and token.expires_at >= until):
                raise _Left("would last as long anyway")
            token.expires_at = until
            token.save(update_fields=["expires_at"])

    return _each(ids, one)


def change_limits(ids: Iterable[int], texts: Sequence[str], removed: Sequence[str] = ()) -> Outcome:
    """Set limits of tokens, such as ``images:500/day``, and remove others by name, where they are."""
    names = {limits.parse_name(name) for name in removed}

    def one(token_id: int) -> None:
        with transaction.atomic():
            token = _lock(token_id)
            issuing.set_limits(token, texts)
            for limit in issuing.limits_of(token):
                if (limit.metric, limit.period) in names:
                    limit.delete()

    return _each(ids, one)


def _lock(token_id: int) -> ProxyToken:
    token = ProxyToken.objects.select_for_update(no_key=True).get(pk=token_id)
    if token.status == TokenStatus.REVOKED:
        raise _Left("were revoked meanwhile")
    return token


def _each(ids: Iterable[int], one: Callable[[int], None]) -> Outcome:
    outcome = Outcome()
    for token_id in ids:
        try:
            one(token_id)
        except _Left as exc:
            outcome.left[str(exc)] += 1
        except (Refused, ValidationError) as exc:
            outcome.left[f"were refused: {exc}"] += 1
        except StoreUnavailable as exc:
            outcome.stopped = str(exc)
            return outcome
        except DATABASE_DOWN:
            outcome.stopped = "The database did not answer."
            return outcome
        else:
            outcome.done += 1
        outcome.last = token_id
    return outcome

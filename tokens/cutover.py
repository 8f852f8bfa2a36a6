"""The cut-over of a rotated token: is the old secret still used, when, from where, by what; what breaks without it."""

import datetime as dt
from dataclasses import dataclass

from django.utils.timezone import now

from tokens.models import ProxyToken, Secret, SecretUse

SHOWN = 50  # clients
RECENT = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class CutOver:
    """Where a token stands between its old secret and its new one.

    Attributes:
        old: the secret that was replaced last.
        current: the one that replaced it, if it has not ended itself.
        accepted: whether the old one still opens calls.
        uses: who has called with the old one since the rotation, the latest first, at most SHOWN.
        recent: how many of these called within the last 24 hours.
        complete: whether `uses` are all of them.
    """

    old: Secret
    current: Secret | None
    accepted: bool
    uses: list[SecretUse]
    recent: int
    complete: bool
    at: dt.datetime

    @property
    def calls(self) -> int:
        """How many calls these clients have made with the old secret since the rotation."""
        return sum(use.calls for use in self.uses)

    @property
    def state(self) -> str:
        """How safe it is to end the grace: ``ended``, ``clear`` (nobody called), ``quiet`` (not lately) or ``used``."""
        if not self.accepted:
            return "ended"
        if not self.uses:
            return "clear"
        return "used" if self.recent else "quiet"

    @property
    def verdict(self) -> str:
        """The same as a sentence."""
        clients = f"{len(self.uses)}{'' if self.complete else ' or more'} client{'' if len(self.uses) == 1 else 's'}"
        one = self.recent == 1
        return {
            "ended": "The old secret is no longer accepted: whoever still sends it gets 403.",
            "clear": "No call has used the old secret since the rotation. Ending the grace now breaks nothing known.",
            "quiet": f"{clients} used the old secret after the rotation, none in the last 24 hours. Clients that call "
            "rarely may still have it.",
            "used": f"{self.recent} client{' has' if one else 's have'} called with the old secret in the last 24 "
            f"hours. End the grace now, and {'its' if one else 'their'} next call gets 403.",
        }[self.state]


def cut_over(token: ProxyToken) -> CutOver | None:
    """The state of a token's last rotation; None: there was none, or it left no grace."""
    at = now()
    secrets = list(token.secrets.order_by("-pk"))
    old = next((secret for secret in secrets if secret.accepted_until is not None), None)
    if old is None:
        return None
    current = next((one for one in secrets if one.accepted_until is None and one.ended_at is None), None)
    accepted = old.ended_at is None and old.accepted_until is not None and old.accepted_until > at
    since = old.created_at if current is None else current.created_at
    uses = list(old.uses.filter(last_at__gte=since).order_by("-last_at")[: SHOWN + 1])
    complete = len(uses) <= SHOWN
    recent = sum(use.last_at > at - RECENT for use in uses[:SHOWN])
    return CutOver(old, current, accepted, uses[:SHOWN], recent, complete, at)

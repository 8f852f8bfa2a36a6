"""Limits as people write them: ``METRIC:AMOUNT/PERIOD[:burst=N]`` or ``concurrent:AMOUNT``.

``images:500/day``, ``requests:60/minute:burst=10``, ``tokens:2000000/month``, ``concurrent:8``. The same rules hold for
the command line and for the admin's forms.
"""

import re
from dataclasses import dataclass

from django.db import models

from tokens.errors import Refused

MOST_AMOUNT = 10**12
MOST_PER_SECOND = 1_000_000  # rates are kept in whole microseconds a unit
MOST_REFILL_SECONDS = 366 * 86_400  # an empty burst fills again within a year; more would pass 2^53 microseconds


class Metric(models.TextChoices):
    """What a limit counts."""

    REQUESTS = "requests", "Requests"
    IMAGES = "images", "Images"
    TOKENS = "tokens", "Tokens"
    CONCURRENT = "concurrent", "Concurrent calls"


class Period(models.TextChoices):
    """Second, minute and hour are rates (GCRA); day, month and total are quotas; concurrent has none."""

    SECOND = "second", "per second"
    MINUTE = "minute", "per minute"
    HOUR = "hour", "per hour"
    DAY = "day", "per day"
    MONTH = "month", "per month"
    TOTAL = "total", "in total"
    NONE = "", "at once"


RATE_SECONDS: dict[str, int] = {Period.SECOND: 1, Period.MINUTE: 60, Period.HOUR: 3600}

_FORM = re.compile(r"(?P<metric>[a-z]+):(?P<amount>\d{1,15})(?:/(?P<period>[a-z]+))?(?::burst=(?P<burst>\d{1,15}))?")
_NAME = re.compile(r"(?P<metric>[a-z]+)(?:/(?P<period>[a-z]+))?")


@dataclass(frozen=True, slots=True)
class LimitText:
    """A limit without its scope. `period` is empty for concurrent; `burst` None: not given, so the amount."""

    metric: str
    period: str
    amount: int
    burst: int | None = None

    @property
    def name(self) -> str:
        """What it limits: ``images/day``, ``concurrent``. A scope has one limit of a name."""
        return f"{self.metric}/{self.period}" if self.period else self.metric

    def __str__(self) -> str:
        text = f"{self.metric}:{self.amount}" + (f"/{self.period}" if self.period else "")
        return text + (f":burst={self.burst}" if self.burst is not None else "")


def parse(text: str) -> LimitText:
    """Read one limit. Raises Refused, a ValueError, with a sentence that says what is wrong with it."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise Refused(
            f"{text!r} is not a limit: write METRIC:AMOUNT/PERIOD, such as images:500/day, or concurrent:8; "
            "a rate may add :burst=10."
        )
    burst = match["burst"]
    limit = LimitText(match["metric"], match["period"] or "", int(match["amount"]), int(burst) if burst else None)
    check(limit)
    return limit


def parse_name(text: str) -> tuple[str, str]:
    """Metric and period of a limit's name, such as ``images/day`` or ``concurrent``. Raises Refused."""
    match = _NAME.fullmatch(text.strip())
    if match is None:
        raise Refused(f"{text!r} does not name a limit: write METRIC/PERIOD, such as images/day, or concurrent.")
    _check_name(match["metric"], match["period"] or "")
    return match["metric"], match["period"] or ""


def check(limit: LimitText) -> None:
    """Raise Refused, a ValueError, for a limit that can't be kept."""
    _check_name(limit.metric, limit.period)
    if not 1 <= limit.amount <= MOST_AMOUNT:
        raise Refused(f"The amount of {limit} must be from 1 to {MOST_AMOUNT}.")
    seconds = RATE_SECONDS.get(limit.period)
    if seconds is not None and limit.amount > MOST_PER_SECOND * seconds:
        raise Refused(f"{limit} is too fast: a rate is at most {MOST_PER_SECOND} a second.")
    if limit.burst is not None:
        if seconds is None:
            raise Refused(f"{limit} can't have a burst: only limits per second, minute or hour can.")
        if not 1 <= limit.burst <= MOST_AMOUNT:
            raise Refused(f"The burst of {limit} must be from 1 to {MOST_AMOUNT}.")
        if limit.burst * seconds > MOST_REFILL_SECONDS * limit.amount:
            raise Refused(f"The burst of {limit} is too large: it would take more than a year to fill again.")


def _check_name(metric: str, period: str) -> None:
    if metric not in Metric.values:
        raise Refused(f"{metric!r} can't be limited: there are {', '.join(Metric.values)}.")
    if metric == Metric.CONCURRENT:
        if period:
            raise Refused("concurrent has no period: write concurrent:8.")
    elif not period or period not in Period.values:
        periods = ", ".join(value for value in Period.values if value)
        raise Refused(f"A limit of {metric} needs a period: one of {periods}.")

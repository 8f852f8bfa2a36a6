"""From the admit script's decision to the error that the client gets."""

import datetime as dt

from gateway.errors import (
    ApiError,
    ExceedsLimit,
    IdempotencyMismatch,
    InFlight,
    InvalidToken,
    LimitReached,
    Unavailable,
)
from tokens.admission.admission import Decision
from tokens.admission.principal import ScopedLimit

PERIODS = {"total": "in total", "": "at once"}
CONCURRENT_RETRY_AFTER = 2  # seconds: a call in flight ends when it ends
TOTAL_RETRY_AFTER = 86_400  # seconds: only a person frees it, so asking again tomorrow is soon enough


def describe(scoped: ScopedLimit) -> str:
    """A limit in words, such as ``100 images per day for this tenant``."""
    limit = scoped.limit
    what = "calls in flight" if limit.metric == "concurrent" else limit.metric
    if limit.amount == 1:
        what = "call in flight" if limit.metric == "concurrent" else limit.metric.removesuffix("s")
    period = PERIODS.get(limit.period, f"per {limit.period}")
    burst = f" ({limit.burst} at once)" if limit.burst else ""
    return f"{limit.amount} {what} {period}{burst} for this {scoped.scope}"


def _reached(decision: Decision, scoped: ScopedLimit) -> LimitReached:
    text = f"The limit of {describe(scoped)} is reached."
    limit = scoped.limit
    if limit.metric == "concurrent":
        return LimitReached(f"{text} It frees when a call ends.", False, CONCURRENT_RETRY_AFTER)
    if limit.period == "total":
        return LimitReached(f"{text} It doesn't free by itself.", True, TOTAL_RETRY_AFTER)
    if limit.is_rate:
        return LimitReached(f"{text} It frees in {decision.retry_after} s.", False, decision.retry_after)
    frees = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=decision.retry_after)
    return LimitReached(f"{text} It frees at {frees:%Y-%m-%d %H:%M} UTC.", True, decision.retry_after)


def refusal(decision: Decision) -> ApiError:
    """The error for every decision that doesn't admit."""
    if decision.status == "REFUSED" and decision.limit is not None:
        return _reached(decision, decision.limit)
    if decision.status == "EXCEEDS" and decision.limit is not None:
        return ExceedsLimit(f"This call asks for more than the limit of {describe(decision.limit)} ever allows.")
    if decision.status == "INVALID":
        return InvalidToken()
    if decision.status == "IN_FLIGHT":
        return InFlight()
    if decision.status == "MISMATCH":
        return IdempotencyMismatch()
    if decision.status == "STOPPED":
        return Unavailable("The gateway's operator has stopped it for now.", 60)
    if decision.status == "BACKLOG":
        return Unavailable("The gateway can't record more usage at the moment.", 10)
    return Unavailable("The gateway can't admit calls at the moment.")

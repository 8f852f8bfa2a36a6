"""The settings that every request is held against, read once: Django's settings object costs a look-up each time."""

import ipaddress
from dataclasses import dataclass

from django.conf import settings


@dataclass(frozen=True, slots=True)
class Bounds:
    """Each as the setting of that name, see docs/settings.md: bytes, seconds, calls and events."""

    body_limit: int
    body_timeout: float
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    in_flight_limit: int
    lease_seconds: float
    backlog_limit: int
    dispatch_within: float
    settle_retry_seconds: float


def read_bounds() -> Bounds:
    """The bounds as the settings have them now."""
    return Bounds(
        body_limit=settings.BODY_LIMIT,
        body_timeout=settings.BODY_TIMEOUT,
        trusted_proxies=tuple(settings.TRUSTED_PROXIES),
        in_flight_limit=settings.IN_FLIGHT_LIMIT,
        lease_seconds=settings.LEASE_SECONDS,
        backlog_limit=settings.BACKLOG_LIMIT,
        dispatch_within=settings.DISPATCH_WITHIN,
        settle_retry_seconds=settings.SETTLE_RETRY_SECONDS,
    )

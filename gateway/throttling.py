"""Brute force: after too many failed authentications from one address, further invalid tokens from it get 429.

The one module that uses django-ratelimit. It is synchronous and talks to the cache, so it runs in a thread, and
only for requests whose token has already failed: a valid token is never affected.
"""

import asyncio
import logging

from django.conf import settings
from django.http import HttpRequest
from django_ratelimit.core import get_usage

logger = logging.getLogger(__name__)
GROUP = "failed-authentication"


def _seconds_to_wait(request: HttpRequest, address: str) -> int:
    try:
        usage = get_usage(
            request,
            group=GROUP,
            key=lambda group, request: address,
            rate=settings.FAILED_AUTHENTICATION_RATE,
            increment=True,
        )
    except Exception as exc:  # the cache is down, in whatever words its client says so: refusing is enough then
        logger.warning("failed authentications can't be counted", extra={"reason": type(exc).__name__})
        return 0
    return max(1, usage["time_left"]) if usage and usage["should_limit"] else 0


async def failed_authentication(request: HttpRequest, address: str) -> int:
    """Count a failed authentication from `address`; seconds to wait when there were too many, else 0."""
    return await asyncio.to_thread(_seconds_to_wait, request, address)

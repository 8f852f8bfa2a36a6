"""Brute force: after too many failed authentications from one address, further invalid tokens from it get 429.

The one module that uses django-ratelimit. It is synchronous and talks to the cache, so it runs in a thread, and
only for requests whose token has already failed: a valid token is never affected.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings
from django.http import HttpRequest
from django_ratelimit.core import get_usage

logger = logging.getLogger(__name__)
GROUP = "failed-authentication"
MOST_WAITING = 64


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


_waiting = asyncio.Semaphore(MOST_WAITING)
_threads = ThreadPoolExecutor(4, thread_name_prefix="throttling")  # of its own: a hung cache holds up nothing else


async def failed_authentication(request: HttpRequest, address: str) -> int:
    """Count a failed authentication from `address`; seconds to wait when there were too many, else 0.

    While the cache hangs only so many wait for it; the others are refused without being counted.
    """
    if _waiting.locked():
        return 0
    async with _waiting:
        return await asyncio.get_running_loop().run_in_executor(_threads, _seconds_to_wait, request, address)

"""Brute force: after too many failed authentications from one address, further invalid tokens from it get 429.

Counting is synchronous and talks to the cache, so it runs in a thread, and only for requests whose token has already
failed: a valid token is never affected.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings
from django.http import HttpRequest

from config.addresses import subscriber
from config.throttling import count_try

GROUP = "failed-authentication"
MOST_WAITING = 64

_waiting = asyncio.Semaphore(MOST_WAITING)
_threads = ThreadPoolExecutor(4, thread_name_prefix="throttling")  # of its own: a hung cache holds up nothing else


async def failed_authentication(request: HttpRequest, address: str) -> int:
    """Count a failed authentication from `address`; seconds to wait when there were too many, else 0.

    While the cache hangs only so many wait for it; the others are refused without being counted.
    """
    if _waiting.locked():
        return 0
    rate = settings.FAILED_AUTHENTICATION_RATE
    async with _waiting:
        counted = subscriber(address)
        return await asyncio.get_running_loop().run_in_executor(_threads, count_try, request, GROUP, counted, rate)

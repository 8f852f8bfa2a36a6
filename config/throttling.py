"""Brute force: how often somebody may try, counted in the cache that every process shares.

The one module that uses django-ratelimit. Its counters live in fixed windows whose edges differ from key to key. With
the cache down a process counts for itself: guessing then gets as many tries as there are processes, no more, and
nobody is locked out by the outage.
"""

import logging
import re
import secrets
import threading
import time

from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django_ratelimit.core import get_usage

logger = logging.getLogger(__name__)

LONGEST_KEY = 320  # characters of what is counted: a made-up one costs no more than an e-mail address
MOST_COUNTED = 10_000  # keys that a process counts for itself while the cache is down
FORGOTTEN_FOR = 7 * 24 * 3600  # seconds; longer than any period in use
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_RATE = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,3})?([smhd])")


def checked_rate(name: str, rate: str) -> str:
    """`rate` as it is, when it reads as ``10/15m`` does: how many in how many seconds, minutes, hours or days.

    Raises ImproperlyConfigured, naming the setting, for anything else.
    """
    if not _RATE.fullmatch(rate) or seconds_of(rate) > FORGOTTEN_FOR:
        raise ImproperlyConfigured(f"{name} must be a rate such as 10/15m, of a week at most, not {rate!r}.")
    return rate


def seconds_of(rate: str) -> int:
    """The period of a rate, in seconds."""
    match = _RATE.fullmatch(rate)
    return int(match[2] or 1) * SECONDS[match[3]] if match else 0


class OwnCounters:
    """Fixed windows in this process's memory, for the time without a cache. Safe under threads."""

    def __init__(self, most: int = MOST_COUNTED) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, int], int] = {}  # by group, key and the window's end

    def count(self, group: str, key: str, rate: str) -> int:
        """Count one try; seconds to wait when there were too many, else 0. When full, the oldest key is forgotten."""
        limit, period, at = int(rate.partition("/")[0]), seconds_of(rate), time.time()
        ends = (int(at) // period + 1) * period
        name = (group, key, ends)
        with self._lock:
            tries = self._counts.pop(name, 0) + 1
            while len(self._counts) >= self._most:
                del self._counts[next(iter(self._counts))]
            self._counts[name] = tries
        return max(1, int(ends - at)) if tries > limit else 0

    def forget(self, group: str, key: str) -> None:
        """Drop what was counted of a key."""
        with self._lock:
            for name in [name for name in self._counts if name[:2] == (group, key)]:
                del self._counts[name]


_own = OwnCounters()


def count_try(request: HttpRequest, group: str, key: str, rate: str, *, forgettable: bool = False) -> int:
    """Count a try of `key`; seconds to wait when there were more than `rate` allows, else 0. Raises nothing.

    Asks the cache, so call it where blocking is allowed. `key` is cut to 320 characters and stored as a hash.
    Only what is counted as `forgettable` can be forgotten; that asks the cache twice.
    """
    key = key[:LONGEST_KEY]
    try:
        value = f"{key}\n{cache.get(_epoch(group, key), '')}" if forgettable else key
        usage = get_usage(request, group=group, key=lambda group, request: value, rate=rate, increment=True)
    except Exception as exc:  # the cache is down, in whatever words its client says so
        logger.warning("tries are counted by this process alone", extra={"group": group, "reason": type(exc).__name__})
        return _own.count(group, key, rate)
    return max(1, usage["time_left"]) if usage and usage["should_limit"] else 0


def forget(group: str, key: str) -> None:
    """Let `key` start anew: what was counted of it as forgettable counts no more. Raises what a broken cache raises."""
    _own.forget(group, key[:LONGEST_KEY])
    cache.set(_epoch(group, key[:LONGEST_KEY]), secrets.token_hex(4), FORGOTTEN_FOR)


def _epoch(group: str, key: str) -> str:
    # Part of what is counted, so that forgetting needs neither the library's own cache keys nor its windows.
    return f"throttling:{group}:{key.encode().hex()}"

"""The circuit breaker: a provider that is down isn't asked again and again.

After some failures in a row that say so (it can't be reached, or something in front of it answers 502, 503 or 504) its
calls are refused for a few seconds before anything is reserved; then one is let through, and what becomes of it closes
the breaker or keeps it open. A provider that is merely slow, or breaks off, isn't counted: it may have drawn.
"""

import math
import time

from gateway import metrics
from gateway.errors import Unavailable


class Breaker:
    """The breakers of one process, one a provider. It opens after `failures` in a row (0: never), for `seconds`."""

    def __init__(self, failures: int, seconds: float) -> None:
        self.failures, self.seconds = failures, seconds
        self._failed: dict[str, int] = {}
        self.open: dict[str, float] = {}  # until when (monotonic), by the provider's name

    def require_closed(self, provider: str) -> None:
        """Raises Unavailable while the provider counts as down. It only looks: the call may yet be refused."""
        until = self.open.get(provider)
        if until is not None:
            left = until - time.monotonic()
            if left > 0:
                raise Unavailable("The remote AI service can't be reached at the moment.", math.ceil(left))

    def enter(self, provider: str) -> None:
        """To be called right before a call is sent. Raises as `require_closed`; of those held off, one may pass."""
        if provider in self.open:
            self.require_closed(provider)
            self.open[provider] = time.monotonic() + self.seconds

    def failed(self, provider: str) -> None:
        """A call showed that the provider is down."""
        count = self._failed[provider] = self._failed.get(provider, 0) + 1
        if 0 < self.failures <= count:
            self.open[provider] = time.monotonic() + self.seconds
            metrics.breaker_open(provider, True)

    def answered(self, provider: str) -> None:
        """A call showed that it isn't."""
        if provider in self._failed:
            del self._failed[provider]
            if self.open.pop(provider, None) is not None:
                metrics.breaker_open(provider, False)

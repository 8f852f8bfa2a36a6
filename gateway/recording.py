"""Step 6's last stretch: how a call ended goes to the store, else straight into the ledger, else into the spool.

Whichever takes it makes it safe, so the client may be answered; the other two learn it from there.
"""

import asyncio
import logging
import time

from gateway import metrics
from gateway.booking import Booking, NotBooked
from gateway.spool import Spool
from tokens.admission.connection import StoreConnection, StoreError, StoreUnavailable
from tokens.admission.settlement import Ending, finish

logger = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.4  # seconds between attempts to reach the store


class Recorder:
    """Records the endings of one process's calls; offers each to the store for `retry_seconds` before going on."""

    def __init__(self, store: StoreConnection, spool: Spool, retry_seconds: float) -> None:
        self.store, self.spool, self.retry_seconds = store, spool, retry_seconds
        self.booking = Booking()

    async def record(self, ending: Ending) -> None:
        """End a call; it is recorded durably when this returns. Raises OSError when nobody could take it."""
        if await self._ended_in_store(ending):
            return
        try:
            await self.booking.book(ending)
        except NotBooked as exc:
            logger.warning("usage goes to the spool", extra={"reason": str(exc)})
            metrics.counted("settle_spooled")
            await self.spool.keep(ending)
        else:
            metrics.counted("settle_booked")

    async def _ended_in_store(self, ending: Ending) -> bool:
        """Most outages of a store are the moment of its restart."""
        until = time.monotonic() + self.retry_seconds
        pause = FIRST_PAUSE
        while True:
            try:
                await finish(self.store, ending)
                return True
            except (StoreUnavailable, StoreError) as exc:
                left = until - time.monotonic()
                if left <= 0:
                    logger.warning("usage goes straight into the ledger", extra={"reason": str(exc)})
                    return False
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, LONGEST_PAUSE)

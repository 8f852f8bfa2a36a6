"""The last resort for usage: endings that the store couldn't take, one fsynced file each, replayed by request id.

`SPOOL_ROOT/<request id>.json`. Replaying is safe any number of times, from any process: ending a call twice changes
nothing. A file that can't be read is set aside as `.bad` and never deleted.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from tokens.admission.settlement import Ending

logger = logging.getLogger(__name__)


class Spool:
    """The spool folder; made when first needed, for the owner only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def keep(self, ending: Ending) -> None:
        """Write an ending durably. Raises OSError."""
        await asyncio.to_thread(self._write, ending)

    def _write(self, ending: Ending) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.folder / f".{ending.request_id}.part"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(ending))
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.folder / f"{ending.request_id}.json")
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    async def replay(self, take: Callable[[Ending], Awaitable[Any]]) -> int:
        """Hand every spooled ending to `take` and delete it after; returns how many. Stops at the first refusal."""
        paths = sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []
        for path in paths:
            try:
                ending = msgspec.json.decode(path.read_bytes(), type=Ending)
            except FileNotFoundError:
                continue  # another process was faster
            except msgspec.DecodeError:
                logger.exception("a spool file can't be read and is set aside")
                path.rename(path.with_suffix(".bad"))
                continue
            await take(ending)
            path.unlink(missing_ok=True)
        return len(paths)

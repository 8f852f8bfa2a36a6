"""The last resort for usage: endings that neither store nor ledger took, one fsynced file each, replayed by request id.

`SPOOL_ROOT/<request id>.json`. Replaying is safe any number of times, from any process: ending a call twice changes
nothing. A file that can't be read is set aside as `.bad` and never deleted; one that the store refuses stays and is
tried again, and holds up no other.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from tokens.admission.connection import StoreError
from tokens.admission.settlement import Ending

logger = logging.getLogger(__name__)
SLICE = 100  # files read at once


class Spool:
    """The spool folder; made when first needed, for the owner only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Of its own: recording what was spent must not queue behind anything else.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="spool")

    async def keep(self, ending: Ending) -> None:
        """Write an ending durably. Raises OSError."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._write, ending)

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
        """Hand every spooled ending to `take` and delete it after; returns how many went.

        A StoreError of `take` leaves that ending for the next time; what else it raises ends the replay.
        """
        loop = asyncio.get_running_loop()
        paths = self._paths()
        taken = 0
        while endings := await loop.run_in_executor(self._threads, self._read, paths):
            for path, ending in endings:
                if ending is None:
                    continue
                try:
                    await take(ending)
                except StoreError as exc:
                    logger.error("the store refuses a spooled ending", extra={"file": path.name, "reason": exc.code})
                    continue
                path.unlink(missing_ok=True)
                taken += 1
        return taken

    def _paths(self) -> Iterator[Path]:
        yield from sorted(self.folder.glob("*.json"))

    def _read(self, paths: Iterator[Path]) -> list[tuple[Path, Ending | None]]:
        return [(path, self._ending(path)) for path in islice(paths, SLICE)]

    def _ending(self, path: Path) -> Ending | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Ending)
        except FileNotFoundError:  # another process was faster
            return None
        except (msgspec.DecodeError, UnicodeDecodeError):
            logger.exception("a spool file can't be read and is set aside")
            path.rename(path.with_suffix(".bad"))
        except OSError as exc:
            logger.error("a spool file can't be opened", extra={"file": path.name, "reason": str(exc.strerror)})
        return None

"""The pictures that were answered as a URL: kept for an hour, under names nobody can guess."""

import re
import secrets
import time
from pathlib import Path

_LIFETIME = 3600.0  # seconds, like OpenAI's own URLs
_NAME = re.compile(r"[0-9a-f]{32}\.png", re.ASCII)


class Gallery:
    """A folder of PNG files."""

    def __init__(self, folder: Path) -> None:
        """Make the folder (0700) where it is missing. Raises OSError."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def keep(self, png: bytes) -> str:
        """Store one picture, drop those whose hour is over, and return the new one's name. Raises OSError."""
        self._drop_old()
        name = f"{secrets.token_hex(16)}.png"
        (self._folder / name).write_bytes(png)
        return name

    def find(self, name: str) -> bytes | None:
        """The picture of that name; None when there is none, any longer or ever."""
        if not _NAME.fullmatch(name):
            return None
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def _drop_old(self) -> None:
        oldest = time.time() - _LIFETIME
        for picture in self._folder.glob("*.png"):
            try:
                if picture.stat().st_mtime < oldest:
                    picture.unlink()
            except FileNotFoundError:
                continue  # another call dropped it first

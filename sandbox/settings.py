"""What the environment tells the sandbox."""

import os
from dataclasses import dataclass, field
from pathlib import Path


class SettingsError(Exception):
    """The environment lacks something; the message says what, in a sentence for the person who starts it."""


@dataclass(frozen=True)
class Settings:
    """Where to keep things, how to be reached, and the key to ask for."""

    data: Path
    public_url: str  # without a slash at its end; pictures answered as a URL are found below it
    key: str = field(repr=False)

    @classmethod
    def from_environment(cls, listening_url: str | None) -> "Settings":
        """Read `SANDBOX_DATA`, `SANDBOX_KEY` and `SANDBOX_PUBLIC_URL` (default: `listening_url`).

        Raises SettingsError for what is missing.
        """
        data, key = os.environ.get("SANDBOX_DATA"), os.environ.get("SANDBOX_KEY")
        public_url = os.environ.get("SANDBOX_PUBLIC_URL") or listening_url
        if not data:
            raise SettingsError("Set SANDBOX_DATA to the folder where the sandbox keeps its record.")
        if not key:
            raise SettingsError("Set SANDBOX_KEY to the key that callers must show.")
        if not public_url:
            raise SettingsError("Set SANDBOX_PUBLIC_URL: on a Unix socket the sandbox cannot know its own address.")
        return cls(Path(data), public_url.rstrip("/"), key)

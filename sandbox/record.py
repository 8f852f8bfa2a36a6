"""The sandbox's own account of what was really spent: one JSON line per image request it carried out."""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path


class Record:
    """`generations.jsonl` in the data folder. Prompts are never written."""

    def __init__(self, folder: Path) -> None:
        """Open the file to append, making folder (0700) and file (0600) where they are missing. Raises OSError."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(folder / "generations.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._turn = threading.Lock()

    def append(
        self,
        *,
        request_id: str | None,
        model: str,
        size: str,
        n: int,
        total_tokens: int | None,
        directive: str | None,
    ) -> None:
        """Write one line and return once the disk has it; safe to call from several threads. Raises OSError."""
        line = {
            "at": datetime.now(UTC).isoformat(),
            "request_id": request_id,
            "model": model,
            "size": size,
            "n": n,
            "usage": {"total_tokens": total_tokens},
            "directive": directive,
        }
        text = memoryview(json.dumps(line).encode() + b"\n")
        with self._turn:
            while text:
                text = text[os.write(self._file, text) :]
            os.fsync(self._file)

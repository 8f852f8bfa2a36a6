"""The data folder: make it, check it, and keep a second supervisor out of it."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from config.supervisor import account, runfile, secretfiles
from config.supervisor.errors import StartError

NOTICE_SECONDS = 2.0  # within which a supervisor that has lost its `make` begins to stop
POLL_SECONDS = 0.1


def prepare(data: Path) -> None:
    """Make the folder if need be, and refuse one that we must not or can't use.

    As root the folder is made passable for others (0711), so that the unprivileged PostgreSQL can live in it; what is
    in it is private, file by file.

    Raises:
        StartError: no folder, not writable, somebody else's, or full of something else.
    """
    try:
        data.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        secrets = data / secretfiles.FOLDER
        if not secrets.is_dir() and _strangers(data):
            raise StartError(
                f"{data} is not empty, yet it is no data folder of the gateway ({secrets} is missing): "
                "choose another with DATA=."
            )
        with tempfile.TemporaryFile(dir=data):
            pass
        secrets.mkdir(mode=0o700, exist_ok=True)
        owner = secrets.stat().st_uid
    except FileExistsError as exc:
        raise StartError(f"{exc.filename} is not a folder: choose another data folder with DATA=.") from exc
    except OSError as exc:
        raise StartError(
            f"The data folder {data} can't be written by {account.user_name(os.geteuid())} "
            f"({exc.strerror}): choose another with DATA=."
        ) from exc
    if owner != os.geteuid():
        raise StartError(
            f"The data folder {data} belongs to {account.user_name(owner)}: "
            "start as that user, or choose another with DATA=."
        )


def claim(data: Path, say: Callable[[str], None]) -> int:
    """Take the folder for this process until it ends, however it ends; returns the descriptor that holds the lock.

    Waits for an earlier supervisor that is stopping.

    Raises:
        StartError: another supervisor runs here and goes on running.
    """
    descriptor = os.open(data, os.O_RDONLY)  # not inherited by children, which would keep the lock
    end = time.monotonic() + NOTICE_SECONDS
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            holder = runfile.read(data)
        stopping = holder is not None and holder.stopping
        if not stopping and time.monotonic() > end:
            os.close(descriptor)
            who = f" (process {holder.supervisor.pid})" if holder else ""
            raise StartError(
                f"The gateway already runs on {data}{who}: stop it, or choose another folder (DATA=) and port (PORT=)."
            )
        if stopping:
            if not told:
                say(f"An earlier start on {data} is still stopping; waiting for it.")
            told = True
            end = time.monotonic() + NOTICE_SECONDS  # its file goes a moment before its lock
        time.sleep(POLL_SECONDS)


def _strangers(data: Path) -> bool:
    return any(not entry.name.startswith(".") and entry.name != "lost+found" for entry in data.iterdir())

"""The secrets of a data folder: made once, one file each, readable by the owner alone."""

import base64
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from config.supervisor.errors import StartError

FOLDER = "secrets"

# Without these the rows that are already stored can't be read, verified or reached any more.
TIED_TO_THE_DATABASE = ("postgres_password", "token_peppers", "encryption_keys")

MAKERS: dict[str, Callable[[], str]] = {
    "postgres_password": lambda: secrets.token_hex(24),
    "postgres_superuser_password": lambda: secrets.token_hex(24),
    "secret_key": lambda: secrets.token_urlsafe(48),
    "token_peppers": lambda: f"1:{secrets.token_hex(32)}",
    "encryption_keys": lambda: base64.urlsafe_b64encode(os.urandom(32)).decode(),  # a Fernet key
    "sandbox_key": lambda: f"sk-sandbox-{secrets.token_hex(24)}",
    "admin_password": lambda: secrets.token_urlsafe(12),
}


def path(data: Path, name: str) -> Path:
    """Where the secret of that name stands in a data folder."""
    return data / FOLDER / name


def ensure(data: Path, *names: str, database_exists: bool) -> None:
    """Make the named secrets that don't exist yet, a folder of mode 0700 and files of mode 0600.

    Raises:
        StartError: a secret that the existing database depends on is gone: a new one would lock everybody out.
    """
    (data / FOLDER).mkdir(mode=0o700, exist_ok=True)
    for name in names:
        target = path(data, name)
        if target.exists():
            continue
        if database_exists and name in TIED_TO_THE_DATABASE:
            raise StartError(f"{target} is missing, and the database here depends on it: put it back from a backup.")
        write_private(target, MAKERS[name]() + "\n")


def read(data: Path, name: str) -> str:
    """A secret's value.

    Raises:
        StartError: missing, or not readable by this user.
    """
    try:
        return path(data, name).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise StartError(f"{path(data, name)} can't be read: {exc.strerror}.") from exc


def write_private(target: Path, text: str) -> None:
    """Write a file of mode 0600 whole or not at all: beside it first, synced to disk, then renamed over it."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself is lost in a power cut otherwise
    finally:
        os.close(folder)

"""The real PostgreSQL and Valkey that the tests run against, in a folder of their own, gone with the tests."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from config.supervisor.postgres import EmbeddedPostgres
from config.supervisor.valkey import EmbeddedValkey

# Reads until its standard input closes, which it does when the tests end however they end, kill -9 included.
WATCHDOG = 'trap "" INT TERM; read -r _; kill -9 "$1" "$2" 2>/dev/null; shift 2; rm -rf -- "$@"'


@dataclass
class Servers:
    """Two running servers. The database role may create databases; PostgreSQL doesn't sync, Valkey does."""

    database_url: str
    redis_url: str
    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    watchdog: subprocess.Popen[bytes]

    def stop(self) -> None:
        """Stop both and delete their data."""
        self.valkey.stop(5)
        self.postgres.stop(10)
        self.watchdog.kill()
        self.watchdog.communicate()
        for folder in data_folders(self.postgres):
            shutil.rmtree(folder, ignore_errors=True)


def start_servers(folder: Path) -> Servers:
    """Start PostgreSQL and Valkey with their data in `folder` (created if need be). Takes about a second."""
    folder.mkdir(parents=True, exist_ok=True)
    postgres, valkey = EmbeddedPostgres(folder, durable=False), EmbeddedValkey(folder)
    try:
        postgres.start()
        valkey.start()
    except BaseException:
        valkey.stop(5)
        postgres.stop(10)
        raise
    assert postgres.child and valkey.child
    pids = [str(valkey.child.identity.pid), str(postgres.child.identity.pid)]
    folders = [*data_folders(postgres), postgres.socket_folder, valkey.socket_folder]
    watchdog = subprocess.Popen(
        ["/bin/sh", "-c", WATCHDOG, "watchdog", *pids, *map(str, folders)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    return Servers(postgres.url, valkey.url, postgres, valkey, watchdog)


def data_folders(postgres: EmbeddedPostgres) -> list[Path]:
    """The data folder, and PostgreSQL's own where its account can't enter that."""
    real = postgres.folder.resolve()
    return [postgres.data] if real.parent == postgres.data.resolve() else [postgres.data, real.parent]

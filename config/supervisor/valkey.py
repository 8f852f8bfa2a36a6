"""An embedded Valkey that has written each change to disk before it answers, reached by a unix socket only."""

import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

from config.supervisor import binaries, processes
from config.supervisor.errors import StartError

SOCKET_ROOT = Path("/tmp")  # noqa: S108 - a socket's path holds at most 107 bytes; the folder in it is made by mkdtemp
READY_SECONDS = 120.0  # it replays its append-only file before it answers
STOP_SECONDS = 30.0
POLL_SECONDS = 0.02

# `always`: with `everysec` Valkey may answer before write(2), and kill -9 loses what it had acknowledged.
# `noeviction`: counters and usage events must not vanish to make room.
CONFIGURATION = """\
port 0
unixsocket {socket}
unixsocketperm 700
daemonize no
dir {folder}
databases 16
appendonly yes
appendfsync always
save ""
maxmemory 0
maxmemory-policy noeviction
"""


class EmbeddedValkey:
    """Valkey in `<data>/valkey`, its log in `<data>/logs/valkey.log`.

    Args:
        data: the data folder; it exists and is writable.
        record: see `processes.Record`.
    """

    name = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, data: Path, *, record: processes.Record = lambda name, who: None) -> None:
        self.data = data.absolute()
        self.folder = self.data / "valkey"
        self.log = self.data / "logs" / "valkey.log"
        self.socket_folder: Path | None = None
        self.child: processes.Child | None = None
        self._record = record

    @property
    def url(self) -> str:
        """The URL of the server's first database."""
        return f"unix://{self.socket_folder}/valkey.sock?db=0"

    def start(self) -> None:
        """Start the server and wait until it takes commands.

        May be called again after the server has died; the socket stays where it was.

        Raises:
            StartError: with the reason and, where the server gave one, the end of its log.
        """
        self.log.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            if self.socket_folder is None:
                self.socket_folder = Path(tempfile.mkdtemp(prefix="gem-", dir=SOCKET_ROOT))
            configuration = self.folder / "valkey.conf"
            configuration.write_text(
                CONFIGURATION.format(
                    socket=quote(str(self.socket_folder / "valkey.sock")), folder=quote(str(self.folder))
                ),
                encoding="utf-8",
            )
        except OSError as exc:
            raise StartError(f"{exc.filename} can't be written: {exc.strerror}.") from exc
        self.child = processes.start(
            processes.Program(
                name=self.name,
                command=[str(binaries.valkey_server()), str(configuration)],
                environment={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
                log=self.log,
                folder=self.folder,
                stop_signal=self.stop_signal,
            ),
            self._record,
        )
        self._wait_until_ready(self.child, self.socket_folder / "valkey.sock")

    def stop(self, seconds: float = STOP_SECONDS) -> bool:
        """Stop the server and remove its socket's folder; True when it ended by itself within `seconds`."""
        ended = self.child is None or self.child.stop(seconds)
        if self.socket_folder is not None:
            shutil.rmtree(self.socket_folder, ignore_errors=True)
        self.child = self.socket_folder = None
        return ended

    def _wait_until_ready(self, child: processes.Child, address: Path) -> None:
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if child.exit_status() is not None:
                raise StartError(f"Valkey did not start; its log ends:\n{processes.last_lines(self.log)}")
            if _answers(address):
                return
            time.sleep(POLL_SECONDS)
        raise StartError(f"Valkey was not ready after {READY_SECONDS:.0f} s; see {self.log}.")


def quote(text: str) -> str:
    """Text as one word of Valkey's configuration file (`sdssplitargs` in its `sds.c`): any byte, blanks included."""
    plain = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 /._-+@:,=")
    return '"' + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in text.encode()) + '"'


def _answers(address: Path) -> bool:
    """Whether the server takes commands; while it loads its data it answers PING with an error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(address))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

"""An embedded PostgreSQL: initialised once, run as a foreground child, reached by a unix socket only."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from config.supervisor import account as accounts
from config.supervisor import binaries, identity, processes, secretfiles
from config.supervisor.account import Account
from config.supervisor.errors import StartError

MAJOR_VERSION = "18"
NEW = "postgres.new-"
SOCKET_ROOT = Path("/tmp")  # noqa: S108 - a socket's path holds at most 107 bytes; the folder in it is made by mkdtemp
READY_SECONDS = 120.0  # after a crash PostgreSQL replays its log before it answers
STOP_SECONDS = 60.0
LEFTOVER_SECONDS = 10.0
POLL_SECONDS = 0.02
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}  # ours may hold PG* variables and secrets

# As its own superuser, before the server first runs: so a database either has all of this or isn't there at all.
FIRST_STATEMENTS = """\
CREATE ROLE gateway LOGIN CREATEDB PASSWORD '{password}';
CREATE DATABASE gateway OWNER gateway;
"""


class EmbeddedPostgres:
    """PostgreSQL in `<data>/postgres`, its log in `<data>/logs/postgres.log`.

    As root it runs under an unprivileged account; where that account can't reach `<data>`, `<data>/postgres` is a
    symbolic link to a folder below `/var/lib/gem-heaven-gateway`. No folder's mode but its own is ever changed.

    Args:
        data: the data folder; it exists and is writable.
        durable: False lets a power cut lose data, for tests.
        record: see `processes.Record`.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends the connections, writes a checkpoint; SIGTERM would wait for clients

    def __init__(self, data: Path, *, durable: bool = True, record: processes.Record = lambda name, who: None) -> None:
        self.data = data.absolute()
        self.folder = self.data / "postgres"
        self.log = self.data / "logs" / "postgres.log"
        self.socket_folder: Path | None = None
        self.child: processes.Child | None = None
        self._durable = durable
        self._record = record

    @property
    def initialised(self) -> bool:
        """Whether the database exists, whole or not."""
        return self.folder.is_dir() and any(self.folder.iterdir())

    @property
    def url(self) -> str:
        """The URL of the database `gateway`, owned by a role `gateway` that is no superuser; holds its password."""
        password = secretfiles.read(self.data, "postgres_password")
        return f"postgresql://gateway:{password}@/gateway?host={self.socket_folder}"

    def start(self) -> None:
        """Initialise the database if there is none, start the server, and wait until it takes connections.

        May be called again after the server has died; the socket stays where it was.

        Raises:
            StartError: with the reason and, where the server gave one, the end of its log.
        """
        self.log.parent.mkdir(mode=0o700, exist_ok=True)
        names = ("postgres_password", "postgres_superuser_password")
        secretfiles.ensure(self.data, *names, database_exists=self.initialised)
        if not self.initialised:
            self._initialise()
        self._refuse_incomplete()
        account = accounts.for_existing_data(self.folder)
        if self.socket_folder is None:
            self.socket_folder = _make_socket_folder(account)
        self._end_leftover()
        self.child = processes.start(self._program(account), self._record)
        self._wait_until_ready(self.child)

    def stop(self, seconds: float = STOP_SECONDS) -> bool:
        """Stop the server and remove its socket's folder; True when it ended by itself within `seconds`."""
        ended = self.child is None or self.child.stop(seconds)
        if self.socket_folder is not None:
            shutil.rmtree(self.socket_folder, ignore_errors=True)
        self.child = self.socket_folder = None
        return ended

    def _program(self, account: Account | None) -> processes.Program:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_folder),
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # A role's password would otherwise stand in the log when the statement that sets it fails.
            "log_min_error_statement": "panic",
        }
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return processes.Program(
            name=self.name,
            command=[
                str(binaries.postgresql_folder(account) / "postgres"),
                "-D",
                str(self.folder.resolve()),
                *options,
            ],
            environment=ENVIRONMENT,
            log=self.log,
            folder=Path("/"),
            account=account,
            stop_signal=self.stop_signal,
        )

    def _refuse_incomplete(self) -> None:
        try:
            version = (self.folder / "PG_VERSION").read_text().strip()
            complete = (self.folder / "global" / "pg_control").exists()
        except OSError:
            version, complete = "", False
        if not complete:
            raise StartError(
                f"{self.folder} holds no complete database: put it back from a backup, or move it away to begin anew."
            )
        if version != MAJOR_VERSION:
            raise StartError(
                f"{self.folder} was made by PostgreSQL {version} and this is {MAJOR_VERSION}: "
                "back up with the earlier release and restore with this one."
            )

    def _initialise(self) -> None:
        # Made aside and renamed when complete, so that a start cut short at any moment leaves nothing half done.
        account = accounts.for_new_data()
        aside = self._folder_for_new_data(account)
        password = secretfiles.read(self.data, "postgres_superuser_password")
        password_file = aside / "superuser"
        password_file.touch(mode=0o600)
        password_file.write_text(password + "\n")
        cluster = aside / "cluster"
        if account is not None:
            os.chown(password_file, account.user, account.group)
            os.chown(aside, account.user, account.group)
        command = ["initdb", "-D", str(cluster), "--username=postgres", f"--pwfile={password_file}"]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._run(command if self._durable else [*command, "--no-sync"], account)
        statements = FIRST_STATEMENTS.format(password=secretfiles.read(self.data, "postgres_password"))
        self._run(["postgres", "--single", "-j", "-D", str(cluster), "postgres"], account, statements)
        self._put_in_place(aside, cluster)

    def _folder_for_new_data(self, account: Account | None) -> Path:
        for left in self.data.glob(f"{NEW}*"):
            _remove(left)
        # Under a name of its own: an initdb that outlived its supervisor may still be at work under another.
        aside = Path(tempfile.mkdtemp(prefix=NEW, dir=self.data))
        if account is None or account.can_enter(self.data):
            return aside
        aside.rmdir()
        return Path(tempfile.mkdtemp(prefix="data-", dir=binaries.make_shared_root()))

    def _put_in_place(self, aside: Path, cluster: Path) -> None:
        if self.folder.is_dir() and not self.folder.is_symlink():
            self.folder.rmdir()  # empty: see `initialised`
        if aside.parent == self.data:
            cluster.rename(self.folder)
            shutil.rmtree(aside)
            return
        (aside / "superuser").unlink()
        self.folder.unlink(missing_ok=True)
        self.folder.symlink_to(cluster)

    def _run(self, command: list[str], account: Account | None, statements: str = "") -> None:
        program = binaries.postgresql_folder(account) / command[0]
        try:
            process = subprocess.Popen(
                [str(program), *command[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=ENVIRONMENT,
                start_new_session=True,
                **accounts.popen_arguments(account),
            )
        except OSError as exc:
            raise StartError(f"{program} can't be run: {exc.strerror}.") from exc
        # With -j an empty line ends a statement.
        output = self._finish(process, statements.replace(";\n", ";\n\n").encode()).decode(errors="replace")
        with self.log.open("a", encoding="utf-8") as log:
            log.write(output)
        if process.returncode != 0 or "ERROR:" in output:
            raise StartError(f"The database could not be created:\n{processes.last_lines(self.log)}")

    def _finish(self, process: subprocess.Popen[bytes], text: bytes) -> bytes:
        """What a program of the initialisation prints; interrupted, it takes the programs that it started with it."""
        with process:
            try:
                self._record("initialisation", identity.of_child(process.pid))
                output, _ = process.communicate(text)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return output

    def _end_leftover(self) -> None:
        """End a server that still runs on this folder; remove its lock file when the pid in it is a stranger's now.

        Otherwise PostgreSQL refuses to start: in a restarted container the old pid soon belongs to another program.
        """
        lock = self.folder / "postmaster.pid"
        try:
            pid = int(lock.read_text().split()[0])
        except FileNotFoundError:
            return
        except (ValueError, IndexError):
            pid = 0
        leftover = identity.identify(pid) if pid > 0 and identity.program_name(pid) == "postgres" else None
        if leftover is not None:
            processes.stop_orphan(leftover, self.stop_signal, STOP_SECONDS)
        lock.unlink(missing_ok=True)

    def _wait_until_ready(self, child: processes.Child) -> None:
        # The eighth line of postmaster.pid is what `pg_ctl --wait` reads, too (src/include/utils/pidfile.h).
        lock = self.folder / "postmaster.pid"
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if child.exit_status() is not None:
                raise StartError(f"PostgreSQL did not start; its log ends:\n{processes.last_lines(self.log)}")
            try:
                lines = lock.read_text().splitlines()
            except FileNotFoundError:
                lines = []
            if len(lines) >= 8 and lines[0] == str(child.identity.pid) and lines[7].strip() == "ready":
                return
            time.sleep(POLL_SECONDS)
        raise StartError(f"PostgreSQL was not ready after {READY_SECONDS:.0f} s; see {self.log}.")


def _remove(folder: Path) -> None:
    """Remove a folder that a program may still be writing to; it ends soon when its files vanish."""
    end = time.monotonic() + LEFTOVER_SECONDS
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > end:
            raise StartError(f"{folder}, left by a start that was cut short, can't be removed.")
        time.sleep(POLL_SECONDS)


def _make_socket_folder(account: Account | None) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix="gem-", dir=SOCKET_ROOT))
        if account is not None:
            os.chown(folder, account.user, account.group)
    except OSError as exc:
        raise StartError(f"No folder for sockets could be made in {SOCKET_ROOT}: {exc.strerror}.") from exc
    return folder

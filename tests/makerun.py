"""The whole stack as `make run` starts it: started, asked, stopped in every way, and looked for afterwards."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psycopg

from config.supervisor import orphans, runfile
from config.supervisor.account import Account, popen_arguments
from tests.processes import ROOT, free_port, wait_until
from tests.watchdog import Watchdog

LAST_LINE = "Ctrl-C stops everything."

# What the test run sets for itself, or got from the `make` that started it.
NOT_PASSED_ON = (
    *("DATA", "DATABASE_URL", "REDIS_URL", "SECRET_KEY", "TOKEN_PEPPERS", "ENCRYPTION_KEYS", "PUBLIC_URL"),
    *("ALLOWED_HOSTS", "DJANGO_SETTINGS_MODULE", "MAKELEVEL", "MAKEFLAGS", "MFLAGS"),
)


def plain_environment(**more: str) -> dict[str, str]:
    """The environment of somebody who has just opened a terminal, and `more`."""
    return {**{name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}, **more}


class Stack:
    """A stack on a data folder, through `make run` or straight through the supervisor."""

    def __init__(
        self,
        data: Path,
        *,
        through_make: bool = False,
        account: Account | None = None,
        python: str = "",
        **environment: str,
    ) -> None:
        self.data, self.port = data, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data.with_name(f"{data.name}.log")
        self.process: subprocess.Popen[bytes] | None = None
        self._through_make = through_make
        self._account = popen_arguments(account)
        self._python = python or sys.executable
        self._environment = environment
        self._watchdogs: list[Watchdog] = []

    def launch(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own, as a shell does, without waiting."""
        command, where = [self._python, "-m", "config.supervisor"], {"DATA": str(self.data), "PORT": str(self.port)}
        if self._through_make:
            command, where = ["make", "run", *(f"{name}={value}" for name, value in where.items())], {}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=plain_environment(**where, **self._environment, **environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **self._account,
            )
        self._watchdogs.append(Watchdog(self.process.pid, "TERM"))
        return self.process

    def start(self, **environment: str) -> float:
        """Start it and wait until it says that it is ready; returns the seconds that took."""
        began = time.monotonic()
        process = self.launch(**environment)
        wait_until(lambda: LAST_LINE in self.text() or process.poll() is not None, 60, f"readiness ({self.log})")
        assert process.poll() is None, self.text()
        return time.monotonic() - began

    def end(self, number: int = signal.SIGTERM, group: bool = False) -> int:
        """Send a signal to what was started, or to its whole group as a terminal does; returns the exit status."""
        assert self.process is not None
        (os.killpg if group else os.kill)(self.process.pid, number)
        return self.process.wait(60)

    def dismiss_watchdogs(self) -> None:
        """Nothing of it runs any more."""
        while self._watchdogs:
            self._watchdogs.pop().dismiss()

    def text(self) -> str:
        """What it has printed since the last start."""
        return self.log.read_text(errors="replace")

    @property
    def demo(self) -> dict[str, Any]:
        """The contents of `demo.json`."""
        content: dict[str, Any] = json.loads((self.data / "demo.json").read_bytes())
        return content

    @property
    def note(self) -> runfile.RunFile:
        """The contents of `run.json`."""
        found = runfile.read(self.data)
        assert found
        return found

    def post(self, prompt: str = "a gem", token: str | None = None) -> httpx.Response:
        """One call with the demo token, unless another is given."""
        body = {"prompt": prompt, "size": "256x256"}
        headers = {"X-Proxy-Token": token or self.demo["token"]}
        return httpx.post(self.demo["endpoint"], json=body, headers=headers, timeout=30)

    def works(self) -> bool:
        """Whether a call is answered with images."""
        try:
            return self.post().status_code == 200
        except httpx.TransportError:
            return False

    def in_flight(self) -> float:
        """The calls that web processes are answering."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("gateway_in_flight "))

    def kinds(self) -> dict[str, str]:
        """The ledger's primary rows: their kind by request id."""
        with psycopg.connect(self.note.environment["DATABASE_URL"]) as connection:
            rows = connection.execute("SELECT request_id, kind FROM usage_record WHERE kind <> 'correction'").fetchall()
        return {str(request_id): kind for request_id, kind in rows}

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `manage.py` as a person does: nothing but `DATA` tells it where the stack is."""
        return manage(self.data, *arguments)

    def left(self) -> dict[int, str]:
        """The processes that have to do with the data folder: their command lines by pid."""
        name, found = os.fsencode(self.data), {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes()
                traces = [command, (process / "environ").read_bytes(), os.fsencode((process / "cwd").readlink())]
                if any(name in trace for trace in traces):
                    found[int(process.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        return found

    def clear_away(self) -> None:
        """Stop whatever runs, however broken, and fail the test if something goes on running."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.end()
            if self.process.poll() is None:
                self.end(signal.SIGKILL, group=True)
        note = runfile.read(self.data)
        if note is not None:
            orphans.stop_all(note, 0, print)
        assert self.left() == {}


def manage(data: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `manage.py` on a data folder."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=plain_environment(DATA=str(data), **environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextlib.contextmanager
def stack(name: str = "data", **options: Any) -> Iterator[Stack]:
    """A stack that isn't started yet, on a new folder that every account can enter; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-make-run-"))
    folder.chmod(0o755)
    data = folder / name
    data.parent.mkdir(parents=True, exist_ok=True)
    made = Stack(data, **options)
    try:
        yield made
    finally:
        try:
            made.clear_away()
        finally:
            made.dismiss_watchdogs()
            shutil.rmtree(folder, ignore_errors=True)


def workers(web: int) -> Mapping[int, int]:
    """The worker processes of a web server: how many sockets each has open, by pid."""
    children = Path(f"/proc/{web}/task/{web}/children").read_text().split()
    return {int(pid): sum(1 for fd in Path(f"/proc/{pid}/fd").iterdir() if _is_socket(fd)) for pid in children}


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except OSError:
        return False

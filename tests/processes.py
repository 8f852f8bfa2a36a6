"""Real processes for black-box tests: sandbox provider, web server, Celery worker. All die with the test."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from config.supervisor.programs import HEADER_MILLISECONDS
from tests.watchdog import Watchdog

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float = 20, what: str = "the condition") -> None:
    """Return when `condition` is true; fail the test after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come true within {seconds} s"
        time.sleep(0.02)


def answers(url: str) -> bool:
    """Whether `url` is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


class Process:
    """A child in a group of its own, its output in a file."""

    def __init__(self, name: str, command: list[str], folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, folder / f"{name}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as output:
            self.child = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.watchdog = Watchdog(-self.child.pid)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Send a signal and wait; whatever is left of the group is killed."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.watchdog.dismiss()
        return self.child.wait(5)

    def children(self) -> list[int]:
        """The pids of its living children, such as a web server's workers."""
        path = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def text(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")


@contextlib.contextmanager
def sandbox(folder: Path, key: str = "sandbox-key-of-the-tests") -> Iterator[str]:
    """A sandbox provider; yields its URL. Its account is `folder`/generations.jsonl."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = Process(
        "sandbox",
        [sys.executable, "-m", "sandbox", "--host", "127.0.0.1", "--port", str(port)],
        folder,
        SANDBOX_DATA=str(folder),
        SANDBOX_PUBLIC_URL=url,
        SANDBOX_KEY=key,
    )
    try:
        wait_until(lambda: "ready" in process.text(), what="the sandbox's readiness")
        yield url
    finally:
        process.stop(seconds=6)


@contextlib.contextmanager
def web(
    folder: Path,
    workers: int = 1,
    ready: bool = True,
    application: str = "config.asgi:application",
    **environment: str,
) -> Iterator[tuple[str, Process]]:
    """The web server; yields its URL and its process. Waits until it can admit unless `ready` is false.

    `application` names another ASGI entry, such as a broken one that a test must catch.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    defaults = {"PUBLIC_URL": url, "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")}
    environment = {**defaults, "GRANIAN_HTTP1_HEADER_READ_TIMEOUT": str(HEADER_MILLISECONDS), **environment}
    command = [
        str(Path(sys.executable).parent / "granian"),
        *("--interface", "asgi", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)),
        *("--http", "1", "--loop", "uvloop", "--no-ws"),
        *("--respawn-failed-workers", "--backlog", "8192", "--backpressure", "8192"),
        *("--workers-kill-timeout", "10"),  # a worker that was told to stop while it started has not heard it
        application,
    ]
    process = Process("web", command, folder, **environment)
    try:
        if ready:
            wait_until(
                lambda: process.text().count("Started worker-") >= workers and answers(f"{url}/readyz"),
                what=f"the web server's readiness ({process.log})",
            )
        yield url, process
    finally:
        process.stop()


@contextlib.contextmanager
def worker(folder: Path, **environment: str) -> Iterator[Process]:
    """A Celery worker with beat."""
    command = [
        *(sys.executable, "-m", "celery", "-A", "config", "worker", "-B", "--concurrency", "2", "--loglevel", "INFO"),
        *("--schedule", str(folder / f"beat-{time.monotonic_ns()}"), "--without-gossip", "--without-mingle"),
    ]
    process = Process("worker", command, folder, **environment)
    try:
        wait_until(lambda: " ready." in process.text(), what=f"the worker's readiness ({process.log})")
        yield process
    finally:
        process.stop()

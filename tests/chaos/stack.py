"""The real stack in many processes, kept running as a supervisor would, with a proxy on each way between them."""

import contextlib
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from config.supervisor.errors import StartError
from config.supervisor.identity import kill_rest_of_session
from config.supervisor.postgres import EmbeddedPostgres
from config.supervisor.processes import Child
from config.supervisor.valkey import EmbeddedValkey
from tests.chaos import environment
from tests.chaos.proxy import Link, Proxy
from tests.processes import Process, answers, free_port, wait_until
from tests.watchdog import Watchdog

FOLDER = environment.FOLDER
PAUSE = 0.2  # seconds before something that ended is started again


class Service(Protocol):
    """A part of the stack."""

    name: str
    kind: str

    def start(self) -> None:
        """Start it; may be called again once it has ended."""

    def pid(self) -> int:
        """Its main process; 0 when there is none."""

    def ended(self) -> bool:
        """Whether its main process has."""

    def stop(self) -> None:
        """End it and what it left."""


class Program:
    """Web server, worker, scheduler or sandbox."""

    def __init__(self, kind: str, name: str, command: list[str], variables: dict[str, str]) -> None:
        self.kind, self.name = kind, name
        self._command, self._variables = command, variables
        self.process: Process | None = None
        self.starts = 0

    def start(self) -> None:
        if self.process is not None:
            self.process.stop(signal.SIGKILL, 1)  # what it left, as the supervisor does
        self.process = Process(self.name, self._command, FOLDER / "logs", **self._variables)
        self.starts += 1

    def pid(self) -> int:
        return self.process.child.pid if self.process and not self.ended() else 0

    def children(self) -> list[int]:
        """Its worker processes."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return self.process.children() if self.process else []
        return []

    def ended(self) -> bool:
        return self.process is None or self.process.child.poll() is not None

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop(signal.SIGKILL, 5)


class Embedded:
    """PostgreSQL or Valkey."""

    def __init__(self, kind: str, server: EmbeddedPostgres | EmbeddedValkey) -> None:
        self.kind = self.name = kind
        self._server = server
        self._watchdog = Watchdog(self.pid())

    @property
    def _child(self) -> Child:
        assert self._server.child
        return self._server.child

    def start(self) -> None:
        kill_rest_of_session(self._child.identity)
        self._watchdog.dismiss()
        self._server.start()
        self._watchdog = Watchdog(self.pid())

    def pid(self) -> int:
        return self._child.identity.pid

    def children(self) -> list[int]:
        """PostgreSQL's own processes."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            text = Path(f"/proc/{self.pid()}/task/{self.pid()}/children").read_text()
            return [int(pid) for pid in text.split()]
        return []

    def ended(self) -> bool:
        return self._child.exit_status() is not None

    def stop(self) -> None:
        self._watchdog.dismiss()  # the environment stops it, when the process ends


class Stack:
    """Two web servers of two processes each, two workers, a scheduler, Valkey, PostgreSQL and the sandbox.

    Unless other numbers are asked for; `web` are further variables of the web servers.
    """

    def __init__(self, servers: int = 2, workers: int = 2, processes: int = 2, **web: str) -> None:
        self.proxy = Proxy()
        self.links = {link.name: self.proxy.add(link) for link in _links()}
        self.urls: list[str] = []
        self.services: list[Program | Embedded] = [
            Embedded("postgres", environment.postgres),
            Embedded("valkey", environment.valkey),
            _sandbox(self.sandbox_port),
        ]
        for number in range(servers):
            port = free_port()
            self.urls.append(f"http://127.0.0.1:{port}")
            self.services.append(_web(f"web-{number}", port, processes, web))
        self.services += [_worker(f"worker-{number}") for number in range(workers)]
        self.services.append(_beat())
        self.kept_down: set[str] = set()  # kinds that are not started again for now
        self._stopping = threading.Event()
        self._keepers: list[threading.Thread] = []

    @property
    def sandbox_port(self) -> int:
        target = self.links["web-provider"].target
        assert isinstance(target, int)
        return target

    @property
    def provider_url(self) -> str:
        """Where the gateway reaches the sandbox: through its link."""
        return f"http://127.0.0.1:{self.links['web-provider'].listen}"

    def of_kind(self, kind: str) -> list[Program | Embedded]:
        return [service for service in self.services if service.kind == kind]

    def start(self) -> None:
        """Start all, wait until calls are admitted, and keep everything running from now on."""
        for service in self.services[2:]:
            service.start()
        self.wait_until_ready()
        for service in self.services:
            keeper = threading.Thread(target=self._keep, args=(service,), daemon=True)
            keeper.start()
            self._keepers.append(keeper)

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Every part runs and the web servers admit."""
        wait_until(lambda: not any(service.ended() for service in self.services), seconds, "all processes")
        self.wait_until_admitting(seconds)
        for service in self.of_kind("worker"):
            wait_until(partial(_has_pool, service), seconds, f"the pool of {service.name}")

    def wait_until_admitting(self, seconds: float) -> None:
        """The web servers admit, and the sandbox listens."""
        for service, url in zip(self.of_kind("web"), self.urls, strict=True):
            wait_until(partial(answers, f"{url}/readyz"), seconds, f"readiness of {service.name}")
        wait_until(lambda: _listens(self.sandbox_port), seconds, "the sandbox")

    def close(self) -> None:
        """End everything but the two servers of the environment."""
        self._stopping.set()
        for keeper in self._keepers:
            keeper.join(30)
        stopping = [threading.Thread(target=service.stop) for service in self.services]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join(30)
        self.proxy.close()

    def _keep(self, service: Service) -> None:
        while not self._stopping.wait(0.05):
            if service.ended() and service.kind not in self.kept_down and not self._stopping.wait(PAUSE):
                with contextlib.suppress(StartError):  # PostgreSQL, while a process of the killed one still lives
                    service.start()

    def frozen(self, victims: list[int], seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so many seconds."""
        signal_all(victims, signal.SIGSTOP)
        try:
            self._stopping.wait(seconds)
        finally:
            signal_all(victims, signal.SIGCONT)

    def worker_processes(self, kind: str, chance: random.Random) -> list[int]:
        """One living worker process of a service of that kind; empty when there is none just now."""
        found = [pid for service in self.of_kind(kind) for pid in service.children()]
        return [chance.choice(found)] if found else []


def signal_all(victims: list[int], number: int) -> None:
    """Signal processes, those that have gone excepted."""
    for pid in filter(None, victims):  # 0 stands for one that has gone, and would be our own group
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _links() -> list[Link]:
    folder = FOLDER / "links"
    assert environment.valkey.socket_folder and environment.postgres.socket_folder
    store = environment.valkey.socket_folder / "valkey.sock"
    books = environment.postgres.socket_folder / ".s.PGSQL.5432"
    links = [Link("web-provider", free_port(), free_port())]
    for side in ("web", "worker"):
        (folder / side).mkdir(parents=True)
        links.append(Link(f"{side}-store", folder / side / "store.sock", store))
        links.append(Link(f"{side}-books", folder / side / ".s.PGSQL.5432", books))
    return links


def _variables(side: str) -> dict[str, str]:
    """What makes a program reach both servers through its own links."""
    folder = FOLDER / "links" / side
    assert environment.postgres.socket_folder
    direct = str(environment.postgres.socket_folder)
    return {
        "REDIS_URL": f"unix://{folder}/store.sock?db=0",
        "DATABASE_URL": environment.postgres.url.replace(direct, str(folder)),
    }


def _web(name: str, port: int, processes: int, more: dict[str, str]) -> Program:
    command = [str(Path(sys.executable).parent / "granian"), "--interface", "asgi", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", str(processes), "--loop", "uvloop", "--no-ws"]
    command += ["--respawn-failed-workers", "--respawn-interval", "0.2", "--workers-kill-timeout", "10"]
    command += ["--http1-header-read-timeout", "10000", "tests.controls.crashing:application"]
    variables = {"PUBLIC_URL": f"http://127.0.0.1:{port}", "PROMETHEUS_MULTIPROC_DIR": str(FOLDER / name)}
    return Program("web", name, command, {**_variables("web"), **variables, **more})


def _worker(name: str) -> Program:
    command = [sys.executable, "-m", "celery", "-A", "tests.controls.crashing_worker", "worker", "--concurrency", "2"]
    command += ["--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--hostname", f"{name}@%h"]
    return Program("worker", name, command, _variables("worker"))


def _beat() -> Program:
    command = [sys.executable, "-m", "celery", "-A", "config", "beat", "--loglevel", "WARNING", "--pidfile", ""]
    return Program("beat", "beat", [*command, "--schedule", str(FOLDER / "schedule")], _variables("worker"))


def _sandbox(port: int) -> Program:
    command = [sys.executable, "-m", "sandbox", "--host", "127.0.0.1", "--port", str(port)]
    variables = {"SANDBOX_DATA": str(FOLDER / "sandbox"), "SANDBOX_KEY": environment.SANDBOX_KEY}
    return Program("sandbox", "sandbox", command, {**variables, "SANDBOX_PUBLIC_URL": f"http://127.0.0.1:{port}"})


def _has_pool(service: "Program | Embedded") -> bool:
    return len(service.children()) >= 2


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether `condition` comes true within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True

"""Everything that a benchmark needs running, in a temporary folder: stores, provider, and the web servers it asks for.

What is measured runs on a core of its own, with the very options of ``make run``; everything else runs on the core of
the benchmark itself.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import cores, nginx
from config.supervisor import datafolder, processes, programs, secretfiles, variables
from config.supervisor.__main__ import raise_file_limit
from config.supervisor.errors import StartError
from config.supervisor.identity import Identity
from config.supervisor.postgres import EmbeddedPostgres
from config.supervisor.processes import Program
from config.supervisor.stack import SECRETS, free_port, why_not_listening, why_not_ready
from config.supervisor.valkey import EmbeddedValkey

READY_SECONDS = 60.0
STOP_SECONDS = 5.0
BOOKS_SECONDS = 600.0
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")
GENERATE = "/wp-json/my-proxy/v1/generate-image"

# Notes the pids of our children, a line each, until the benchmark ends, however it ends; then kills their sessions.
WATCHDOG = 'trap "" INT TERM; pids=; while read -r pid; do pids="$pids -$pid"; done; kill -9 $pids 2>/dev/null'


class _Children:
    """The programs that were started, and the shell that outlives us to end them."""

    def __init__(self) -> None:
        self.started: list[processes.Child] = []
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG], stdin=subprocess.PIPE, start_new_session=True, text=True
        )

    def record(self, _name: str, child: Identity) -> None:
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(f"{child.pid}\n")
        self._watchdog.stdin.flush()

    def run(self, program: Program, why_not: Callable[[], str], core: int | None = None) -> int:
        """Start a program, on a core of its own if one is given; returns its pid once `why_not` is empty."""

        def record(name: str, child: Identity) -> None:
            self.record(name, child)
            if core is not None:
                cores.pin(child.pid, core)

        child = processes.start(program, record)
        self.started.append(child)
        end = time.monotonic() + READY_SECONDS
        while reason := why_not():
            if child.exit_status() is not None or time.monotonic() > end:
                raise StartError(f"{program.name} did not start ({reason}):\n{processes.last_lines(program.log)}")
            time.sleep(0.05)
        return child.identity.pid

    def stop(self) -> None:
        for child in reversed(self.started):
            child.stop(STOP_SECONDS)

    def dismiss_watchdog(self) -> None:
        self._watchdog.kill()
        self._watchdog.communicate()


@dataclass(frozen=True, slots=True)
class Server:
    """A web server: where to send requests, and the leader of its session."""

    url: str
    pid: int


@dataclass(slots=True)
class Bench:
    """Stores and provider, which run; the web servers start when they are asked for.

    `valkey` leads the admission store's session; `environment` is what `manage.py` would need, and the provider.
    """

    data: Path
    environment: dict[str, str]
    provider_url: str
    valkey: int
    server_core: int
    _children: _Children
    _port: int = field(default=0)

    @property
    def direct_url(self) -> str:
        """The provider itself."""
        return f"{self.provider_url}/images/generations"

    def start(self, name: str, command: Sequence[str], port: int, environment: Mapping[str, str]) -> int:
        """Start a server that is to be measured; returns the leader of its session once it listens."""
        log = self.data / "logs" / f"{name}.log"
        program = Program(name, command, environment, log, self.data)
        return self._children.run(program, lambda: why_not_listening(port), self.server_core)

    def passthrough(self) -> Server:
        """The bare pass-through."""
        port = free_port()
        bare = programs.web(self.data, {**self.environment, "BENCH_UPSTREAM": self.direct_url}, port)
        command = [*bare.command[:-1], "bench.passthrough:application"]
        bare = replace(bare, name="passthrough", command=command, log=self.data / "logs" / "passthrough.log")
        pid = self._children.run(bare, lambda: why_not_listening(port), self.server_core)
        return Server(f"http://127.0.0.1:{port}/", pid)

    def nginx(self) -> Server | None:
        """nginx's `proxy_pass`; None where nginx isn't installed."""
        program = nginx.find()
        if program is None:
            return None
        port = free_port()
        command = nginx.command(program, self.data, port, self.direct_url)
        return Server(f"http://127.0.0.1:{port}/", self.start("nginx", command, port, self.environment))

    def gateway(self) -> Server:
        """The gateway, with one worker."""
        web = programs.web(self.data, self.environment, self._port)
        pid = self._children.run(web, lambda: why_not_ready(self._port), self.server_core)
        return Server(f"http://127.0.0.1:{self._port}{GENERATE}", pid)

    def books(self, *words: str) -> str:
        """Run ``bench.books``; what it printed. Raises StartError."""
        done = subprocess.run(
            [sys.executable, "-m", "bench.books", *words],
            cwd=programs.ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=BOOKS_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise StartError(f"bench.books {words[0]} failed:\n{done.stderr[-2000:]}")
        return done.stdout.strip()


@contextlib.contextmanager
def running(server_core: int, provider: Sequence[str] = (), *, durable: bool = False) -> Iterator[Bench]:
    """Start stores and provider (with these options); all of it is gone afterwards. Raises StartError.

    `durable`: PostgreSQL writes each commit to disk before it answers, as in production; nothing of the request path
    is in PostgreSQL.
    """
    raise_file_limit()
    data = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    children = _Children()
    postgres = EmbeddedPostgres(data, durable=durable, record=children.record)
    valkey = EmbeddedValkey(data, record=children.record)
    try:
        datafolder.prepare(data)
        secretfiles.ensure(data, *SECRETS, database_exists=False)
        for name in ("logs", "metrics", "static"):
            (data / name).mkdir(mode=0o700)
        postgres.start()
        valkey.start()
        yield _prepared(data, children, postgres, valkey, server_core, provider)
    finally:
        children.stop()
        valkey.stop(STOP_SECONDS)
        folder = postgres.folder.resolve()
        postgres.stop(STOP_SECONDS)
        children.dismiss_watchdog()
        if folder.parent != data.resolve():  # PostgreSQL's account couldn't enter ours
            shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)


def _prepared(
    data: Path,
    children: _Children,
    postgres: EmbeddedPostgres,
    valkey: EmbeddedValkey,
    server_core: int,
    provider: Sequence[str],
) -> Bench:
    provider_port, port = free_port(), free_port()
    provider_url = f"http://127.0.0.1:{provider_port}/v1"
    environment = {
        **{name: os.environ[name] for name in INHERITED if name in os.environ},
        **variables.for_run_file(data, port, {"DATABASE_URL": postgres.url, "REDIS_URL": valkey.url}),
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PYTHONUNBUFFERED": "1",
        "PROVIDER_BASE_URL": provider_url,
        "PROVIDER_API_KEY": "key-of-the-instant-provider",
        "PROVIDER_MODEL": "instant-1",
        "STORE_TIMEOUT": "10",  # on a machine that is busy with something else a 503 would end the measurement
    }
    log = data / "logs" / "provider.log"
    command = [sys.executable, "-m", "bench.provider", str(provider_port), *provider]
    children.run(
        Program("provider", command, environment, log, programs.ROOT), lambda: why_not_listening(provider_port)
    )
    assert valkey.child is not None
    bench = Bench(data, environment, provider_url, valkey.child.identity.pid, server_core, children, port)
    bench.books("prepare")
    return bench

"""Everything that a benchmark needs running, in a temporary folder: stores, provider, pass-through and gateway.

The two web servers run on a core of their own, with the very options of ``make run``; everything else runs on the
core of the benchmark itself.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bench import cores
from config.supervisor import datafolder, processes, programs, secretfiles, variables
from config.supervisor.errors import StartError
from config.supervisor.identity import Identity
from config.supervisor.postgres import EmbeddedPostgres
from config.supervisor.processes import Program
from config.supervisor.stack import SECRETS, free_port, why_not_listening, why_not_ready
from config.supervisor.valkey import EmbeddedValkey

READY_SECONDS = 60.0
STOP_SECONDS = 5.0
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")

# Notes the pids of our children, a line each, until the benchmark ends, however it ends; then kills their sessions.
WATCHDOG = 'trap "" INT TERM; pids=; while read -r pid; do pids="$pids -$pid"; done; kill -9 $pids 2>/dev/null'


@dataclass(frozen=True, slots=True)
class Running:
    """What runs: URLs to send requests to, the token for the gateway, and the leaders of the sessions to measure."""

    direct_url: str
    passthrough_url: str
    gateway_url: str
    token: str
    passthrough: int
    gateway: int
    valkey: int
    count_books: Callable[[], str]


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


@contextlib.contextmanager
def running(server_core: int) -> Iterator[Running]:
    """Start everything, the web servers on `server_core`; all of it is gone afterwards. Raises StartError."""
    data = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    children = _Children()
    postgres = EmbeddedPostgres(data, durable=False, record=children.record)
    valkey = EmbeddedValkey(data, record=children.record)
    try:
        datafolder.prepare(data)
        secretfiles.ensure(data, *SECRETS, database_exists=False)
        for name in ("logs", "metrics", "static"):
            (data / name).mkdir(mode=0o700)
        postgres.start()
        valkey.start()
        yield _start_programs(data, children, postgres, valkey, server_core)
    finally:
        children.stop()
        valkey.stop(STOP_SECONDS)
        folder = postgres.folder.resolve()
        postgres.stop(STOP_SECONDS)
        children.dismiss_watchdog()
        if folder.parent != data.resolve():  # PostgreSQL's account couldn't enter ours
            shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)


def _start_programs(
    data: Path, children: _Children, postgres: EmbeddedPostgres, valkey: EmbeddedValkey, server_core: int
) -> Running:
    provider_port, bare_port, port = free_port(), free_port(), free_port()
    provider_url = f"http://127.0.0.1:{provider_port}/v1"
    direct_url = f"{provider_url}/images/generations"
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
    command = [sys.executable, "-m", "bench.provider", str(provider_port)]
    provider = Program("provider", command, environment, log, programs.ROOT)
    children.run(provider, lambda: why_not_listening(provider_port))
    token = _books(environment, "prepare")
    gateway = programs.web(data, environment, port)
    bare = programs.web(data, {**environment, "BENCH_UPSTREAM": direct_url}, bare_port)
    bare = replace(
        bare,
        name="passthrough",
        command=[*bare.command[:-1], "bench.passthrough:application"],
        log=data / "logs" / "passthrough.log",
    )
    assert valkey.child is not None
    return Running(
        direct_url=direct_url,
        passthrough_url=f"http://127.0.0.1:{bare_port}/",
        gateway_url=f"http://127.0.0.1:{port}/wp-json/my-proxy/v1/generate-image",
        token=token,
        passthrough=children.run(bare, lambda: why_not_listening(bare_port), server_core),
        gateway=children.run(gateway, lambda: why_not_ready(port), server_core),
        valkey=valkey.child.identity.pid,
        count_books=lambda: _books(environment, "count"),
    )


def _books(environment: dict[str, str], verb: str) -> str:
    """Run bench.books; what it printed. Raises StartError."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.books", verb],
        cwd=programs.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise StartError(f"bench.books {verb} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip()

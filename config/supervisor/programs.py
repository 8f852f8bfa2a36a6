"""The gateway's own programs, as the supervisor runs them."""

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from config.supervisor import secretfiles
from config.supervisor.errors import StartError
from config.supervisor.processes import Program

ROOT = Path(__file__).resolve().parent.parent.parent

# Granian counts idle connections against this, too, and answers nobody beyond it.
CONNECTIONS_PER_WORKER = 8192
HEADER_MILLISECONDS = 10_000  # for a request's headers to arrive; a connection that half-sent them can't hold up a stop
KILL_MARGIN = 20.0  # seconds
LISTEN_BACKLOG = 4096  # what Linux allows by default (net.core.somaxconn)


def web(data: Path, environment: Mapping[str, str], port: int) -> Program:
    """The web server: granian with `WEB_WORKERS` processes (default 1)."""
    options = ["--interface", "asgi", "--host", "127.0.0.1", "--port", str(port)]
    options += ["--http", "1", "--loop", "uvloop", "--no-ws"]
    options += ["--workers", os.environ.get("WEB_WORKERS") or "1"]
    # A worker killed with -9 would otherwise end the server.
    options += ["--respawn-failed-workers", "--respawn-interval", "0.2"]
    options += ["--backlog", str(LISTEN_BACKLOG), "--backpressure", str(CONNECTIONS_PER_WORKER)]
    # A worker that doesn't stop is killed, later than any call in flight may end.
    options += ["--workers-kill-timeout", str(math.ceil(drain_seconds(environment) + KILL_MARGIN))]
    options += ["--http1-header-read-timeout", str(HEADER_MILLISECONDS)]
    options += ["--static-path-route", "/static", "--static-path-mount", str(data / "static")]
    return _python("web", data, environment, "-m", "granian", *options, "config.asgi:application")


def drain_seconds(environment: Mapping[str, str]) -> float:
    """How long a stopping web process waits for its calls in flight, as the settings have it from these variables.

    Raises StartError when `DRAIN_SECONDS` or `UPSTREAM_DEADLINE` is no number.
    """
    for name, more in (("DRAIN_SECONDS", 0.0), ("UPSTREAM_DEADLINE", 10.0)):
        text = environment.get(name)
        if text:
            try:
                return float(text) + more
            except ValueError as exc:
                raise StartError(f"{name} must be a number, not {text!r}.") from exc
    return 310.0


def worker(data: Path, environment: Mapping[str, str], port: int) -> Program:
    """One Celery worker, with the scheduler inside; its health is on `port` unless `WORKER_PORT` names another."""
    # Of three processes one may be making an export for minutes, and one be at another long task.
    options = ["--beat", "--schedule", str(data / "celerybeat-schedule"), "--loglevel", "INFO", "--concurrency", "3"]
    options += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    environment = {**environment, "WORKER_PORT": environment.get("WORKER_PORT") or str(port)}
    return _python("worker", data, environment, "-m", "celery", "-A", "config", "worker", *options)


def sandbox(data: Path, environment: Mapping[str, str], port: int) -> Program:
    """The provider that runs on this machine. It gets none of the gateway's settings."""
    kept = {name: environment[name] for name in ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH") if name in environment}
    own = {
        "SANDBOX_DATA": str(data / "sandbox"),
        "SANDBOX_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "SANDBOX_KEY": secretfiles.read(data, "sandbox_key"),
        "PYTHONUNBUFFERED": "1",
    }
    return _python("sandbox", data, {**kept, **own}, "-m", "sandbox", "--host", "127.0.0.1", "--port", str(port))


def preparation(data: Path, sandbox_url: str) -> list[str]:
    """The command that brings the database up to date.

    With a sandbox's URL it makes the demo tenant, too, and prints its details as JSON; an empty URL leaves it out.
    """
    command = [sys.executable, "-m", "config.supervisor.prepare"]
    if not sandbox_url:
        return command
    command += ["--sandbox-url", sandbox_url]
    command += ["--sandbox-key-file", str(secretfiles.path(data, "sandbox_key"))]
    command += ["--admin-password-file", str(secretfiles.path(data, "admin_password"))]
    token = secretfiles.path(data, "demo_token")
    return [*command, "--token-file", str(token)] if token.exists() else command


def _python(name: str, data: Path, environment: Mapping[str, str], *arguments: str) -> Program:
    return Program(
        name=name,
        command=[sys.executable, *arguments],
        environment=environment,
        log=data / "logs" / f"{name}.log",
        folder=ROOT,
    )

"""Whether a Celery worker is alive, and whether it does its work: over HTTP, for health checks.

The pool's processes tell when they finish a task through memory that they share with the main process, which answers
``GET /healthz`` and ``GET /readyz`` on `WORKER_HOST`:`WORKER_PORT`. Apps add what they ask besides with `part`.
"""

import json
import logging
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import redis
from django.conf import settings
from django.db import connection
from redis.backoff import NoBackoff
from redis.retry import Retry

logger = logging.getLogger(__name__)

READ_SECONDS = 2.0  # for a request to arrive
CONNECT_SECONDS = 2  # for PostgreSQL to answer
MOST_THREADS = 32  # of the process: a connection beyond is closed unanswered

Check = Callable[[], str]
_parts: dict[str, Check] = {}


class Pulse:
    """When this worker last finished any task, and when a periodic one, by the machine's monotonic clock.

    Make it in the main process before the pool's processes are forked: they share its memory.
    """

    ANY, PERIODIC = 0, 8  # bytes from the start

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)
        self.beat(periodic=True)  # a worker that has just begun isn't late

    def beat(self, periodic: bool) -> None:
        """A task has finished; `periodic` says that it is one of the schedule."""
        now = time.monotonic()
        struct.pack_into("d", self._memory, self.ANY, now)
        if periodic:
            struct.pack_into("d", self._memory, self.PERIODIC, now)

    def last(self, periodic: bool) -> float:
        """When a task, or a periodic one, last finished: seconds of ``time.monotonic``."""
        return float(struct.unpack_from("d", self._memory, self.PERIODIC if periodic else self.ANY)[0])


def part(name: str) -> Callable[[Check], Check]:
    """Let readiness ask a function, too: it says what is wrong with the part `name`, and "" if nothing is.

    It may raise redis.RedisError, which the part ``store`` reports.
    """

    def register(check: Check) -> Check:
        _parts[name] = check
        return check

    return register


def problems(pulse: Pulse) -> dict[str, str]:
    """What keeps this worker from doing its work, by part; empty when it is ready. Blocks for a few seconds."""
    found = {}
    idle = time.monotonic() - pulse.last(periodic=True)
    if idle > settings.WORKER_STUCK_SECONDS:
        found["tasks"] = f"no periodic task has finished here for {idle:.0f} s"
    try:
        _ping_store()  # first, so that a store out of reach is told of soon
        found |= {name: problem for name, check in _parts.items() if (problem := check())}
    except redis.RedisError as exc:
        found["store"] = f"out of reach ({type(exc).__name__})"
    if problem := _database_problem():
        found["database"] = problem
    return found


def _ping_store() -> None:
    client = redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
    )
    with client:
        client.ping()


def _database_problem() -> str:
    try:
        parameters = {**connection.get_connection_params(), "connect_timeout": CONNECT_SECONDS}
        connection.get_new_connection(parameters).close()
    except psycopg.Error as exc:
        return f"out of reach ({type(exc).__name__})"
    return ""


def serve(pulse: Pulse) -> None:
    """Answer health checks in threads of their own from now on; without `WORKER_PORT` do nothing.

    A port that is taken is logged and does no further harm: the books matter more than the health check.
    """
    if not settings.WORKER_PORT:
        return
    try:
        server = _Server((settings.WORKER_HOST, settings.WORKER_PORT), pulse)
    except OSError as exc:
        logger.error("Health checks can't be answered on port %d: %s", settings.WORKER_PORT, exc.strerror or exc)
        return
    # A process of the pool that outlived the main one would otherwise keep the port from its successor.
    os.register_at_fork(after_in_child=server.socket.close)
    logger.info("Health checks are answered on port %d of %s", settings.WORKER_PORT, settings.WORKER_HOST)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], pulse: Pulse) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.pulse = pulse
        super().__init__(address, _Answer)

    def process_request(self, request: Any, client_address: Any) -> None:
        if threading.active_count() > MOST_THREADS:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("A health check broke off", exc_info=True)


class _Answer(BaseHTTPRequestHandler):
    timeout = READ_SECONDS
    server: _Server

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self._answer(200, {"status": "ok"})
        elif self.path == "/readyz":
            found = problems(self.server.pulse)
            body = {"status": "not ready" if found else "ready", "problems": found}
            self._answer(503 if found else 200, body)
        else:
            self._answer(404, {"status": "not found"})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line for each health check would bury everything else."""

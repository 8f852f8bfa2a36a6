"""A Celery worker says how it is, outlives its broker, and doesn't stay stuck."""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery
from django.conf import settings
from django.db import connection

from config import workerhealth
from config.redis import parse_address, store
from config.supervisor import programs
from config.supervisor.identity import Identity, identify
from config.supervisor.service import Plain, Service
from tests import processes
from tests.bookkeeping import Customer
from tests.ownvalkey import OwnValkey, own_valkey
from tests.processes import wait_until
from tests.watchdog import Watchdog
from tokens.admission import keys

STUCK = os.EX_SOFTWARE


def readyz(port: int) -> dict[str, str]:
    """The problems that a worker names."""
    status, problems = health(port, "/readyz")
    assert status == (503 if problems else 200)
    return problems


def health(port: int, path: str) -> tuple[int, dict[str, str]]:
    """Status and problems of a health check."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, json.load(answer).get("problems", {})
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.load(refusal).get("problems", {})


def seconds_idle(port: int) -> int:
    """For how long a worker has finished no periodic task, as it says; 0 when it doesn't complain."""
    return int((re.findall(r" ([0-9]+) s$", readyz(port).get("tasks", "")) or ["0"])[0])


class Worker(processes.Process):
    """A worker with its health on a port; `database` of the broker is its own, and so is its schedule."""

    def __init__(
        self,
        folder: Path,
        broker: OwnValkey,
        database: int = 0,
        *,
        stuck_seconds: float = 2,
        application: str = "config",
        scheduler: bool = True,
    ) -> None:
        self.port = processes.free_port()
        command = [sys.executable, "-m", "celery", "-A", application, "worker", "--concurrency", "2"]
        command += ["--without-gossip", "--without-mingle", "--loglevel", "INFO", "--hostname", f"w{self.port}@test"]
        command += ["--beat", "--schedule", str(folder / f"beat-{self.port}")] if scheduler else []
        super().__init__(
            "worker",
            command,
            folder,
            CELERY_BROKER_URL=parse_address(broker.url).celery_url(database),
            WORKER_PORT=str(self.port),
            WORKER_STUCK_SECONDS=str(stuck_seconds),
            LAG_LIMIT_SECONDS="0.3",
        )

    def wait(self) -> None:
        """Until it takes tasks."""
        wait_until(lambda: " ready." in self.text(), 30, f"the worker ({self.log})")


@pytest.fixture
def valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnValkey]:
    """A store of our own: no worker of another test drains it."""
    with own_valkey(monkeypatch) as server:
        yield server


@pytest.fixture
def broker() -> Iterator[OwnValkey]:
    """A server that is nothing but a broker."""
    with tempfile.TemporaryDirectory(prefix="gateway-broker-") as folder:
        server = OwnValkey(Path(folder))
        server.start()
        yield server
        server.stop(5)


@pytest.fixture
def start(tmp_path: Path, valkey: OwnValkey, broker: OwnValkey) -> Iterator[Callable[..., Worker]]:
    """Starts workers of that broker; all end with the test."""
    workers: list[Worker] = []

    def start_one(*args: int, **kwargs: object) -> Worker:
        workers.append(Worker(tmp_path, broker, *args, **kwargs))  # type: ignore[arg-type]
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.stop(signal.SIGKILL)


def nothing(broker: OwnValkey) -> None:
    pass


def wipe(broker: OwnValkey) -> None:
    redis.Redis.from_url(broker.url).flushdb()


def start_empty(broker: OwnValkey) -> None:
    broker.kill()
    shutil.rmtree(broker.folder)
    broker.start()


def append(customer: Customer) -> None:
    shard = keys.shard_of(customer.tenant.pk, settings.SHARDS)
    store().xadd(keys.usage(shard), customer.fields())  # type: ignore[arg-type]


@pytest.fixture
def supervised(tmp_path: Path, valkey: OwnValkey, broker: OwnValkey) -> Iterator[tuple[Service, int]]:
    """The worker of `make run`, kept running as it is there, and the port of its health."""
    (tmp_path / "logs").mkdir()
    port = processes.free_port()
    address = parse_address(broker.url).celery_url(0)
    environment = {**os.environ, "CELERY_BROKER_URL": address, "WORKER_STUCK_SECONDS": "3", "LAG_LIMIT_SECONDS": "0.3"}
    watchdogs: list[Watchdog] = []

    def watch(name: str, identity: Identity) -> None:
        watchdogs.append(Watchdog(-identity.pid))

    service = Service(Plain(programs.worker(tmp_path, environment, port), watch))
    service.start()
    yield service, port
    service.runnable.stop(0)
    for watchdog in watchdogs:
        watchdog.dismiss()


def test_under_the_supervisor_it_outlives_its_broker(
    supervised: tuple[Service, int], start: Callable[..., Worker], broker: OwnValkey
) -> None:
    service, port = supervised
    alice = Customer()

    def is_booked() -> bool:
        service.keep_running()
        return len(alice.rows()) == booked

    def pid() -> int:
        assert service.runnable.child
        return service.runnable.child.identity.pid

    booked = 0
    for harm in (nothing, wipe, start_empty):
        harm(broker)
        append(alice)
        booked += 1
        wait_until(is_booked, 30 if harm is nothing else 20, f"an event in the ledger after {harm.__name__}")
    wait_until(lambda: readyz(port) == {}, what="readiness")
    before = pid()
    control = start(1, application="tests.controls.impatient_worker")
    control.wait()
    began = time.monotonic()
    with broker.frozen():
        wait_until(lambda: "tasks" in readyz(port), what="that tasks don't run")
        append(alice)
        wait_until(lambda: "ledger" in readyz(port), what="that an event waits")
        assert health(port, "/healthz") == (200, {})
        assert control.child.wait(20) == STUCK
        wait_until(lambda: time.monotonic() - began > 7, what="more time than a stuck worker gets")
    booked += 1
    wait_until(is_booked, 10, "an event in the ledger after a pause")
    wait_until(lambda: readyz(port) == {}, what="readiness")
    assert pid() == before


def test_one_that_takes_no_tasks_is_ended_and_no_other(start: Callable[..., Worker], broker: OwnValkey) -> None:
    deaf, beatless, idle = start(0), start(1), start(2, scheduler=False)
    control = start(0, application="tests.controls.unwatched_worker")
    for worker in (deaf, beatless, idle, control):
        worker.wait()
    children = [*deaf.children(), *beatless.children()]
    for child in beatless.children():  # the pool makes new ones; nobody makes a new scheduler
        os.kill(child, signal.SIGKILL)
    with Celery(broker=parse_address(broker.url).celery_url(0), set_as_current=False) as remote:

        def both_are_stuck() -> bool:
            remote.control.cancel_consumer("celery")  # again and again: one that has only just begun doesn't hear it
            return deaf.child.poll() is not None and "tasks" in readyz(control.port)

        wait_until(both_are_stuck, 20, "the end of the one and the standstill of the other")
    assert (deaf.child.wait(1), beatless.child.wait(15)) == (STUCK, STUCK)
    assert "the worker ends to be started again" in deaf.text()
    wait_until(lambda: not any(map(identify, children)), what="the end of their children")
    assert control.child.poll() is None
    assert "tasks" in readyz(idle.port), "the scheduler is elsewhere, and that is where it is missing"
    wait_until(lambda: seconds_idle(idle.port) > 5, what="more time than a stuck worker gets")
    assert idle.child.poll() is None


def test_it_names_the_store_and_the_database(valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = workerhealth.Pulse()
    assert workerhealth.problems(pulse).keys() <= {"ledger"}
    with valkey.frozen():
        assert workerhealth.problems(pulse) == {"store": "out of reach (TimeoutError)"}
    monkeypatch.setitem(connection.settings_dict, "HOST", "/nowhere")
    assert workerhealth.problems(pulse)["database"] == "out of reach (OperationalError)"


def test_one_that_gives_up_and_hangs_is_ended(start: Callable[..., Worker]) -> None:
    worker = start(0, stuck_seconds=15, application="tests.controls.failing_consumer")
    worker.wait()
    assert worker.child.wait(20) == STUCK
    assert "stops by itself and doesn't come to an end" in worker.text()

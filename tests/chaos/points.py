"""Every point of a call's life x every kind of process killed there, once: `python -m tests.chaos.points FILE`.

At each point one call is held; then the process is killed, and the calls that can go on do. FILE gets what became of
each, and the breaches of the accounts, as JSON.
"""

import asyncio
import json
import signal
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import django
import redis
from django.db import DatabaseError, connection

from tests.chaos import environment

django.setup()

from tests.chaos.accounts import Accounts, breaches  # noqa: E402
from tests.chaos.attempts import Attempt  # noqa: E402
from tests.chaos.faults import state_of  # noqa: E402
from tests.chaos.gathering import gather  # noqa: E402
from tests.chaos.healing import heal  # noqa: E402
from tests.chaos.load import Connection  # noqa: E402
from tests.chaos.personas import Persona  # noqa: E402
from tests.chaos.run import prepare  # noqa: E402
from tests.chaos.schedule import POINTS, WORKER_POINTS  # noqa: E402
from tests.chaos.stack import FOLDER, Service, Stack, signal_all, until  # noqa: E402
from tests.processes import wait_until  # noqa: E402
from usage import guardian  # noqa: E402

SECONDS = 20.0  # for anything that must come true
HELD = 3 * SECONDS  # the longest that a call waits at its point, or it would be given up instead of sent late
REACHED = FOLDER / "reached"
# Whom to kill, and whether the calls go on while it is down or when it is back.
VICTIMS = (
    ("worker-main", "down"),
    ("sandbox", "down"),
    ("postgres", "down"),
    ("valkey", "back"),
    ("valkey", "down"),
    ("web-worker", "down"),
    ("web-main", "down"),
)


@dataclass
class Told:
    """What became of one call. `again`: what the same idempotency key got after all had healed."""

    victim: str
    point: str
    attempt: Attempt
    request_id: str = ""
    told: str = ""
    outcome: str = ""
    kinds: str = ""  # of the ledger's rows
    drawn: bool = False
    again: str = ""


class Points:
    """The stack of the run and its calls."""

    def __init__(self) -> None:
        self.persona = Persona("points", 1, ["images:100000/day"])
        # Calls are held for longer than production lets pass between admitting and sending.
        self.stack = Stack(1, 1, 1, DISPATCH_WITHIN=str(HELD))
        self.tolds: list[Told] = []
        self.attempts: list[Attempt] = []
        self._begun = time.monotonic()

    def _say(self, text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - self._begun:5.1f} s  {text}\n")
        sys.stdout.flush()

    def run(self) -> dict[str, Any]:
        """All kills, then healing, then each key once more."""
        prepare(f"http://127.0.0.1:{self.stack.sandbox_port}", [self.persona])  # no proxy: when down, it refuses
        self.stack.start()
        self._say("ready")
        asyncio.run(self._kill_all())
        stuck = heal(self.stack, 60)
        self._say("healed")
        asyncio.run(self._repeat_all())
        stuck = stuck or heal(self.stack, 60)
        self._say("every key repeated")
        accounts = gather(self.attempts, {}, [self.persona])
        for told in self.tolds:
            self._judge(told, accounts)
        found = breaches(accounts) + ([("does not heal", stuck)] if stuck else [])
        tolds = [{name: value for name, value in asdict(told).items() if name != "attempt"} for told in self.tolds]
        return {"tolds": tolds, "breaches": found}

    async def _kill_all(self) -> None:
        await self._worker_points()
        self._say("worker-child killed at its points")
        for victim, when in VICTIMS:
            await self._batch(victim, when)
            self._say(f"{victim} killed, calls went on when it was {when}")

    async def _worker_points(self) -> None:
        """A pool process of the worker dies at each point of its own, with a call's event or lease in its hands."""
        drain = [point for point in WORKER_POINTS if not point.endswith("expire")]
        await asyncio.gather(self._drain_points(drain), *map(self._expiry_point, ("before_expire", "after_expire")))

    async def _drain_points(self, points: list[str]) -> None:
        for point in points:
            (FOLDER / f"worker-{point}").touch()
            await self._call("worker-child", point, "")
            await _until(lambda point=point: f"{point} kill" in _reached())

    async def _expiry_point(self, point: str) -> None:
        """A call that is held until its lease is over ends as unresolved, whoever dies over it, and settles late."""
        (FOLDER / f"worker-{point}").touch()
        call = asyncio.create_task(self._call("worker-child", point, f"after_admit:hold:{point}"))
        await _until(
            lambda: state_of(_held(point).get("after_admit", "")) == "EXPIRED" and f"{point} kill" in _reached()
        )
        (FOLDER / point).touch()
        await call
        next(told for told in self.tolds if told.point == point).request_id = _held(point)["after_admit"]

    async def _batch(self, victim: str, when: str) -> None:
        group, name = f"{victim}-{when}", f"{victim} back" if when == "back" else victim
        calls = [asyncio.create_task(self._call(name, point, f"{point}:hold:{group}")) for point in POINTS]
        await _until(lambda: len(_held(group)) == len(POINTS))
        for told in self.tolds[-len(POINTS) :]:
            told.request_id = _held(group)[told.point]
        kind, _, part = victim.partition("-")
        (service,) = self.stack.of_kind(kind)
        main = [] if part == "worker" else [service.pid()]
        victims = [*main, *(service.children() if kind == "web" else [])]
        self.stack.kept_down.add(kind)
        signal_all(victims, signal.SIGKILL)
        if main:
            await _until(service.ended)
            await asyncio.sleep(0.5)  # a call that meets a connection whose end nobody has read yet is unresolved
        if when == "back":
            await asyncio.to_thread(self._start_again, service)
        (FOLDER / group).touch()
        await asyncio.gather(*calls)
        await asyncio.to_thread(self._start_again, service)

    def _start_again(self, service: Service) -> None:
        """Let what was killed come back, until calls are admitted; without waiting for a worker's next tick."""
        self.stack.kept_down.clear()
        if service.kind != "worker":
            wait_until(lambda: not service.ended(), SECONDS, f"the start of {service.name}")
        wait_until(_confirmed, SECONDS, "a store that is confirmed")
        self.stack.wait_until_admitting(SECONDS)

    async def _call(self, victim: str, point: str, crash: str) -> None:
        number = len(self.tolds)
        mark = f"delay={1500 if point == 'at_provider' else 5}.{number:03d}ms"
        attempt = self._attempt(mark, uuid.uuid4().hex)
        told = Told(victim, point, attempt)
        self.tolds.append(told)
        await self._send(attempt, {"X-Crash": crash} if crash else {})
        told.request_id = told.request_id or attempt.request_id

    def _attempt(self, mark: str, key: str) -> Attempt:
        token, _ = self.persona.tokens[0]
        attempt = Attempt("points", self.persona.tenant.pk, token.pk, mark, "", 1, key, time.time())
        self.attempts.append(attempt)
        return attempt

    async def _send(self, attempt: Attempt, headers: dict[str, str]) -> None:
        connection = Connection(self.stack.urls[0])
        headers |= {"Content-Type": "application/json", "X-Proxy-Token": self.persona.tokens[0][1]}
        body = {"prompt": f"a gem [sandbox {attempt.mark}]", "size": "256x256", "n": 1}
        await connection.post(json.dumps(body).encode(), {**headers, "Idempotency-Key": attempt.key}, attempt)
        connection.close()

    async def _repeat_all(self) -> None:
        for told in self.tolds:
            attempt = self._attempt(told.attempt.mark, told.attempt.key)
            await self._send(attempt, {})
            told.again = f"{_told(attempt)}{' replayed' if attempt.replayed else ''}"

    def _judge(self, told: Told, accounts: Accounts) -> None:
        told.told = _told(told.attempt)
        told.outcome = accounts.outcome(told.request_id)
        told.kinds = " ".join(row.kind for row in accounts.by_call.get(told.request_id, ()))
        told.drawn = told.request_id in accounts.drawn_by_call


def _confirmed() -> bool:
    try:
        return guardian.confirm() == "confirmed"
    except (redis.RedisError, DatabaseError):
        return False
    finally:
        connection.close()


def _told(attempt: Attempt) -> str:
    return f"{attempt.status} {attempt.type}".strip() if attempt.whole else "broken"


def _reached() -> str:
    return REACHED.read_text() if REACHED.exists() else ""


def _held(group: str) -> dict[str, str]:
    """Which calls of a group are at their points: point -> request id."""
    lines = [line.split() for line in _reached().splitlines()]
    return {point: request_id for point, _, _, request_id, of in lines if of == group}


async def _until(condition: Any) -> None:
    assert await asyncio.to_thread(until, condition, SECONDS), f"not within {SECONDS} s; reached:\n{_reached()}"


def main() -> None:
    """Run, and write what came of it."""
    environment.KEEP.append("not ended")
    points = Points()
    try:
        found = points.run()
    finally:
        points.stack.close()
    Path(sys.argv[1]).write_text(json.dumps(found))
    if not found["breaches"]:
        environment.KEEP.clear()


if __name__ == "__main__":
    main()

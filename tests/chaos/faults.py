"""Carrying a schedule out: each fault in a thread of its own, at its time."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator

import redis
from django.conf import settings
from django.db import DatabaseError, connection

from config.redis import store
from tests.chaos.load import Load
from tests.chaos.personas import Persona
from tests.chaos.schedule import WORKER_POINTS, Fault
from tests.chaos.stack import FOLDER, Stack, signal_all, until
from tokens import stopping
from tokens.admission import keys
from tokens.admission.connection import StoreUnavailable
from tokens.errors import DATABASE_DOWN

STALL_SECONDS = 20.0


class Faults:
    """Deals the blows of a schedule to a stack; `kills` counts them by kind of process."""

    def __init__(self, stack: Stack, load: Load, everyone: list[Persona], seed: int) -> None:
        self.stack, self.load = stack, load
        self.kills: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self._chance = random.Random(f"{seed} victims")
        self._spare: Iterator[int] = iter(
            [token.pk for persona in everyone if persona.name == "revoked" for token, _ in persona.tokens[:-1]]
        )
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch_reached, daemon=True)

    def run(self, schedule: list[Fault]) -> None:
        """Deal every blow at its time; returns when the last is over."""
        if not self._watcher.is_alive():
            self._watcher.start()
        begun = time.monotonic()
        for fault in schedule:
            time.sleep(max(0.0, begun + fault.at - time.monotonic()))
            thread = threading.Thread(target=self._deal, args=(fault,), daemon=True)
            thread.start()
            self._threads.append(thread)
        for thread in self._threads:
            thread.join(STALL_SECONDS + 10)

    def end(self) -> None:
        """Nothing stays broken: links are whole and whoever was stopped goes on."""
        self._over.set()
        self._watcher.join(STALL_SECONDS + 5)
        for wanted in FOLDER.glob("worker-*"):
            wanted.unlink(missing_ok=True)
        for link in self.stack.links.values():
            link.heal()
        for service in self.stack.services:
            signal_all([pid for pid in (service.pid(), *service.children()) if pid], signal.SIGCONT)

    def _deal(self, fault: Fault) -> None:
        deed = {
            "kill": self._kill,
            "term": self._kill,
            "freeze": self._freeze,
            "crash": self._crash,
            "stall": self._crash,
            "crash-worker": self._crash_worker,
            "link": self._break,
            "revoke": self._revoke,
        }[fault.kind]
        deed(fault)

    def _victims(self, name: str) -> list[int]:
        """The processes to signal: one of a kind that has several."""
        kind, _, part = name.partition("-")
        if part in {"worker", "child"}:
            return self.stack.worker_processes(kind, self._chance)
        living = [service for service in self.stack.of_kind(kind) if not service.ended()]
        return [self._chance.choice(living).pid()] if living else []

    def _kill(self, fault: Fault) -> None:
        number = signal.SIGKILL if fault.kind == "kill" else signal.SIGTERM
        victims = self._victims(fault.target)
        end = time.monotonic() + 10
        while not victims and time.monotonic() < end:  # it is starting just now
            time.sleep(0.05)
            victims = self._victims(fault.target)
        signal_all(victims, number)
        if fault.kind == "kill":
            self.kills[fault.target] += bool(victims)
        else:
            self.others["term"] += 1

    def _freeze(self, fault: Fault) -> None:
        victims = self._victims(fault.target)
        if fault.target == "postgres":
            victims += [pid for service in self.stack.of_kind("postgres") for pid in service.children()]
        self.stack.frozen(victims, fault.seconds)
        self.others["freeze"] += 1

    def _crash(self, fault: Fault) -> None:
        action = "kill" if fault.kind == "crash" else "stop"
        self.load.crashes.append(f"{fault.target}:{action}")

    def _crash_worker(self, fault: Fault) -> None:
        (FOLDER / f"worker-{fault.target}").touch()

    def _break(self, fault: Fault) -> None:
        link = self.stack.links[fault.target]
        what, _, milliseconds = fault.what.partition(" ")
        self.others[what] += 1
        if what == "drop":
            self.stack.proxy.drop(link)
        elif what == "delay":
            link.delay = int(milliseconds) / 1000
        elif what == "cut":
            link.cut += 3
        else:
            setattr(link, what, True)
            if what == "refuse":
                self.stack.proxy.drop(link)
        time.sleep(fault.seconds)
        link.heal()

    def _revoke(self, fault: Fault) -> None:
        token = next(self._spare, 0)
        if token and until(lambda: self._revoked(token), 15):
            self.load.revoked[token] = time.time()
            self.others["revoke"] += 1

    def _revoked(self, token: int) -> bool:
        try:
            stopping.revoke(token, by="chaos")
        except (StoreUnavailable, redis.RedisError, DatabaseError, *DATABASE_DOWN):
            return False
        finally:
            connection.close()
        return True

    def _watch_reached(self) -> None:
        """Count the crashes at points, and let those who stopped themselves go on once their call's lease is over."""
        path, seen = FOLDER / "reached", 0
        while not self._over.wait(0.05):
            lines = path.read_text().splitlines() if path.exists() else []
            for line in lines[seen:]:
                self._reached(*line.split())
            seen = len(lines)

    def _reached(self, point: str, action: str, pid: str, request_id: str, _group: str) -> None:
        if action == "kill":
            self.kills["worker-child" if point in WORKER_POINTS else "web-worker"] += 1
            self.others[f"crash {point}"] += 1
            return
        self.others["stall"] += 1
        threading.Thread(target=self._continue, args=(int(pid), request_id), daemon=True).start()

    def _continue(self, pid: int, request_id: str) -> None:
        until(lambda: state_of(request_id) == "EXPIRED", STALL_SECONDS)
        signal_all([pid], signal.SIGCONT)


def state_of(request_id: str) -> str:
    """A call's state in the store; empty when there is none, or no store."""
    try:
        states = [store().hget(keys.reservation(shard, request_id), "state") for shard in range(settings.SHARDS)]
    except redis.RedisError:
        return ""
    return next((state.decode() for state in states if isinstance(state, bytes)), "")

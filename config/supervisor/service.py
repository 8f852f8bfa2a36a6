"""A child that is kept running: started again, with growing pauses, when it ends unasked."""

import time
from pathlib import Path
from typing import Protocol

from config.supervisor import processes
from config.supervisor.errors import StartError
from config.supervisor.identity import kill_rest_of_session
from config.supervisor.processes import Child, Program, Record
from config.supervisor.report import say

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0  # a child that has run this long starts again with the first pause


class Runnable(Protocol):
    """What `Service` keeps running: an embedded server, or a `Plain` program."""

    name: str
    log: Path
    child: Child | None

    def start(self) -> None:
        """Start it, and return when it works; StartError otherwise."""

    def stop(self, seconds: float) -> bool:
        """Stop it, killing it after `seconds`; True when that wasn't necessary."""


class Plain:
    """A program that counts as started once its process runs."""

    def __init__(self, program: Program, record: Record) -> None:
        self.name = program.name
        self.log = program.log
        self.child: Child | None = None
        self._program = program
        self._record = record

    def start(self) -> None:
        """Start the program. Raises StartError when the system refuses."""
        self.child = processes.start(self._program, self._record)

    def stop(self, seconds: float) -> bool:
        """Stop the program; True when it ended by itself within `seconds`."""
        return self.child is None or self.child.stop(seconds)


class Service:
    """Watches one runnable."""

    def __init__(self, runnable: Runnable) -> None:
        self.runnable = runnable
        self._pause = FIRST_PAUSE
        self._started_at = 0.0
        self._again_at: float | None = None

    @property
    def exit_status(self) -> int | None:
        """How the program ended, None while it runs or before it was started."""
        return None if self.runnable.child is None else self.runnable.child.exit_status()

    def start(self) -> None:
        """Start it for the first time."""
        self._started_at = time.monotonic()
        self.runnable.start()

    def keep_running(self) -> None:
        """If it has ended, say so, and start it again when its pause is over. Call this often."""
        status = self.exit_status
        if status is None:
            return
        now = time.monotonic()
        if self._again_at is None:
            if now - self._started_at > STEADY_SECONDS:
                self._pause = FIRST_PAUSE
            self._again_at = now + self._pause
            how = f"{describe(status)}, see {self.runnable.log}"
            say(f"{self.runnable.name} ended unexpectedly ({how}); starting it again.")
            if self.runnable.child is not None:
                kill_rest_of_session(self.runnable.child.identity)
        elif now >= self._again_at:
            self._again_at = None
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            try:
                self.start()
            except StartError as exc:
                say(str(exc))


def describe(status: int) -> str:
    """An exit status in words: `exit status 1`, `signal 9`."""
    return f"signal {-status}" if status < 0 else f"exit status {status}"

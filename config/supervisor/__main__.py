"""`python -m config.supervisor`: run the whole stack on `DATA` and `PORT` until Ctrl-C or SIGTERM.

`DEMO=no` leaves out the demo tenant and the sandbox provider, so that the database stays empty for a restore.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from config.supervisor import datafolder
from config.supervisor.errors import StartError
from config.supervisor.programs import drain_seconds
from config.supervisor.report import say
from config.supervisor.stack import Stack

OPEN_FILES = 65_536
SETTLING_SECONDS = 30.0  # above the margin after which the web server kills its own workers
SAME_SIGNAL_SECONDS = 1.0  # `kill` of a process group reaches us twice: `make` passes SIGTERM on


class StopRequested(BaseException):
    """The person asked to stop; raised by the signal itself, so that no wait has to look for it."""


class Signals:
    """The first signal interrupts whatever the start is waiting for; later ones only count."""

    def __init__(self) -> None:
        self._first_at: float | None = None
        self._hurried = False
        self._may_raise = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._handle)

    def stop_raising(self) -> None:
        """From now on nothing may interrupt: the stop has begun."""
        self._may_raise = False

    def hurried(self) -> bool:
        """Whether the person has asked again, after the signal that began the stop."""
        return self._hurried

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
        self._hurried = now - self._first_at > SAME_SIGNAL_SECONDS
        if self._may_raise:
            self._may_raise = False
            raise StopRequested


def main() -> int:
    """Run the stack; the exit status is 0 after a stop that was asked for, 1 when it could not start."""
    signals = Signals()
    data = Path(os.environ.get("DATA") or ".data").absolute()
    parent_gone = parent_watch()
    stack: Stack | None = None
    status = 0
    try:
        port, demo = read_port(), read_demo()
        web_seconds = drain_seconds(os.environ) + SETTLING_SECONDS
        raise_file_limit()
        datafolder.prepare(data)
        datafolder.claim(data, say)
        stack = Stack(data, port, demo=demo, web_seconds=web_seconds)
        stack.start()
        stack.watch(parent_gone)
    except StopRequested:
        pass
    except StartError as exc:
        print(f"make run: {exc}", file=sys.stderr, flush=True)
        status = 1
    finally:
        signals.stop_raising()
        if stack is not None:
            stack.stop(signals.hurried)
    return status


def read_port() -> int:
    """`PORT`, 8000 unless set. Raises StartError for anything but a port number."""
    text = os.environ.get("PORT") or "8000"
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise StartError(f"PORT must be a number from 1 to 65535, not {text!r}.")
    return int(text)


def read_demo() -> bool:
    """`DEMO`, yes unless set. Raises StartError for anything but yes or no."""
    text = os.environ.get("DEMO") or "yes"
    if text not in {"yes", "no"}:
        raise StartError(f"DEMO must be yes or no, not {text!r}.")
    return text == "yes"


def raise_file_limit() -> None:
    """Let the children hold as many connections as the system allows us to, at most `OPEN_FILES`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def parent_watch() -> Callable[[], bool]:
    """Tells when the `make` that started us is gone: after `kill -9` of it, nobody could stop us with Ctrl-C."""
    if "MAKELEVEL" not in os.environ:
        return lambda: False
    parent = os.getppid()
    return lambda: os.getppid() != parent


if __name__ == "__main__":
    sys.exit(main())

"""What every benchmark does first."""

import os
import signal
import sys


def begin() -> None:
    """Refuse a system that the benchmarks can't measure on, and make SIGTERM end what was started, as Ctrl-C does."""
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("The benchmark needs Linux: it pins programs to cores and reads /proc.")
    os.environ.pop("WEB_WORKERS", None)  # what is measured is one worker on one core
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

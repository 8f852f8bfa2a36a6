"""What a supervisor that was killed with -9 left running, stopped before anything new starts on the same data."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from config.supervisor import postgres, processes, valkey
from config.supervisor.runfile import RunFile

# Calls in flight need the worker's stores, so the stores end last.
STOP_ORDER = ("web", "initialisation", "preparation", "worker", "sandbox", "valkey", "postgres")


def stop_all(left: RunFile, web_seconds: float, say: Callable[[str], None]) -> None:
    """Stop the children that `left` names, each in its own way, and remove their sockets' folders.

    Args:
        left: what the earlier supervisor recorded.
        web_seconds: how long calls in flight may take to finish.
        say: tells the person what is happening.

    Raises:
        StartError: one of them belongs to somebody else.
    """
    alive = [name for name, child in left.children.items() if child.alive]
    if alive:
        say(f"Stopping what an earlier start left running: {', '.join(sorted(alive))}.")
    seconds = {"web": web_seconds, "valkey": valkey.STOP_SECONDS, "postgres": postgres.STOP_SECONDS}
    for name in STOP_ORDER:
        child = left.children.get(name)
        if child is not None:
            stop_signal = signal.SIGINT if name == "postgres" else signal.SIGTERM
            processes.stop_orphan(child, stop_signal, seconds.get(name, 15.0), insist=name == "web")
    for folder in left.folders:
        # Only what we make ourselves, whatever the file says.
        if Path(folder).parent == postgres.SOCKET_ROOT and Path(folder).name.startswith("gem-"):
            shutil.rmtree(folder, ignore_errors=True)

"""How long ``make run`` takes to be ready, and what the whole stack holds in memory when nobody calls."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from bench import cores
from bench.bars import Bar
from bench.report import ROOT
from config.supervisor.errors import StartError
from config.supervisor.stack import free_port

LAST_LINE = "Ctrl-C stops everything."
PATIENCE, STOP_SECONDS, IDLE_SECONDS = 120.0, 60.0, 10.0
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")


def start(size: float) -> list[Bar | str]:
    """`make run` on an empty data folder, and once more on what that left; the machine's cores are all its own."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-bench-"))
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        first, memory = _once(folder, IDLE_SECONDS * size)
        again, _ = _once(folder, 0)
    finally:
        os.sched_setaffinity(0, allowed)
        shutil.rmtree(folder, ignore_errors=True)
    return [
        Bar("`make run` to ready, installed, on an empty data folder", first, " s", 8, 5),
        f"once more on the same data: {again:.1f} s",
        Bar("memory of the whole stack with the demo's sandbox, idle", memory, " MB", 500, 350),
    ]


def _once(folder: Path, idle: float) -> tuple[float, float]:
    """Seconds to ready, and the megabytes of everything after `idle` seconds. Raises StartError."""
    log = folder / "make.log"
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    begun = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "run", f"DATA={folder / 'data'}", f"PORT={free_port()}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while LAST_LINE not in log.read_text(errors="replace"):
            if process.poll() is not None or time.perf_counter() - begun > PATIENCE:
                raise StartError(f"`make run` wasn't ready:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        time.sleep(idle)
        return seconds, sum(cores.memory_mb(pid) for pid in _sessions(process.pid))
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(STOP_SECONDS)


def _sessions(root: int) -> set[int]:
    """The sessions of a process and of all that it and its children started."""
    parents, sessions = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)], sessions[int(entry.name)] = int(fields[1]), int(fields[3])
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return {sessions[pid] for pid in family}

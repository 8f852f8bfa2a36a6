"""Which core a program runs on, and what it took of it: read from Linux's /proc, see proc(5)."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from config.supervisor.identity import session_members

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


def choose() -> tuple[int, int]:
    """The core for the server under test and the one for everything else; the same where there is one only."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def pin(pid: int, core: int) -> None:
    """Keep a process on one core, with all threads and children that it will have. It must not have any yet."""
    os.sched_setaffinity(pid, {core})


@dataclass(frozen=True, slots=True)
class Moment:
    """CPU seconds so far, of a program with all its processes and of a whole core, at a time in seconds."""

    at: float
    program: float
    core: float


def measure(leader: int | None, core: int) -> Moment:
    """The moment now; `leader` opened the program's session, None: no program."""
    spent = sum(_cpu_seconds(pid) for pid in session_members(leader)) if leader else 0.0
    return Moment(time.perf_counter(), spent, _busy_seconds(core))


def _cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process (fields 14 and 15 of its stat); 0 once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * TICK


def _busy_seconds(core: int) -> float:
    """What a core has worked for anybody: all columns of its line but idle, iowait and the two that repeat (guests)."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            ticks = [int(word) for word in line.split()[1:]]
            return (sum(ticks[:3]) + sum(ticks[5:8])) * TICK
    raise ValueError(f"/proc/stat knows no core {core}")


def memory_mb(leader: int) -> float:
    """Megabytes that a program holds: the proportional set size, which counts pages that processes share once."""
    total = 0
    for pid in session_members(leader):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024

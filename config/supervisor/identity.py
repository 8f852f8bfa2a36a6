"""Recognise a process again after its parent is gone, without mistaking a stranger for it."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.02
PROC = Path("/proc")


@dataclass(frozen=True)
class Identity:
    """A process: its pid, and when it started, because the system gives the pids of dead processes to others."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs. A zombie has ended: only its parent hasn't noticed."""
        return _started(self.pid) == self.started

    def wait(self, seconds: float) -> bool:
        """Wait until the process, not a child of ours, has ended, at most `seconds`; True when it has."""
        end = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() >= end:
                return False
            time.sleep(POLL_SECONDS)
        return True


def identify(pid: int) -> Identity | None:
    """The identity of a running process, None when there is none of that pid."""
    started = _started(pid)
    return None if started is None else Identity(pid, started)


def of_child(pid: int) -> Identity:
    """The identity of a child that we haven't waited for; one that has ended already counts as not alive."""
    return identify(pid) or Identity(pid, "")


def program_name(pid: int) -> str:
    """The name of the program that a process runs (`postgres`), empty when there is no such process."""
    if _has_proc():
        try:
            return (PROC / str(pid) / "comm").read_text().strip()
        except OSError:
            return ""
    return Path(_ps("-o", "comm=", "-p", str(pid)).strip()).name


def session_members(leader: int) -> list[int]:
    """The pids of the processes in the session that `leader` opened, itself included, zombies left out."""
    if _has_proc():
        rows = [(int(entry.name), _stat(int(entry.name))) for entry in PROC.iterdir() if entry.name.isdigit()]
        return [pid for pid, stat in rows if stat and stat[3] == str(leader) and stat[0] != "Z"]
    # ps prints no session id on macOS; the children of a session leader stay in its process group.
    rows_of_ps = [line.split() for line in _ps("-A", "-o", "pid=,pgid=,stat=").splitlines()]
    return [int(pid) for pid, group, stat in rows_of_ps if group == str(leader) and not stat.startswith("Z")]


def kill_rest_of_session(leader: Identity) -> None:
    """Kill what is left of the session that `leader` opened, after it has ended.

    While any member of a session lives, the system gives its number to no other process; so when the pid is
    taken again, by anyone, nothing of the old session is left and nothing is touched.
    """
    holder = identify(leader.pid)
    if holder is not None and holder != leader:
        return
    for pid in session_members(leader.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _started(pid: int) -> str | None:
    if _has_proc():
        stat = _stat(pid)
        # Field 22 counts clock ticks since boot, so it says nothing without the boot it counts from.
        return None if stat is None or stat[0] in "ZX" else f"{_boot()}/{stat[19]}"
    columns = _ps("-o", "stat=,lstart=", "-p", str(pid)).split(maxsplit=1)
    return None if len(columns) < 2 or columns[0].startswith("Z") else columns[1].strip()


def _has_proc() -> bool:
    return (PROC / "self" / "stat").exists()  # Linux; elsewhere there is ps(1)


def _boot() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat (proc(5)) from the third, the state, on; the second may hold spaces."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _ps(*arguments: str) -> str:
    return subprocess.run(["/bin/ps", *arguments], capture_output=True, text=True, check=False).stdout

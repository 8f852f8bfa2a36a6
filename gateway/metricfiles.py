"""The files in which processes keep their figures (``PROMETHEUS_MULTIPROC_DIR``): whose is which, and who is dead.

A file's name ends in pid, start time and host name. The pid alone wouldn't do: a new process with a dead one's pid
would go on with its figures, and a dead worker's calls in flight would stay in flight for ever.
"""

import os
import re
import socket
from pathlib import Path

START_TIME_FIELD = 19  # of /proc/<pid>/stat after the name's closing bracket; field 22 in proc(5), clock ticks


_identifier = ""  # this process's, once it was asked for


def process_identifier() -> str:
    """``<pid>-<start time>-<host>`` of this process, also right after a fork.

    Every figure that is counted asks for it, so it is remembered; asking the kernel for the pid each time would cost
    more than counting.
    """
    global _identifier
    if not _identifier:
        pid = os.getpid()
        _identifier = f"{pid}-{start_time(pid)}-{_host()}"
    return _identifier


def _forget_identifier() -> None:
    global _identifier
    _identifier = ""


os.register_at_fork(after_in_child=_forget_identifier)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())  # an underscore would end the name's field


def start_time(pid: int) -> str:
    """When a process started, in the kernel's own figure; "" if there is none of that pid.

    Where the kernel doesn't tell (no ``/proc``: macOS) every living process gives "0".
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "0" if not Path("/proc/self/stat").exists() and _exists(pid) else ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[START_TIME_FIELD]  # a zombie is dead, only not buried


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def forget_the_dead(folder: Path) -> None:
    """Delete the gauges of processes that have ended, however they ended; their counters stay, as they must.

    A file from another host (containers that share the folder) is left alone: only its own kernel knows.
    """
    for path in folder.glob("gauge_live*.db"):
        pid, _, rest = path.stem.rpartition("_")[2].partition("-")
        started, _, host = rest.partition("-")
        if host == _host() and pid.isdigit() and start_time(int(pid)) != started:
            path.unlink(missing_ok=True)

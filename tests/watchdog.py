"""Ends what a test started when the tests end in a way that runs no teardown, kill -9 included."""

import os
import signal

# Reads until its standard input closes, which it does with the process that started it.
WAIT_AND_SIGNAL = 'trap "" INT TERM; read -r _; kill -s "$1" -- "$2" 2>/dev/null'


class Watchdog:
    """A shell that outlives the tests to signal a process (or, with a negative number, a process group)."""

    def __init__(self, target: int, name: str = "KILL") -> None:
        theirs, self._ours = os.pipe()
        command = ["/bin/sh", "-c", WAIT_AND_SIGNAL, "watchdog", name, str(target)]
        actions = [(os.POSIX_SPAWN_DUP2, theirs, 0)]
        self._shell = os.posix_spawn("/bin/sh", command, os.environ, file_actions=actions, setsid=True)
        os.close(theirs)

    def dismiss(self) -> None:
        """The target is gone: nothing is left to do."""
        if self._shell:
            os.kill(self._shell, signal.SIGKILL)
            os.waitpid(self._shell, 0)
            os.close(self._ours)
            self._shell = 0

"""Start a program as a child of its own session, and stop it without leaving anything of it behind."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from config.supervisor.account import Account, popen_arguments
from config.supervisor.errors import StartError
from config.supervisor.identity import Identity, kill_rest_of_session, of_child, session_members

# Waits for one line, then becomes the program. A supervisor that is killed between the start of a child and
# the note of its pid closes the pipe, and the child ends; otherwise nobody would ever find it again.
GATE = 'read -r go && exec "$@" </dev/null'

KILL_SECONDS = 5.0
INTERRUPT_AGAIN_SECONDS = 1.0

Record = Callable[[str, Identity], None]
"""Notes a child's name and identity durably, before the child's program runs."""


@dataclass(frozen=True)
class Program:
    """What to run: a name for people and log files, the command, and what surrounds it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    folder: Path
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM


class Child:
    """A running program, in its own session: a Ctrl-C in the terminal reaches the supervisor alone."""

    def __init__(self, program: Program, process: subprocess.Popen[bytes], identity: Identity) -> None:
        self.program = program
        self.identity = identity
        self._process = process

    def exit_status(self) -> int | None:
        """None while the program runs; else its exit status, negative for the signal that ended it."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Ask the program to end, in its own way."""
        if self.exit_status() is None:
            self._process.send_signal(self.program.stop_signal)

    def stop(self, seconds: float) -> bool:
        """Ask the program to end, wait `seconds`, then kill it and what it left; True when it went by itself."""
        self.interrupt()
        try:
            self._process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(KILL_SECONDS)
            return False
        finally:
            kill_rest_of_session(self.identity)


def start(program: Program, record: Record) -> Child:
    """Start a program, its output going to the end of its log file.

    `record` has returned before the program's first instruction runs.

    Raises:
        StartError: the log can't be written, or the system refuses to start a process.
    """
    try:
        with program.log.open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", GATE, program.name, *program.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=program.folder,
                env=dict(program.environment),
                start_new_session=True,
                **popen_arguments(program.account),
            )
    except OSError as exc:
        raise StartError(f"{program.name} could not be started: {exc.strerror or exc}.") from exc
    identity = of_child(process.pid)
    record(program.name, identity)
    _open_gate(process)
    return Child(program, process, identity)


def _open_gate(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None  # noqa: S101 - stdin=PIPE above
    try:
        process.stdin.write(b"go\n")
        process.stdin.close()
    except BrokenPipeError:
        pass  # the shell has ended already; exit_status() tells


def interrupt_session(leader: Identity, number: signal.Signals) -> None:
    """Send a signal to every process of a session that `leader` opened and still leads.

    For a web server that has been asked to end and hasn't within `INTERRUPT_AGAIN_SECONDS`: a granian worker that had
    only just been forked has ignored the signal, and granian would wait for it for ever. Repeat it once and no more:
    a granian worker's handler blocks for good at the third signal, and with it the calls in flight.
    """
    for pid in session_members(leader.pid) if leader.alive else []:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def stop_orphan(identity: Identity, stop_signal: signal.Signals, seconds: float, *, insist: bool = False) -> None:
    """Stop a process that an earlier supervisor left behind, and what is left of its session.

    A process that only has the same pid is not touched.

    Args:
        identity: the process.
        stop_signal: what makes it end in its own way.
        seconds: how long that may take; then it is killed.
        insist: repeat the signal; see `interrupt_session`.

    Raises:
        StartError: it belongs to somebody else.
    """
    try:
        if identity.alive:
            os.kill(identity.pid, stop_signal)
            first = min(INTERRUPT_AGAIN_SECONDS, seconds) if insist else 0.0
            if insist and not identity.wait(first):
                interrupt_session(identity, stop_signal)
            if not identity.wait(seconds - first):
                os.kill(identity.pid, signal.SIGKILL)
                identity.wait(KILL_SECONDS)
        kill_rest_of_session(identity)
    except ProcessLookupError:
        kill_rest_of_session(identity)
    except PermissionError as exc:
        raise StartError(f"Process {identity.pid} of an earlier start still runs and belongs to another user.") from exc


def last_lines(log: Path, count: int = 12) -> str:
    """The last lines of a log file that say something, for a message to a person; empty without a log."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 8192))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if line.strip()][-count:])

"""The supervisor behind `make run`: orphans, servers that die, and starts that must be refused in one sentence."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from config.supervisor import datafolder, identity, install, orphans, processes, runfile
from config.supervisor.postgres import EmbeddedPostgres
from config.supervisor.report import say
from config.supervisor.service import Service
from config.supervisor.stack import free_port
from config.supervisor.valkey import EmbeddedValkey

ROOT = Path(__file__).resolve().parent.parent

# A supervisor without an application: it claims the folder, runs both servers, and waits for its end.
SERVERS_ONLY = """
import os, sys, time
from pathlib import Path
from config.supervisor import datafolder, runfile
from config.supervisor.postgres import EmbeddedPostgres
from config.supervisor.valkey import EmbeddedValkey
data = Path(sys.argv[1])
datafolder.prepare(data)
datafolder.claim(data, print)
note = runfile.new(data, os.getpid())
for server in (EmbeddedPostgres(data, durable=False, record=note.record), EmbeddedValkey(data, record=note.record)):
    server.start()
    note.folders.append(str(server.socket_folder))
    note.write()
    print(server.url, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every account can enter, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="gateway-supervisor-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder, durable=False)
    yield server
    server.stop(10)


@pytest.fixture
def supervisor(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A supervisor process of the two servers on `folder`, with their URLs."""
    process = run_python(SERVERS_ONLY, str(folder))
    assert process.stdout
    urls = process.stdout.readline().strip(), process.stdout.readline().strip()
    left = runfile.read(folder)
    yield process, *urls
    process.kill()
    process.communicate()
    if left:
        orphans.stop_all(left, 0, print)


def run_python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def start_stack(data: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real supervisor where it must refuse to start."""
    kept = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    return subprocess.run(
        [sys.executable, "-m", "config.supervisor"],
        cwd=ROOT,
        env={**kept, "DATA": str(data), "PORT": str(free_port()), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_it_finds_and_stops_what_a_killed_supervisor_left(
    folder: Path, supervisor: tuple[subprocess.Popen[str], str, str], postgres: EmbeddedPostgres
) -> None:
    process, database_url, redis_url = supervisor
    with psycopg.connect(database_url) as connection:
        connection.execute("create table kept (n int)")
    process.kill()
    process.wait()
    left = runfile.read(folder)
    assert left
    assert sorted(name for name, child in left.children.items() if child.alive) == ["postgres", "valkey"]
    with redis.Redis.from_url(redis_url) as store:
        assert store.set("still", "there")

    datafolder.claim(folder, print)  # a dead supervisor holds no lock
    orphans.stop_all(left, 0, print)

    assert not any(child.alive for child in left.children.values())
    assert not any(Path(made).exists() for made in left.folders)
    postgres.start()
    with psycopg.connect(postgres.url) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)
    assert "was not properly shut down" not in postgres.log.read_text()


def test_it_ends_a_database_server_that_no_file_names(
    folder: Path, supervisor: tuple[subprocess.Popen[str], str, str], postgres: EmbeddedPostgres
) -> None:
    process, *_ = supervisor
    left = runfile.read(folder)
    assert left
    process.kill()
    postgres.start()
    assert not left.children["postgres"].alive


def test_no_program_runs_before_it_is_recorded(folder: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from config.supervisor.processes import Program, start
def record(name, identity):
    print(identity.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
start(Program("touch", ["/bin/sh", "-c", "touch ran"], {"PATH": "/bin"}, folder / "log", folder), record)
"""
    process = run_python(script, str(folder))
    output, _ = process.communicate(timeout=20)
    eventually(lambda: identity.identify(int(output)) is None)
    assert not (folder / "ran").exists()


def test_it_spares_a_stranger_with_the_same_pid(folder: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        processes.stop_orphan(identity.Identity(stranger.pid, "another boot/1"), signal.SIGTERM, 1)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_zombie_has_ended() -> None:
    child = subprocess.Popen(["sleep", "60"])
    who = identity.identify(child.pid)
    assert who
    assert who.alive
    child.kill()
    eventually(lambda: not who.alive)
    child.wait()


@pytest.mark.parametrize("make", [lambda data: EmbeddedPostgres(data, durable=False), EmbeddedValkey])
def test_it_starts_a_killed_server_again(
    folder: Path, make: Callable[[Path], EmbeddedPostgres | EmbeddedValkey], capsys: pytest.CaptureFixture[str]
) -> None:
    server = make(folder)
    service = Service(server)
    try:
        service.start()
        url, first = server.url, server.child
        assert first
        os.kill(first.identity.pid, signal.SIGKILL)

        def again() -> bool:
            service.keep_running()
            return server.child is not first and service.exit_status is None

        eventually(again, 20)
        assert server.url == url
        assert capsys.readouterr().out.count("ended unexpectedly (signal 9") == 1
    finally:
        server.stop(10)


def test_it_refuses_a_second_supervisor(folder: Path, supervisor: tuple[subprocess.Popen[str], str, str]) -> None:
    refused = start_stack(folder)
    assert refused.returncode == 1
    assert f"already runs on {folder} (process {supervisor[0].pid})" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert supervisor[0].poll() is None


def test_it_waits_for_a_supervisor_that_is_stopping(
    folder: Path, supervisor: tuple[subprocess.Popen[str], str, str]
) -> None:
    note = runfile.read(folder)
    assert note
    note.stopping = True
    note.write()
    lines: list[str] = []

    def told(line: str) -> None:
        lines.append(line)
        time.sleep(datafolder.NOTICE_SECONDS)  # as long as a stop may take, and longer than a start waits without one
        note.remove()
        threading.Timer(0.5, supervisor[0].kill).start()

    datafolder.claim(folder, told)
    assert len(lines) == 1
    assert "still stopping" in lines[0]


def test_it_refuses_a_taken_port(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        refused = start_stack(folder, PORT=str(port))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"make run: Port {port} can't be used")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1"])
def test_it_refuses_what_is_no_port(folder: Path, port: str) -> None:
    refused = start_stack(folder, PORT=port)
    assert refused.returncode == 1
    assert "PORT must be a number" in refused.stderr


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda data: data.write_text(""), "is not a folder"),
        (lambda data: (data.mkdir(), (data / "letters").mkdir()), "is no data folder of the gateway"),
    ],
)
def test_it_refuses_a_folder_that_is_something_else(
    folder: Path, prepare: Callable[[Path], object], message: str
) -> None:
    data = folder / "data"
    prepare(data)
    refused = start_stack(data)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_it_refuses_a_folder_that_it_cannot_write(folder: Path) -> None:
    folder.chmod(0o500)
    data = Path("/proc/data") if os.geteuid() == 0 else folder / "data"  # not even root writes there
    refused = start_stack(data)
    folder.chmod(0o700)
    assert refused.returncode == 1
    assert "can't be written" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_it_refuses_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "OLDEST", (99, 0))
    with pytest.raises(SystemExit, match="or newer is needed"):
        install.refuse_unfit_python()


def test_what_tests_need_holds_what_a_run_needs() -> None:
    """`make run` after `make test` installs nothing: the same versions are there."""
    pins = {
        name: set(re.findall(r"^\S+==\S+", (ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE))
        for name in ("base", "run", install.LARGEST)
    }
    assert pins["base"] < pins["run"] < pins[install.LARGEST]


def test_it_goes_on_when_the_terminal_is_gone() -> None:
    script = "import os, sys; from config.supervisor.report import say\n"
    script += "sys.stdin.read(); say('one'); say('two'); os._exit(7)"
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(b"")
    assert (process.returncode, errors) == (7, b"")
    say("and here, too")

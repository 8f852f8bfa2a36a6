"""`make run` for real: what it prints, how it stops, and that whatever is killed takes no usage with it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest

from config.supervisor import account, runfile, secretfiles
from tests.embedded import start_servers
from tests.makerun import Stack, manage, stack, workers
from tests.processes import ROOT, wait_until

READY_WITHIN = 15.0  # seconds, on a machine that has nothing else to do
DEADLINE, MARGIN = 6.0, 1.0  # seconds; a call that lost its web process is unresolved after both
PACKAGES = f"{ROOT}:{sysconfig.get_path('purelib')}"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

FETCH = """
import fs from "node:fs";
const demo = JSON.parse(fs.readFileSync(process.argv[2]));
const answer = await fetch(demo.endpoint, {
  method: "POST",
  headers: {"Content-Type": "application/json", "X-Proxy-Token": demo.token},
  body: JSON.stringify({prompt: "a lighthouse", size: "256x256", n: 2}),
});
const { data } = await answer.json();
for (const { url } of data) {
  const image = await fetch(url);
  console.log(image.status, image.headers.get("content-type"), (await image.arrayBuffer()).byteLength > 1000);
}
"""


@pytest.fixture(autouse=True)
def _database() -> None:
    """Nothing here uses the test run's own database."""


@pytest.fixture(scope="module")
def kept() -> Iterator[Stack]:
    """A running stack, through `make run` where that uses this very environment, on a long path with blanks."""
    name = f"long {'path ' * 28}/my data"
    in_place = Path(sys.prefix) == ROOT / ".venv" and shutil.which("make") is not None
    with stack(name, through_make=in_place, **short_times(), WEB_WORKERS="2") as made:
        assert len(str(made.data)) > 150
        yield made


@pytest.fixture
def shared(kept: Stack) -> Stack:
    """The stack, running, even where a test that failed has left it stopped."""
    if kept.process is None or kept.process.poll() is not None:
        kept.start()
    return kept


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def short_times() -> dict[str, str]:
    return {"UPSTREAM_DEADLINE": str(DEADLINE), "LEASE_MARGIN": str(MARGIN)}


def request_id(answer: httpx.Response) -> str:
    return answer.headers["x-request-id"]


def held_call(running: Stack, pool: ThreadPoolExecutor) -> "Future[httpx.Response]":
    """A call that the provider takes four seconds for, admitted and under way.

    That outlasts every repetition of a stop's signal.
    """
    call = pool.submit(running.post, "[sandbox delay=4s] a gem")
    wait_until(lambda: running.in_flight() > 0, 10, "a call in flight")
    return call


def answered(running: Stack) -> httpx.Response:
    """A call that was answered with images. Each web worker finds out for itself that its store is confirmed."""
    found: list[httpx.Response] = []

    def works() -> bool:
        found[:] = [running.post()]
        return found[0].status_code == 200

    wait_until(works, 60, "an answered call")
    return found[0]


def wait_for_rows(running: Stack, *answers: httpx.Response) -> None:
    """Wait until every call is in the ledger, as one exact row each."""
    ids = {request_id(answer) for answer in answers}
    wait_until(lambda: ids <= running.kinds().keys(), 20, "the ledger's rows")
    assert {one: running.kinds()[one] for one in ids} == dict.fromkeys(ids, "exact")


def test_it_says_how_to_call_it_and_that_works(shared: Stack) -> None:
    printed = shared.text()
    assert printed[printed.index("The gateway is ready.") :].count("\n") <= 20
    curl = printed[printed.index("curl ") : printed.index("\n\nThe same")]
    done = subprocess.run(["/bin/sh", "-c", curl], capture_output=True, text=True, check=True, timeout=30)
    body = json.loads(done.stdout)
    assert body["usage"]["total_tokens"] > 0
    for image in body["data"]:
        answer = httpx.get(image["url"])
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")


def test_it_writes_the_same_for_scripts(shared: Stack) -> None:
    demo, path = shared.demo, shared.data / "demo.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert demo.keys() == {"url", "endpoint", "token", "tenant", "user", "admin"}
    assert demo["url"] == shared.url
    assert demo["token"] in shared.text()
    assert demo["admin"]["password"] in shared.text()
    with httpx.Client(base_url=shared.url, headers={"Referer": shared.url}) as browser:
        page = browser.get("/admin/login/")
        style = re.search(r'href="(/static/[^"]+\.css)"', page.text)
        assert style
        assert browser.get(style[1]).status_code == 200
        form = {"username": demo["admin"]["username"], "password": demo["admin"]["password"], "next": "/admin/"}
        form["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
        assert browser.post("/admin/login/", data=form).headers.get("location") == "/admin/"


@pytest.mark.node
def test_a_script_in_javascript_gets_its_images(shared: Stack) -> None:
    command = ["node", "--input-type=module", "-", str(shared.data / "demo.json")]
    done = subprocess.run(command, input=FETCH, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("200 image/png true\n" * 2, "")


def test_manage_py_finds_the_running_stack(shared: Stack, tmp_path: Path) -> None:
    done = shared.manage("token", "list", "--tenant", "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo@example.com" in done.stdout

    lost = manage(tmp_path, "token", "list")
    assert lost.returncode == 1
    assert lost.stderr.count("\n") == 1
    assert lost.stderr.startswith("manage.py: Put DATA=<folder> in front")
    assert f"no running stack was found in {tmp_path}" in lost.stderr


@pytest.mark.alone
@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)], ids=["Ctrl-C", "TERM"])
def test_it_finishes_calls_in_flight_and_goes_on_next_time(
    shared: Stack, pool: ThreadPoolExecutor, number: int, group: bool
) -> None:
    before, demo = len(shared.kinds()), shared.demo
    held = held_call(shared, pool)
    shared.end(number, group)
    answer = held.result()
    assert answer.status_code == 200, answer.text
    assert shared.left() == {}
    assert not (shared.data / "run.json").exists()
    assert shared.start() < READY_WITHIN
    assert shared.demo == demo
    wait_for_rows(shared, answer, answered(shared))
    assert len(shared.kinds()) >= before + 2


def test_a_killed_start_leaves_nothing_behind(shared: Stack, pool: ThreadPoolExecutor) -> None:
    supervisor = shared.note.supervisor.pid
    settled, held = answered(shared), held_call(shared, pool)
    os.kill(supervisor, signal.SIGKILL)
    shared.end(signal.SIGKILL, group=True)
    orphans = {name: child for name, child in shared.note.children.items() if child.alive}
    assert {"postgres", "valkey", "web", "worker", "sandbox"} <= orphans.keys()
    shared.start()
    assert "Stopping what an earlier start left running" in shared.text()
    assert not any(child.alive for child in orphans.values())
    assert held.result().status_code == 200  # the new start let it end
    wait_for_rows(shared, settled, held.result(), answered(shared))


def test_a_killed_web_worker_takes_only_its_own_calls(shared: Stack, pool: ThreadPoolExecutor) -> None:
    web = shared.note.children["web"].pid
    wait_until(lambda: len(workers(web)) == 2, what="two workers")
    before = shared.kinds()
    calls = [pool.submit(shared.post, "[sandbox delay=2s] a gem") for _ in range(8)]
    wait_until(lambda: shared.in_flight() == 8, 10, "eight calls in flight")
    sockets = workers(web)
    os.kill(max(sockets, key=sockets.__getitem__), signal.SIGKILL)
    wait_until(lambda: len(workers(web).keys() | sockets.keys()) == 3, what="a worker in its place")
    wait_until(shared.works, what="an answered call")
    reset = [call for call in calls if isinstance(call.exception(), httpx.TransportError)]
    answered = [call.result() for call in calls if call not in reset]
    assert reset
    assert [answer.status_code for answer in answered] == [200] * len(answered)
    wait_for_rows(shared, *answered)

    def unresolved() -> int:
        return sum(1 for one, kind in shared.kinds().items() if one not in before and kind == "unresolved")

    wait_until(lambda: unresolved() == len(reset), DEADLINE + MARGIN + 15, "the leases' end")


def test_it_starts_again_whatever_dies(shared: Stack) -> None:
    answers = [answered(shared) for _ in range(3)]
    children, known = shared.note.children, shared.text().count("ended unexpectedly (signal 9")
    for name in ("valkey", "postgres", "worker", "sandbox"):
        os.kill(children[name].pid, signal.SIGKILL)
    wait_until(lambda: shared.text().count("ended unexpectedly (signal 9") >= known + 4, what="four notices")
    wait_until(shared.works, 60, "an answered call")
    wait_for_rows(shared, *answers, answered(shared))


def test_it_restores_a_backup_where_there_is_no_demo(shared: Stack, tmp_path: Path) -> None:
    backup, token = tmp_path / "backup.tar.gz", shared.demo["token"]
    assert shared.manage("backup", str(backup)).returncode == 0
    with stack() as empty:  # beside the other
        cut_short = empty.launch(DEMO="no")
        wait_until(lambda: list(empty.data.glob("postgres.new*")), what="the database's birth")
        os.kill(cut_short.pid, signal.SIGKILL)
        cut_short.wait()
        empty.start(DEMO="no")
        assert empty.demo.keys() == {"url", "endpoint", "admin"}
        assert "sandbox" not in empty.note.children
        command = f"DATA={shlex.quote(str(empty.data))} .venv/bin/python manage.py createsuperuser"
        assert command in empty.text()
        done = empty.manage("restore", str(backup))
        assert (done.returncode, done.stderr) == (0, "")
        empty.end()
        empty.start()
        assert empty.post(token=token).status_code == 200
        assert shared.works()


def test_it_uses_the_servers_that_it_is_given() -> None:
    with stack() as brought:
        servers = start_servers(brought.data.with_name("servers"))
        try:
            brought.start(DATABASE_URL=servers.database_url, REDIS_URL=servers.redis_url)
            assert not {"postgres", "valkey"} & brought.note.children.keys()
            assert brought.post().status_code == 200
            for given in ({}, {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}):
                assert manage(brought.data, "token", "list", **given).returncode == 0
            brought.end()
            with psycopg.connect(servers.database_url) as connection:  # theirs goes on running
                assert connection.execute("SELECT count(*) FROM tokens_tenant").fetchone() == (1,)
        finally:
            servers.stop()


def python_for(user: account.Account) -> str:
    """A Python that the account may run with this environment's packages: root's own may be closed to it."""
    same = f"import sys; assert sys.version_info[:2] == {sys.version_info[:2]}\n"
    same += "import config, django, psycopg, redis.asyncio"  # the last one needs more on Python 3.11.2
    for python in (sys.executable, "/usr/bin/python3"):
        if user.can_run(["/usr/bin/env", f"PYTHONPATH={PACKAGES}", python, "-c", same]):
            return python
    return ""


@as_root
def test_it_runs_as_an_ordinary_user() -> None:
    user = account.for_new_data()
    assert user
    usable = python_for(user)
    if not usable:
        pytest.skip("the checkout or every Python here is closed to an ordinary user")
    options = {"PYTHONPATH": PACKAGES, "PYTHONDONTWRITEBYTECODE": "1"}
    with stack("home/data", account=user, python=usable, **options) as theirs:
        os.chown(theirs.data.parent, user.user, user.group)
        theirs.start()
        assert theirs.post().status_code == 200
        assert {path.owner() for path in theirs.data.iterdir()} == {account.user_name(user.user)}
        assert theirs.end() == 0


def half_a_database(data: Path) -> None:
    secretfiles.ensure(data, *secretfiles.MAKERS, database_exists=False)
    (data / "postgres").mkdir()
    (data / "postgres" / "PG_VERSION").write_text("18\n")


@pytest.mark.parametrize(
    ("prepare", "environment", "message"),
    [
        (half_a_database, {}, "holds no complete database"),
        (lambda data: None, {"DEMO": "maybe"}, "DEMO must be yes or no, not 'maybe'."),
        (lambda data: None, {"UPSTREAM_DEADLINE": "long"}, "UPSTREAM_DEADLINE must be a number, not 'long'."),
    ],
)
def test_it_refuses_in_one_sentence(prepare: Callable[[Path], None], environment: dict[str, str], message: str) -> None:
    with stack() as refused:
        refused.data.mkdir()
        prepare(refused.data)
        assert refused.launch(**environment).wait(30) == 1
        told = [line for line in refused.text().splitlines() if line.startswith("make run: ")]
        assert len(told) == 1
        assert message in told[0]


@pytest.mark.parametrize("name", ["initialisation", "valkey", "preparation", "web"])
def test_a_start_can_be_stopped_at_any_moment(name: str) -> None:
    with stack() as hasty:
        hasty.launch()
        wait_until(lambda: (note := runfile.read(hasty.data)) and name in note.children, 30, f"the start of {name}")
        assert hasty.end(signal.SIGINT) == 0, hasty.text()
        assert hasty.left() == {}

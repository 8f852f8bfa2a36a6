"""The embedded PostgreSQL and Valkey: as any user, in any folder, whole or not at all."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from config.supervisor import account, identity, secretfiles
from config.supervisor.errors import StartError
from config.supervisor.postgres import EmbeddedPostgres
from config.supervisor.valkey import EmbeddedValkey
from tests.embedded import data_folders, start_servers

ROOT = Path(__file__).resolve().parent.parent
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change to another user")


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


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["plain", "two words", 'quo"te\\é', "/".join(["deep" * 12] * 3)], ids=range(4))
def test_it_keeps_the_data_over_a_restart(folder: Path, name: str) -> None:
    data = folder / name
    data.mkdir(parents=True)
    for expected in (1, 2):
        postgres, valkey = EmbeddedPostgres(data, durable=False), EmbeddedValkey(data)
        try:
            postgres.start()
            valkey.start()
            with psycopg.connect(postgres.url) as connection:
                connection.execute("create table if not exists visits (at timestamptz default now())")
                connection.execute("insert into visits default values")
                assert connection.execute("select count(*) from visits").fetchone() == (expected,)
            with redis.Redis.from_url(valkey.url) as store:
                assert store.incr("visits") == expected
        finally:
            valkey.stop()
            assert postgres.stop()


def test_it_configures_the_servers_for_money(folder: Path) -> None:
    servers = start_servers(folder / "data")
    try:
        with redis.Redis.from_url(servers.redis_url, decode_responses=True) as store:
            wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "port": "0"}
            assert {name: store.config_get(name)[name] for name in wanted} == wanted
        with psycopg.connect(servers.database_url) as connection:
            assert connection.execute("show listen_addresses").fetchone() == ("",)
            assert connection.execute("show data_checksums").fetchone() == ("on",)
            assert connection.execute("select rolsuper from pg_roles where rolname = current_user").fetchone() == (
                False,
            )
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(servers.database_url.replace("gateway:", "gateway:x"))
        for server in (servers.postgres, servers.valkey):
            assert server.socket_folder
            assert mode(server.socket_folder) == 0o700
        assert mode(folder / "data" / "secrets") == 0o700
        assert {mode(secret) for secret in (folder / "data" / "secrets").iterdir()} == {0o600}
    finally:
        servers.stop()
    assert not (folder / "data").exists()


def test_its_test_servers_die_with_the_tests(folder: Path) -> None:
    script = "import sys; from pathlib import Path; from tests.embedded import start_servers\n"
    script += (
        "s = start_servers(Path(sys.argv[1])); print(s.postgres.child.identity.pid, s.valkey.child.identity.pid)\n"
    )
    script += "sys.stdout.flush(); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(folder / "data")]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.communicate()
    eventually(lambda: all(identity.identify(pid) is None for pid in pids))


@as_root
def test_it_leaves_closed_folders_closed(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    data = closed / "data"
    data.mkdir(mode=0o711)
    postgres = EmbeddedPostgres(data, durable=False)
    try:
        postgres.start()
        with psycopg.connect(postgres.url) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        assert postgres.folder.resolve().is_relative_to("/var/lib/gem-heaven-gateway")
        assert (mode(closed), mode(data)) == (0o700, 0o711)
    finally:
        postgres.stop(10)
        elsewhere = [path for path in data_folders(postgres) if path != data]
        for path in elsewhere:
            shutil.rmtree(path)
    assert elsewhere


@as_root
def test_it_runs_as_an_ordinary_user(folder: Path) -> None:
    user = account.for_new_data()
    assert user
    pythons = [sys.executable, "/usr/bin/python3"]
    search = f"{ROOT}:{sysconfig.get_path('purelib')}"
    test = "import sys; assert sys.version_info >= (3, 11); import config.supervisor"
    usable = [
        python for python in pythons if user.can_run(["/usr/bin/env", f"PYTHONPATH={search}", python, "-c", test])
    ]
    if not usable:
        pytest.skip("no Python here that an ordinary user may run")
    data = folder / "data"
    data.mkdir()
    os.chown(data, user.user, user.group)
    script = "import sys; from pathlib import Path\nfrom config.supervisor.postgres import EmbeddedPostgres as P\n"
    script += "from config.supervisor.valkey import EmbeddedValkey as V\n"
    script += "for server in (P(Path(sys.argv[1])), V(Path(sys.argv[1]))):\n server.start(); assert server.stop()"
    done = subprocess.run(
        [usable[0], "-c", script, str(data)],
        cwd="/",
        env={"PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        **account.popen_arguments(user),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_it_starts_over_after_an_initialisation_that_was_cut_short(postgres: EmbeddedPostgres) -> None:
    left = postgres.data / "postgres.new-1" / "cluster"
    left.mkdir(parents=True)
    (left / "PG_VERSION").write_text("18\n")
    postgres.start()
    assert not list(postgres.data.glob("postgres.new*"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"base/1": ""}, "holds no complete database"),
        ({"PG_VERSION": "18"}, "holds no complete database"),
        ({"PG_VERSION": "17", "global/pg_control": ""}, "made by PostgreSQL 17"),
    ],
)
def test_it_refuses_a_database_that_is_not_whole(
    postgres: EmbeddedPostgres, files: dict[str, str], message: str
) -> None:
    secretfiles.ensure(postgres.data, *secretfiles.MAKERS, database_exists=False)
    for name, content in files.items():
        path = postgres.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    with pytest.raises(StartError, match=message) as caught:
        postgres.start()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", secretfiles.TIED_TO_THE_DATABASE)
def test_it_makes_no_new_secret_for_an_old_database(folder: Path, name: str) -> None:
    secretfiles.ensure(folder, *secretfiles.MAKERS, database_exists=False)
    secretfiles.path(folder, name).unlink()
    with pytest.raises(StartError, match=f"{name} is missing"):
        secretfiles.ensure(folder, *secretfiles.MAKERS, database_exists=True)

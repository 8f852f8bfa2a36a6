"""Every store that can't keep the gateway's promises is refused, each by its own sentence."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, transaction

from config import checks
from config.supervisor.valkey import EmbeddedValkey


def found(messages: list[CheckMessage]) -> list[str | None]:
    """The ids."""
    return [message.id for message in messages]


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A store of the tests' own that they may spoil."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("own"))
    server.start()
    client = redis.Redis.from_url(server.url)
    yield client
    client.close()
    server.stop(5)


@pytest.fixture
def store(own_store: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """That store, as the checks' own and in good order again after the test."""
    monkeypatch.setattr(checks, "store", lambda: own_store)
    yield own_store
    own_store.replicaof("NO", "ONE")
    for name, value in checks.DURABILITY.items():
        own_store.config_set(name, value)


def test_a_sane_store_passes(store: redis.Redis) -> None:
    assert checks.store_problems() == []


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        ("appendonly", "no", "E103"),
        ("appendfsync", "everysec", "E104"),
        ("maxmemory-policy", "allkeys-lru", "E105"),
    ],
)
def test_a_store_that_can_lose_what_it_acknowledged_is_refused(
    store: redis.Redis, name: str, value: str, number: str
) -> None:
    store.config_set(name, value)
    (message,) = checks.store_problems()
    assert message.id == f"gateway.{number}"
    assert f"with {name} {checks.DURABILITY[name]}; it has {value}." in message.msg
    with pytest.raises(ImproperlyConfigured, match=f"must run with {name}"):
        checks.refuse_unsafe()


def test_a_replica_is_refused(store: redis.Redis) -> None:
    store.replicaof("127.0.0.1", "1")
    assert found(checks.store_problems()) == ["gateway.E102"]


def test_a_store_that_hides_its_configuration_is_warned_of(store: redis.Redis, monkeypatch: Any) -> None:
    store.acl_setuser("guest", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-config"])
    path = store.get_connection_kwargs()["path"]
    guest = redis.Redis.from_url(f"unix://guest:any@{path}")
    monkeypatch.setattr(checks, "store", lambda: guest)
    (message,) = checks.store_problems()
    assert message.id == "gateway.W102"
    assert message.hint == "Make sure of: appendonly yes, appendfsync always, maxmemory-policy noeviction."
    guest.close()
    store.acl_deluser("guest")


def test_an_old_redis_is_refused(store: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "info", lambda section: {"redis_version": "6.2.14", "role": "master"})
    assert found(checks.store_problems()) == ["gateway.E101"]


def test_a_store_that_is_down_does_not_stop_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "store", lambda: redis.Redis.from_url(f"unix://{tmp_path}/nobody"))
    assert found(checks.store_problems()) == ["gateway.W101"]
    checks.refuse_unsafe()


class Answering:
    """A PostgreSQL that this machine doesn't have: a row to answer with, or an error."""

    def __init__(self, answer: tuple[int, bool] | Exception) -> None:
        self.answer = answer
        self.statement = ""

    def cursor(self) -> "Answering":
        return self

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def execute(self, statement: str) -> None:
        self.statement = statement
        if isinstance(self.answer, Exception):
            raise self.answer

    def fetchone(self) -> object:
        return (False,) if "to_regclass" in self.statement else self.answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((170_006, False), []),
        ((160_009, False), ["gateway.E201"]),
        ((180_001, True), ["gateway.E202"]),
        (OperationalError("refused"), ["gateway.W201"]),
    ],
)
def test_postgresql_is_checked(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bool] | Exception, expected: list[str]
) -> None:
    monkeypatch.setattr(checks, "connection", Answering(answer))
    assert found(checks.database_problems()) == expected


def test_the_real_postgresql_passes() -> None:
    assert checks.database_problems() == []


def test_another_number_of_shards_is_refused(settings: Any) -> None:
    made_with, settings.SHARDS = settings.SHARDS, 8
    (message,) = checks.database_problems()
    assert message.id == "gateway.E203"
    assert message.msg == f"SHARDS is 8 but this installation was made with {made_with}."
    with pytest.raises(ImproperlyConfigured, match=f"Set SHARDS={made_with}; it can't be changed later"):
        checks.refuse_unsafe()


def test_an_installation_to_come_may_have_any_number(settings: Any) -> None:
    settings.SHARDS = 8
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM tokens_installation")
        assert checks.database_problems() == []
        cursor.execute("ALTER TABLE tokens_installation RENAME TO not_migrated_yet")
        assert checks.database_problems() == []
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    "program",
    [
        [str(Path(sys.executable).parent / "granian"), "--interface", "asgi", "--port", "0", "config.asgi:application"],
        [sys.executable, "-m", "celery", "-A", "config", "worker", "--pool", "solo", "--without-gossip"],
    ],
    ids=["web", "worker"],
)
def test_neither_web_nor_worker_starts_with_another_number(program: list[str]) -> None:
    finished = subprocess.run(
        program,
        env={**os.environ, "SHARDS": "8"},
        cwd=Path(checks.__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode != 0
    assert "SHARDS is 8 but this installation was made with 16." in finished.stdout + finished.stderr

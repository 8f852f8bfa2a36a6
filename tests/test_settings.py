"""Every unsafe or wrong setting and store is refused, each by its own sentence."""

import ipaddress
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError

from config import checks
from config.databases import database_settings
from config.environment import Environment
from config.redis import parse_address
from config.supervisor.valkey import EmbeddedValkey

ROOT = Path(__file__).resolve().parent.parent
SAFE = {
    "DEBUG": False,
    "PUBLIC_URL": "https://gateway.example",
    "ALLOWED_HOSTS": ["gateway.example"],
    "SECRET_KEY": "0123456789" * 5,
    "ENCRYPTION_KEYS": ["MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="],
    "TRUSTED_PROXIES": [ipaddress.ip_network("10.0.0.0/8")],
    "METRICS_NETWORKS": [ipaddress.ip_network("10.0.0.0/8")],
}
EVERYBODY = [ipaddress.ip_network("0.0.0.0/0")]


def manage(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``manage.py`` with the test's servers and these variables."""
    command = [sys.executable, str(ROOT / "manage.py"), *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=60)


def found(messages: list[CheckMessage]) -> list[str | None]:
    """The ids."""
    return [message.id for message in messages]


@pytest.fixture
def safe(settings: Any) -> Any:
    """Settings fit for production, to be spoilt one at a time."""
    for name, value in SAFE.items():
        setattr(settings, name, value)
    return settings


def test_sane_settings_pass(safe: Any) -> None:
    assert checks.settings_problems() == []
    checks.refuse_unsafe()


@pytest.mark.parametrize("url", ["http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"])
def test_on_this_machine_http_is_fine(safe: Any, url: str) -> None:
    safe.PUBLIC_URL, safe.DEBUG = url, True
    assert checks.settings_problems() == []


@pytest.mark.parametrize(
    ("name", "value", "number", "sentence"),
    [
        ("DEBUG", True, "E001", "DEBUG is on while PUBLIC_URL is not this machine"),
        ("PUBLIC_URL", "http://gateway.example", "E002", "PUBLIC_URL is not https://"),
        ("PUBLIC_URL", "http://192.168.1.5:8000", "E002", "PUBLIC_URL is not https://"),
        ("PUBLIC_URL", "http://127.0.0.1.example", "E002", "PUBLIC_URL is not https://"),
        ("ALLOWED_HOSTS", ["*"], "E003", "ALLOWED_HOSTS must name the hosts"),
        ("ALLOWED_HOSTS", ["gateway.example", "*"], "E003", "ALLOWED_HOSTS must name the hosts"),
        ("ALLOWED_HOSTS", [], "E003", "ALLOWED_HOSTS must name the hosts"),
        ("SECRET_KEY", "0123456789" * 4, "E004", "SECRET_KEY must have at least 50 characters"),
        ("SECRET_KEY", "abcd" * 20, "E004", "SECRET_KEY must have at least 50 characters"),
        ("ENCRYPTION_KEYS", ["short"], "E005", "ENCRYPTION_KEYS must hold Fernet keys"),
        ("ENCRYPTION_KEYS", [*SAFE["ENCRYPTION_KEYS"], "ü"], "E005", "ENCRYPTION_KEYS must hold"),  # type: ignore[misc]
        ("TRUSTED_PROXIES", EVERYBODY, "E006", "TRUSTED_PROXIES trusts every address"),
    ],
)
def test_an_unsafe_setting_is_refused(safe: Any, name: str, value: object, number: str, sentence: str) -> None:
    setattr(safe, name, value)
    (message,) = checks.settings_problems()
    assert message.id == f"gateway.{number}"
    assert message.hint
    with pytest.raises(ImproperlyConfigured, match=sentence):
        checks.refuse_unsafe()


def test_metrics_for_everybody_are_warned_of(safe: Any, caplog: pytest.LogCaptureFixture) -> None:
    safe.METRICS_NETWORKS = [ipaddress.ip_network("::/0")]
    checks.refuse_unsafe()
    assert "METRICS_NETWORKS shows the metrics to every address. (gateway.W001)" in caplog.messages


def test_a_refusal_never_shows_a_secret(safe: Any) -> None:
    safe.SECRET_KEY, safe.ENCRYPTION_KEYS = "hunter2", ["hunter3"]
    with pytest.raises(ImproperlyConfigured) as caught:
        checks.refuse_unsafe()
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("TOKEN_PEPPERS", "1:short", "TOKEN_PEPPERS must read 1:<at least 32 characters>"),
        ("TOKEN_PEPPERS", "x" * 40, "TOKEN_PEPPERS must read 1:<at least 32 characters>"),
        ("SECRET_KEY", "", "SECRET_KEY is not set."),
        ("DATABASE_URL", "sqlite:///db", "DATABASE_URL must start with postgresql://."),
        ("REDIS_URL", "memcached://", "REDIS_URL must start with redis://, rediss:// or unix://."),
        ("TRUSTED_PROXIES", "10.0.0.0/33", "TRUSTED_PROXIES must list networks such as 10.0.0.0/8"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, not LOUD."),
        ("UPSTREAM_DEADLINE", "soon", "UPSTREAM_DEADLINE must be a number, not 'soon'."),
        ("SHARDS", "0", "SHARDS must be at least 1, not 0."),
    ],
)
def test_a_wrong_value_stops_the_start_with_one_sentence(name: str, value: str, sentence: str) -> None:
    finished = manage("check", **{name: value})
    assert finished.returncode == 1
    assert finished.stderr.startswith(f"manage.py: {sentence}")
    assert finished.stderr.count("\n") == 1


def test_djangos_own_deployment_check_is_content() -> None:
    finished = manage("check", "--deploy", "--database", "default", PUBLIC_URL="https://gateway.example")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("System check identified no issues")


def test_a_value_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from the file\n")
    assert Environment({"DATABASE_URL": "", "KEY_FILE": str(tmp_path / "key")}).text("KEY") == "from the file"
    with pytest.raises(ImproperlyConfigured, match=r"KEY_FILE points at .*, which can't be read"):
        Environment({"DATABASE_URL": "", "KEY_FILE": str(tmp_path / "other")}).text("KEY")


def test_the_running_stack_stands_in_only_for_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"environment": {"DATABASE_URL": "recorded", "PUBLIC_URL": "recorded"}}')
    environment = Environment({"DATA": str(tmp_path), "PUBLIC_URL": "given"})
    assert (environment.text("DATABASE_URL"), environment.text("PUBLIC_URL")) == ("recorded", "given")
    same = Environment({"DATA": str(tmp_path), "DATABASE_URL": "recorded"})
    assert same.text("PUBLIC_URL") == "recorded"
    elsewhere = Environment({"DATA": str(tmp_path), "DATABASE_URL": "given"})
    with pytest.raises(ImproperlyConfigured, match="PUBLIC_URL is not set"):
        elsewhere.text("PUBLIC_URL")


@pytest.mark.parametrize(
    ("text", "expected"), [("1", True), ("Yes", True), ("on", True), ("0", False), ("false", False), ("", False)]
)
def test_flags(text: str, expected: bool) -> None:
    assert Environment({"DATABASE_URL": "", "FLAG": text}).flag("FLAG") is expected


@pytest.mark.parametrize(
    "read",
    [
        lambda environment: environment.flag("X"),
        lambda environment: environment.integer("X", 1),
        lambda environment: environment.number("X", 1, least=2),
    ],
)
def test_a_value_of_another_kind_is_refused(read: Callable[[Environment], object]) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"^X must be"):
        read(Environment({"DATABASE_URL": "", "X": "1.5"}))


def test_a_database_url_in_all_its_parts() -> None:
    parsed = database_settings("postgresql://us%40er:p%2Fw@db.example:5433/na%20me?sslmode=require")
    assert (parsed["USER"], parsed["PASSWORD"], parsed["HOST"]) == ("us@er", "p/w", "db.example")
    assert (parsed["PORT"], parsed["NAME"], parsed["OPTIONS"]) == ("5433", "na me", {"sslmode": "require"})


@pytest.mark.parametrize(
    ("url", "celery"),
    [
        ("redis://store:6380/3", "redis://store:6380/5"),
        ("redis://:p%40ss@store/0", "redis://:p%40ss@store:6379/5"),
        ("unix:///run/v.sock?db=3", "redis+socket:///run/v.sock?virtual_host=5"),
    ],
)
def test_a_redis_url_in_every_form(url: str, celery: str) -> None:
    assert parse_address(url).celery_url(5) == celery
    assert parse_address(parse_address(url).url()) == parse_address(url)


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

    def cursor(self) -> "Answering":
        return self

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def execute(self, _statement: str) -> None:
        if isinstance(self.answer, Exception):
            raise self.answer

    def fetchone(self) -> object:
        return self.answer


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

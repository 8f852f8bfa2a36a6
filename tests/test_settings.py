"""Every unsafe or wrong setting is refused, each by its own sentence."""

import ipaddress
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.core.exceptions import ImproperlyConfigured
from psycopg import IsolationLevel

from config import checks
from config.databases import IMPATIENT, database_settings
from config.environment import Environment
from config.redis import parse_address
from config.serverurls import split_url
from config.supervisor import variables

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
        ("IMAGE_RETENTION_DAYS", 6, "E007", "images would be gone before their URLs expire"),
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


def test_what_commands_obey_is_recorded_by_a_running_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_URL_FILE", "mail.txt")
    monkeypatch.setenv("WEBHOOK_NETWORKS", "127.0.0.0/8")
    monkeypatch.setenv("PROVIDER_API_KEY", "nobody else's business")
    recorded = variables.for_run_file(tmp_path, 8000, {"DATABASE_URL": "d", "REDIS_URL": "r"})
    assert (recorded["EMAIL_URL_FILE"], recorded["WEBHOOK_NETWORKS"]) == ("mail.txt", "127.0.0.0/8")
    assert "PROVIDER_API_KEY" not in recorded


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
    options = {**IMPATIENT, "sslmode": "require", "isolation_level": IsolationLevel.READ_COMMITTED}
    assert (parsed["PORT"], parsed["NAME"], parsed["OPTIONS"]) == ("5433", "na me", options)


PASSWORDS = [
    "hunter/2",
    "hunter#2",
    "hunter?2",
    "2/hunter",
    "2#hunter",
    "2?hunter",
    "h@unter/2",
    "[hunter",
    "hun\u2100ter",
]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "postgresql://gateway:{}@db.example:5432/gateway"),
        ("REDIS_URL", "redis://:{}@store.example:6379/0"),
        ("CACHE_URL", "rediss://:{}@cache.example:6379/0"),
        ("CELERY_BROKER_URL", "amqp://first//;amqp://gateway:{}@broker.example:5672//"),
    ],
)
def test_a_url_with_a_bare_password_is_refused_without_showing_any_of_it(name: str, url: str, password: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        for part in url.format(password).split(";"):
            split_url(name, part)
    assert str(caught.value).startswith(f"{name} can't be read: in a user name or password write / as %2F")
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter" not in shown and "hun\u2100ter" not in shown
    for part in url.format(quote(password, safe="")).split(";"):
        split_url(name, part)


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL", "CACHE_URL", "CELERY_BROKER_URL"])
def test_every_url_is_read_that_way(name: str) -> None:
    scheme = "postgresql" if name == "DATABASE_URL" else "redis"
    finished = manage("check", **{name: f"{scheme}://gateway:hunter/2@server.example/0"})
    assert finished.stderr.startswith(f"manage.py: {name} can't be read")
    assert finished.stderr.count("\n") == 1
    assert "hunter" not in finished.stderr


@pytest.mark.parametrize(
    ("url", "celery"),
    [
        ("redis://store:6380/3", "redis://store:6380/5"),
        ("redis://:p%40ss@store/0", "redis://:p%40ss@store:6379/5"),
        ("redis://us%2Fer:p%2Fss@store/0", "redis://us%2Fer:p%2Fss@store:6379/5"),
        ("unix://:p%2Fss@/run/v.sock", "redis+socket://:p%2Fss@/run/v.sock?virtual_host=5"),
        ("unix:///run/v.sock?db=3", "redis+socket:///run/v.sock?virtual_host=5"),
    ],
)
def test_a_redis_url_in_every_form(url: str, celery: str) -> None:
    assert parse_address(url).celery_url(5) == celery
    assert parse_address(parse_address(url).url()) == parse_address(url)

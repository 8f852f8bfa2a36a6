"""The commands that set a gateway up: provider, bootstrap and demo, as people and the supervisor run them.

Bootstrap and demo run in an installation of their own: they set the default model, which all others here share.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection

from config.redis import store
from gateway import catalog
from gateway.catalog import Catalog
from gateway.models import Provider, ProviderKey
from tests.owndatabase import drop_database
from tokens.admission import keys
from tokens.secrets import digest

KEY = "sk-of-the-provider-0123456789"
STORE_DATABASE = 9  # of the run's Valkey, used by nobody else


def catalog_in(client: "redis.Redis") -> Catalog:
    raw = client.get(keys.CATALOG)
    assert isinstance(raw, bytes)
    return catalog.parse(raw)


@pytest.fixture
def name() -> str:
    """A name that no other test has."""
    return f"c{uuid.uuid4().hex[:12]}"


@dataclass
class Installation:
    """A database and a store of one's own, and the folder with its secret files."""

    database_url: str
    redis_url: str
    folder: Path

    def manage(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run manage.py, which must succeed."""
        done = self.run(*words, **variables)
        assert done.returncode == 0, done.stderr
        return done

    def refusal(self, *words: str, **variables: str) -> str:
        """Run manage.py, which must fail with a sentence; what it says."""
        done = self.run(*words, **variables)
        assert done.returncode == 1, done.stdout
        return done.stderr

    def run(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run manage.py in this installation's environment; it never shows a traceback."""
        environment = {**os.environ, "DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url, **variables}
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            env=environment,
            cwd=settings.BASE_DIR,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    def demo(self, *more: str) -> dict[str, Any]:
        """Run the demo command, with the sandbox at another port each time."""
        options = ["--sandbox-url", "http://127.0.0.1:9", "--sandbox-key-file", self.file("sandbox-key", KEY)]
        options += ["--admin-password-file", self.file("password", "a long password")]
        output = self.manage("demo", *options, *more).stdout
        assert output.count("\n") == 1
        answer: dict[str, Any] = json.loads(output)
        return answer

    def file(self, name: str, content: str) -> str:
        """A file with a secret; its path."""
        path = self.folder / name
        path.write_text(f"{content}\n")
        return str(path)

    def query(self, sql: str, *arguments: Any) -> list[Any]:
        """The rows that a query finds; of one column the values."""
        with psycopg.connect(self.database_url) as database:
            rows = database.execute(sql, arguments).fetchall()
        return [row[0] if len(row) == 1 else row for row in rows]

    def store(self) -> "redis.Redis":
        """Its admission store."""
        client: redis.Redis = redis.Redis.from_url(self.redis_url)
        return client


@pytest.fixture(scope="module")
def installation(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """A migrated and bootstrapped installation, empty otherwise."""
    name = f"setup_{uuid.uuid4().hex[:12]}"
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    found = Installation(
        os.environ["DATABASE_URL"].replace("@/gateway?", f"@/{name}?"),
        settings.REDIS_URL.replace("?db=0", f"?db={STORE_DATABASE}"),
        tmp_path_factory.mktemp("setup"),
    )
    assert found.redis_url != settings.REDIS_URL and name in found.database_url
    found.store().flushdb()
    found.manage("migrate", "--no-input")
    found.manage("bootstrap")
    yield found
    found.store().flushdb()
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        drop_database(cursor, name)


def test_migrations_need_no_superuser() -> None:
    """The one extension, pg_trgm, is one that the owner of a database may create."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT r.rolsuper, v.trusted FROM pg_roles r, pg_extension e JOIN pg_available_extension_versions v"
            " ON v.name = e.extname AND v.version = e.extversion"
            " WHERE r.rolname = current_user AND e.extname NOT IN ('plpgsql')"
        )
        assert cursor.fetchall() == [(False, True)]


def test_bootstrap_can_be_repeated_and_repairs_the_store(installation: Installation) -> None:
    client = installation.store()
    assert client.hget(keys.DIRECTORY, "complete") == b"1"
    assert catalog_in(client) is not None
    assert len(installation.query("SELECT 1 FROM pg_inherits WHERE inhparent = 'usage_record'::regclass")) >= 5
    installation.demo()
    records = sorted(key for key in client.scan_iter() if b":token:" in key or b":tenant:" in key)
    assert records
    client.flushdb()
    installation.manage("bootstrap")
    assert sorted(key for key in client.scan_iter() if b":token:" in key or b":tenant:" in key) == records
    assert catalog_in(client).models.keys() >= {"gem-1"}
    generation = client.hget(keys.meta(0), "generation")
    installation.manage("bootstrap")
    assert client.hget(keys.meta(0), "generation") == generation, "what is whole stays as it is"


def test_bootstrap_sets_the_provider_of_the_environment(installation: Installation) -> None:
    given = {"PROVIDER_BASE_URL": "https://images.example/v1/", "PROVIDER_MODEL": "gpt-image-1-mini"}
    key_file = installation.file("provider-key", KEY)
    for _ in range(2):
        output = installation.manage("bootstrap", **given, PROVIDER_API_KEY_FILE=key_file)
        assert "gpt-image-1-mini of https://images.example/v1" in output.stdout
        assert KEY not in output.stdout + output.stderr
    model = catalog_in(installation.store()).pick("")
    assert model is not None
    assert (model.provider, model.base_url, model.key) == ("environment", "https://images.example/v1", KEY)
    assert model.sizes["1024x1024"] == 4160
    assert installation.query("SELECT count(*) FROM gateway_providerkey WHERE label = 'key 2'") == [0]
    installation.query("UPDATE gateway_modelsize SET most_tokens = 5555 WHERE size = '1024x1024' RETURNING id")
    installation.manage("bootstrap", **given, PROVIDER_API_KEY="another-key")
    model = catalog_in(installation.store()).pick("")
    assert model is not None
    assert (model.key, model.sizes["1024x1024"]) == ("another-key", 5555), "a bound that people raised must stay"


def test_bootstrap_refuses_another_number_of_shards(installation: Installation) -> None:
    refused = installation.refusal("bootstrap", SHARDS="8")
    assert "SHARDS is 8 but this installation was made with 16" in refused


def test_bootstrap_says_when_the_store_is_away(installation: Installation) -> None:
    refused = installation.refusal("bootstrap", REDIS_URL="unix:///tmp/there-is-no-such-socket")
    assert "The admission store at REDIS_URL did not answer" in refused


def test_the_demo_can_be_repeated(installation: Installation) -> None:
    first = installation.demo()
    assert first.keys() == {"token", "tenant", "user", "admin_username"}
    assert (first["tenant"], first["user"], first["admin_username"]) == (
        "demo",
        "demo@example.com",
        "admin@example.com",
    )
    pepper = settings.TOKEN_PEPPERS[1]
    assert installation.store().exists(keys.locator(digest(first["token"], pepper)))
    token_file = installation.file("token", first["token"])
    assert installation.demo("--token-file", token_file) == first, "a token that works is kept"

    installation.query("UPDATE tokens_proxytoken SET status = 'revoked' RETURNING id")
    second = installation.demo("--token-file", token_file)
    assert second["token"] != first["token"]
    useless = installation.file("token", "gem_nonsense")
    assert installation.demo("--token-file", useless)["token"] not in {first["token"], second["token"]}
    assert installation.query("SELECT slug, origins, status FROM tokens_tenant") == [("demo", ["*"], "active")]
    assert sorted(installation.query("SELECT metric, amount, period FROM tokens_limit")) == [
        ("concurrent", 16, ""),
        ("images", 1000, "day"),
        ("requests", 300, "minute"),
        ("tokens", 5_000_000, "month"),
    ]
    assert installation.query("SELECT email, is_superuser, is_staff FROM tokens_user ORDER BY email") == [
        ("admin@example.com", True, True),
        ("demo@example.com", False, False),
    ]
    assert [str(price) for price in installation.query("SELECT per_image FROM usage_price")] == ["0.04000000"]
    model = catalog_in(installation.store()).models["gem-1"]
    assert (model.base_url, model.key, model.answer_form) == ("http://127.0.0.1:9/v1", KEY, "b64_json")
    assert dict(model.sizes)["512x512"] == 2400


def test_what_people_change_in_the_demo_stays(installation: Installation) -> None:
    installation.demo()
    installation.query("UPDATE tokens_limit SET amount = 7 WHERE metric = 'images' RETURNING id")
    (before,) = installation.query("SELECT password FROM tokens_user WHERE email = 'admin@example.com'")
    installation.demo()
    assert installation.query("SELECT amount FROM tokens_limit WHERE metric = 'images'") == [7]
    assert installation.query("SELECT password FROM tokens_user WHERE email = 'admin@example.com'") == [before]
    installation.query("UPDATE tokens_limit SET amount = 1000 WHERE metric = 'images' RETURNING id")


def test_the_demo_refuses_with_a_sentence_and_changes_nothing(tmp_path: Path) -> None:
    good, empty = tmp_path / "good", tmp_path / "empty"
    good.write_text(KEY)
    empty.write_text("\n")
    before = list(Provider.objects.order_by("id").values_list("name", "base_url"))
    for option, value, sentence in [
        ("--sandbox-key-file", "/no/such/file", "/no/such/file can't be read"),
        ("--admin-password-file", str(empty), "needs a password"),
        ("--sandbox-url", "nowhere", "This is not a base URL"),
    ]:
        given = {"--sandbox-url": "http://images:9", "--sandbox-key-file": str(good)}
        given |= {"--admin-password-file": str(good), option: value}
        with pytest.raises(CommandError, match=sentence):
            call_command("demo", *[word for pair in given.items() for word in pair])
    assert list(Provider.objects.order_by("id").values_list("name", "base_url")) == before


def test_the_provider_command(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(f"{KEY}\n")
    command = ["provider", "set", name, "--base-url", "http://images:1/v1", "--model", f"{name}/x.1"]
    call_command(*command, "--key-file", str(key_file), "--size", "512x512=40", "--size", "auto=90")
    call_command(*command, "--upstream-name", "drawer")
    model = catalog_in(store()).models[f"{name}/x.1"]
    assert (model.key, model.upstream_name, dict(model.sizes)) == (KEY, "drawer", {"512x512": 40, "auto": 90})
    call_command(*command, "--size", "512x512=50")
    assert dict(catalog_in(store()).models[f"{name}/x.1"].sizes) == {"512x512": 50}
    assert catalog_in(store()).models[f"{name}/x.1"].upstream_name == "drawer"
    assert ProviderKey.objects.filter(provider__name=name).count() == 1
    capsys.readouterr()
    call_command("provider", "list")
    shown = capsys.readouterr().out
    assert f"{name}  http://images:1/v1  {name}/x.1  drawer  512x512=50\n" in shown
    assert KEY not in shown


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--base-url", "images"], "This is not a base URL"),
        (["--key-file", "/no/such/file"], "can't be read"),
        (["--key-file", "EMPTY"], "visible ASCII"),
        (["--model", "a b"], "Letters, digits"),
        (["--size", "big=4"], "Such as 1024x1024"),
        (["--size", "64x64=0"], "greater than or equal to 1"),
        (["--size", "64x64"], "doesn't read SIZE=TOKENS"),
    ],
)
def test_the_provider_command_refuses_with_a_sentence(
    name: str, tmp_path: Path, options: list[str], sentence: str
) -> None:
    good, empty = tmp_path / "key", tmp_path / "empty"
    good.write_text(KEY)
    empty.write_text("\n")
    given = {"--base-url": "http://images:1/v1", "--key-file": str(good), "--model": name}
    given.update(dict(zip(options[::2], options[1::2], strict=True)))
    words = [str(empty) if word == "EMPTY" else word for pair in given.items() for word in pair]
    with pytest.raises(CommandError, match=sentence):
        call_command("provider", "set", name, *words)
    assert not Provider.objects.filter(name=name).exists(), "half of it stayed"

"""``manage.py backup`` and ``restore``: from one database and store into others, by the command line."""

import io
import json
import os
import secrets
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
import redis
from cryptography.fernet import Fernet

from tests import stack
from tests.owndatabase import drop_database
from usage.archive import Writer

ROOT = Path(__file__).resolve().parent.parent
SECRETS = ("SECRET_KEY", "TOKEN_PEPPERS", "ENCRYPTION_KEYS")
FIGURES = "SELECT string_agg(t::text, E'\\n' ORDER BY t::text) FROM {} t"
COUNTED = ("tokens_tenant", "tokens_user", "tokens_secret", "usage_record", "usage_eventreceipt", "auth_permission")
RECORDS = 20_000

# An installation that has run for months has a partition for each.
PARTITIONS = """
import datetime as dt
from usage.partitions import create_partitions
create_partitions(dt.date.today() - dt.timedelta(days=62))
"""

RESTORE_EACH = """
import json, pathlib
from django.core.management import CommandError, call_command
said = []
for path in sorted(pathlib.Path({folder!r}).glob("bad-*")):
    try:
        call_command("restore", path)
        said.append("restored")
    except CommandError as exc:
        said.append(str(exc))
print(json.dumps(said))
"""

# A tenant with a name that tries COPY's escapes, a token, and ledger rows of two past months and this one.
FILL = f"""
INSERT INTO usage_record (request_id, kind, number, outcome, tenant_id, member_id, token_id, model, size, n, images,
    charged_tokens, provenance, quality, unpriced, day, booked_day, currency,
    provider, provider_request_id, latency_ms, reason, at,
    recorded_at, generation)
SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || '7000' || '8000'
        || lpad(to_hex(i), 12, '0'))::uuid,
    'exact', 0, 'exact', tenant.id, member.id, token.id, 'demo', '512x512', 1, 1, 100 + i, 'reported', '', 'no_price',
    moment::date, moment::date, '', 'sandbox', '', 5, E'a\\tb\\\\c\\nd', moment, moment, ''
FROM tokens_tenant tenant, tokens_membership member, tokens_proxytoken token,
    (SELECT i, now() - (i % 3) * interval '31 days' AS moment FROM generate_series(1, {RECORDS}) i) calls
"""


@dataclass
class Installation:
    """A database, a store and a data folder of their own, with their own secrets."""

    name: str
    folder: Path
    store: int
    secrets: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.url = stack.SERVERS.database_url.replace("/gateway?", f"/{self.name}?")
        self.environment = {
            **os.environ,
            **self.secrets,
            "DATA": str(self.folder),
            "DATABASE_URL": self.url,
            "REDIS_URL": stack.SERVERS.redis_url.replace("db=0", f"db={self.store}"),
        }

    def manage(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``manage.py``."""
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        variables = {**self.environment, **environment}
        return subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=60)

    def ask(self, statement: str) -> object:
        """The first column of a statement's first row."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None

    def content(self) -> dict[str, object]:
        """The whole text of the tables that matter."""
        return {table: self.ask(FIGURES.format(table)) for table in COUNTED}


def make_secrets() -> dict[str, str]:
    """An installation's secrets."""
    values = (secrets.token_hex(32), f"1:{secrets.token_hex(32)}", Fernet.generate_key().decode())
    return dict(zip(SECRETS, values, strict=True))


@pytest.fixture
def installations(tmp_path: Path) -> Iterator[tuple[Installation, Installation]]:
    """One with data, and a migrated empty one."""
    made = []
    clients = [redis.Redis.from_url(stack.SERVERS.redis_url.replace("db=0", f"db={number}")) for number in (12, 13)]
    for client in clients:
        client.flushdb()
    with psycopg.connect(stack.SERVERS.database_url, autocommit=True) as connection:
        for number in (12, 13):
            name = f"backup_{number}"
            drop_database(connection, name)
            connection.execute(f"CREATE DATABASE {name}".encode())
            made.append(Installation(name, tmp_path / name, number, make_secrets()))
    for installation in made:
        finished = installation.manage("migrate", "--verbosity", "0")
        assert finished.returncode == 0, finished.stderr
    source, target = made
    for arguments in (
        ("bootstrap",),
        ("shell", "--no-imports", "--command", PARTITIONS),
        ("tenant", "create", "acme", "--name", "Acme\\N \\. Ünïcode", "--timezone", "Europe/Berlin"),
        ("token", "issue", "--tenant", "acme", "--user", "alice@acme.test", "--name", "ci"),
    ):
        finished = source.manage(*arguments)
        assert finished.returncode == 0, finished.stderr
    with psycopg.connect(source.url) as connection:
        connection.execute(FILL.encode())
    yield source, target
    with psycopg.connect(stack.SERVERS.database_url, autocommit=True) as connection:
        for installation in made:
            # Not by force, which may not end a vacuum that PostgreSQL itself began; without, it steps aside.
            connection.execute(f"DROP DATABASE {installation.name}".encode())
    for client in clients:
        client.flushdb()
        client.close()


def members(path: Path) -> dict[str, bytes]:
    """An archive's members."""
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_it_restores_the_same_content_or_nothing(
    installations: tuple[Installation, Installation], tmp_path: Path
) -> None:
    source, target = installations
    file = tmp_path / "gateway.backup"
    (source.folder / "images" / "2026-11-22").mkdir(parents=True)
    (source.folder / "images" / "2026-11-22" / "a.png").write_bytes(b"four")

    finished = source.manage("backup", str(file))
    assert finished.returncode == 0, finished.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    archive = members(file)
    assert json.loads(archive["settings.json"]) == source.secrets
    assert archive["images/000000"] == b"2026-11-22/a.png\t4\n"

    again = source.manage("backup", str(file))
    assert again.returncode == 1
    assert again.stderr == f"CommandError: {file} exists; a backup doesn't replace a file.\n"

    cut = tmp_path / "cut.backup"
    cut.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    refused = target.manage("restore", str(cut))
    assert refused.stderr == f"CommandError: {cut} is not a backup, or is damaged or cut off.\n"
    assert target.ask("SELECT count(*) FROM tokens_tenant") == 0

    rows_missing = tmp_path / "rows-missing.backup"
    secret_rows = next(name for name in archive if name.startswith("tables/tokens_secret"))
    write(rows_missing, {name: content for name, content in archive.items() if name != secret_rows})
    refused = target.manage("restore", str(rows_missing))
    assert refused.stderr == f"CommandError: {rows_missing} is incomplete; nothing was restored.\n"
    assert target.ask("SELECT count(*) FROM tokens_tenant") == 0

    restored = target.manage("restore", str(file))
    assert restored.returncode == 0, restored.stderr
    assert "1 of the backup's images are not in" in restored.stdout
    assert "Set SECRET_KEY, TOKEN_PEPPERS, ENCRYPTION_KEYS to the values" in restored.stdout
    assert target.content() == source.content()
    assert target.ask("SELECT count(*) FROM usage_record") == RECORDS
    assert target.ask("SELECT count(*) FROM usage_record_default") == 0, "the past months have their partitions"

    # Sequences go on where they were: a new row doesn't collide with a restored one.
    issued = target.manage("tenant", "create", "other", "--name", "Other", **source.secrets)
    assert issued.returncode == 0, issued.stderr

    refused = target.manage("restore", str(file))
    assert refused.stderr == "CommandError: The admission store (REDIS_URL) is not empty: restore beside a new one.\n"
    redis.Redis.from_url(target.environment["REDIS_URL"]).flushdb()
    refused = target.manage("restore", str(file))
    assert refused.stderr.startswith("CommandError: The database is not empty (there are rows in ")
    assert target.ask("SELECT count(*) FROM tokens_tenant") == 2


def write(path: Path, archive: dict[str, bytes]) -> None:
    """Write an archive of these members."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in archive.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def damaged(archive: dict[str, bytes]) -> Iterator[tuple[dict[str, bytes], str]]:
    """Archives that are foreign or damaged, and what is said of each."""
    table = next(name for name in archive if name.startswith("tables/tokens_tenant"))
    manifest, kept, end = (json.loads(archive[f"{name}.json"]) for name in ("manifest", "settings", "end"))
    unreadable = "This is not a backup of the gateway, or it is damaged: {} can't be read."
    for name in ("manifest.json", "settings.json", "end.json"):
        for content in (b"{", b"{}", b"[]", b'{"format": "\xff"}', b""):
            yield {**archive, name: content}, unreadable.format(name)
    for name, whole in (("manifest.json", manifest), ("settings.json", kept), ("end.json", end)):
        for key in whole.keys() - {"created_at"}:
            less = json.dumps({other: whole[other] for other in whole if other != key}).encode()
            yield {**archive, name: less}, unreadable.format(name)
    yield {"readme.txt": b"hello"}, "This is not a backup of the gateway: manifest.json is missing."
    for name in ("tables/letters/000000", "letters.txt"):
        yield {**archive, name: b"1\n"}, f"holds {name.removesuffix('/000000')}, which is no table of the gateway."
    yield {**archive, table: b"\x00\xff\tnonsense\n"}, "Nothing was restored: the database refused it ("
    sequences = json.dumps({**end, "sequences": {"no_such_sequence": 1}}).encode()
    yield {**archive, "end.json": sequences}, "Nothing was restored: the database refused it ("
    partitions = json.dumps({**manifest, "partitions": ["usage_record_0000_99", "usage_record_9999_12"]}).encode()
    yield {**archive, "manifest.json": partitions, table: b""}, "is incomplete; nothing was restored."


def test_a_foreign_or_damaged_backup_is_refused_in_one_sentence(
    installations: tuple[Installation, Installation], tmp_path: Path
) -> None:
    source, target = installations
    assert source.manage("backup", str(tmp_path / "good")).returncode == 0
    cases = list(damaged(members(tmp_path / "good")))
    assert len(cases) > 25
    # One process for all: the command itself, as manage.py runs it.
    for number, (archive, _) in enumerate(cases):
        write(tmp_path / f"bad-{number:02}", archive)
    finished = target.manage("shell", "--no-imports", "--command", RESTORE_EACH.format(folder=str(tmp_path)))
    assert finished.returncode == 0, finished.stderr
    said = json.loads(finished.stdout)
    assert [sentence for (_, sentence), text in zip(cases, said, strict=True) if sentence not in text] == []
    assert [text for text in said if "\n" in text or any(secret in text for secret in source.secrets.values())] == []
    assert target.ask("SELECT count(*) FROM tokens_tenant") == 0


def test_a_backup_and_its_name_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda number: written.append(Path(f"/proc/self/fd/{number}").readlink()))
    writer = Writer(tmp_path / "gateway.backup")
    writer.add_json("manifest.json", {})
    writer.finish()
    assert written == [tmp_path / "gateway.backup", tmp_path]


def test_it_puts_the_secrets_back_in_the_data_folder_of_make_run(
    installations: tuple[Installation, Installation], tmp_path: Path
) -> None:
    source, target = installations
    file = tmp_path / "gateway.backup"
    assert source.manage("backup", str(file)).returncode == 0
    folder = target.folder / "secrets"
    folder.mkdir()
    names = dict(zip(SECRETS, ("secret_key", "token_peppers", "encryption_keys"), strict=True))
    for setting, name in names.items():
        (folder / name).write_text(target.secrets[setting] + "\n")
    restored = target.manage("restore", str(file))
    assert restored.returncode == 0, restored.stderr
    assert "Set SECRET_KEY" not in restored.stdout
    for setting, name in names.items():
        assert (folder / name).read_text() == source.secrets[setting] + "\n"
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    token = source.ask("SELECT digest FROM tokens_secret")
    assert redis.Redis.from_url(target.environment["REDIS_URL"]).get(f"token:{token}") is not None


def test_it_refuses_what_is_no_backup(tmp_path: Path) -> None:
    file = tmp_path / "nonsense"
    file.write_bytes(b"nonsense")
    command = [sys.executable, str(ROOT / "manage.py"), "restore", str(file)]
    finished = subprocess.run(command, env=dict(os.environ), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1
    assert finished.stderr.startswith("CommandError: ")
    assert finished.stderr.count("\n") == 1

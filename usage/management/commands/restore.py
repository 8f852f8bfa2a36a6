"""``manage.py restore FILE``."""

import datetime as dt
import os
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
import redis
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection, transaction
from django.db.backends.utils import CursorWrapper
from psycopg import sql

from config.redis import store
from tokens.admission.connection import StoreUnavailable
from usage import archive, guardian
from usage.management.commands.backup import current_secrets
from usage.partitions import create_partitions

# What `migrate` and `bootstrap` put into an empty database; a backup has its own. Deleted in this order.
PREPARED = ("auth_permission", "django_content_type", "tokens_installation")
SECRET_FILES = {"SECRET_KEY": "secret_key", "TOKEN_PEPPERS": "token_peppers", "ENCRYPTION_KEYS": "encryption_keys"}


class Command(BaseCommand):
    """Fill an empty, migrated database from a backup."""

    help = (
        "Read the backup FILE into a database that is migrated and otherwise empty, all or nothing, and publish its"
        " tokens to the admission store. The store must be empty, too. Restart the gateway afterwards."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path, help="What manage.py backup wrote")

    def handle(self, *args: Any, file: Path, **options: Any) -> None:
        try:
            refuse_used_store()
            restored = restore(file)
        except archive.DamagedArchive as exc:
            raise CommandError(str(exc)) from exc
        except (DatabaseError, psycopg.Error) as exc:  # COPY's come as they are; their text would show rows
            raise CommandError(f"Nothing was restored: the database refused it{_state(exc)}.") from exc
        except redis.RedisError as exc:
            raise CommandError(f"Nothing was restored: the admission store {_failure(exc)}.") from exc
        except OSError as exc:
            raise CommandError(f"Nothing was restored: {exc.filename or file}: {exc.strerror}.") from exc
        try:
            # Nothing can be in flight for tenants that the store doesn't know, so no lease is waited for.
            guardian.start_over()
        except (redis.RedisError, StoreUnavailable) as exc:
            text = f"The database is restored, the admission store {_failure(exc)}: run manage.py bootstrap."
            raise CommandError(text) from exc
        self.stdout.write(f"{restored.rows} rows restored.")
        if restored.missing_images:
            text = f"{restored.missing_images} of the backup's images are not in {settings.IMAGE_ROOT}: copy them."
            self.stdout.write(text)
        if restored.settings_to_set:
            names = ", ".join(restored.settings_to_set)
            self.stdout.write(f"Set {names} to the values that stand in settings.json of the backup.")
        self.stdout.write("Restart the gateway.")


def _state(exc: Exception) -> str:
    """PostgreSQL's five characters for what is wrong, in brackets; its words could show rows."""
    code = getattr(exc, "sqlstate", None) or getattr(exc.__cause__, "sqlstate", None)
    return f" (SQLSTATE {code})" if code else ""


def _failure(exc: Exception) -> str:
    return "refused a command" if isinstance(exc, redis.ResponseError) else "did not answer"


@dataclass(frozen=True)
class Restored:
    """What a restore did: rows copied, images of the backup's list that aren't here, settings left for people."""

    rows: int
    missing_images: int
    settings_to_set: list[str]


def refuse_used_store() -> None:
    """Raise CommandError when the store knows a tenant: its counters and usage would be taken for the restored ones."""
    for _key in store().scan_iter(match="*tenant:*", count=1000):
        raise CommandError("The admission store (REDIS_URL) is not empty: restore beside a new one.")


def restore(file: Path) -> Restored:
    """Read the archive into the database, in one transaction; with `make run`'s own secrets, put the old ones back.

    Raises:
        CommandError: the database isn't empty, or isn't at the backup's version.
        archive.DamagedArchive: the file isn't whole; nothing was changed.
    """
    members = archive.read_members(file)
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        manifest = archive.decode("manifest.json", expect(members, "manifest.json"), archive.Manifest)
        secrets = archive.decode("settings.json", expect(members, "settings.json"), archive.Secrets)
        refuse_other_version(manifest, archive.tables(cursor))
        refuse_used_database(cursor, manifest.tables)
        prepare(cursor, manifest.partitions)
        rows, missing, end = dict.fromkeys(manifest.tables, 0), 0, None
        for name, parts in groupby(members, key=lambda member: member[0].rpartition("/")[0] or member[0]):
            if name == "images":
                missing = sum(count_missing(content) for _, content in parts)
            elif name == "end.json":
                end = archive.decode(name, next(parts)[1], archive.End)
            else:
                table = name.removeprefix("tables/")
                if table not in manifest.tables:
                    raise archive.DamagedArchive(f"{file} holds {name}, which is no table of the gateway.")
                rows[table] = copy_in(cursor, table, manifest.tables[table], (content for _, content in parts))
        if end is None or end.rows != rows:
            raise archive.DamagedArchive(f"{file} is incomplete; nothing was restored.")
        for sequence, value in end.sequences.items():
            cursor.execute("SELECT setval(%s::regclass, %s)", [connection.ops.quote_name(sequence), value])
        return Restored(sum(rows.values()), missing, put_back(secrets))


def expect(members: Iterator[tuple[str, bytes]], name: str) -> bytes:
    """The next member, which must be `name`."""
    found, content = next(members, ("", b""))
    if found != name:
        raise archive.DamagedArchive(f"This is not a backup of the gateway: {name} is missing.")
    return content


def refuse_other_version(manifest: archive.Manifest, tables: dict[str, list[str]]) -> None:
    """Raise CommandError unless backup and database have the same migrations, tables and number of shards."""
    if manifest.format != archive.FORMAT or manifest.migrations != archive.migrations():
        raise CommandError(
            "The backup was made by another version of the gateway: restore it with that version, then upgrade."
        )
    if manifest.tables != tables:
        raise CommandError("The database's tables are not those of the backup: migrate an empty database first.")
    if manifest.shards != settings.SHARDS:
        raise CommandError(f"The backup was made with SHARDS={manifest.shards}: set that.")


def refuse_used_database(cursor: CursorWrapper, tables: dict[str, list[str]]) -> None:
    """Raise CommandError when a table has rows that `migrate` and `bootstrap` don't make."""
    for table in tables:
        if table in PREPARED:
            continue
        cursor.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(table)))
        if cursor.fetchone() == (True,):
            raise CommandError(f"The database is not empty (there are rows in {table}): restore into a new one.")


def prepare(cursor: CursorWrapper, partitions: list[str]) -> None:
    """Make room for what a backup brings itself, and the partitions for its months."""
    for table in PREPARED:
        cursor.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
    for name in partitions:
        month = re.fullmatch(r"usage_record_(20[0-9]{2})_(0[1-9]|1[0-2])", name)
        if month:
            create_partitions(dt.date(int(month[1]), int(month[2]), 1))


def copy_in(cursor: CursorWrapper, table: str, columns: list[str], parts: Iterator[bytes]) -> int:
    """Copy a table's rows in; returns their number."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    rows = 0
    with cursor.copy(statement) as copy:
        for part in parts:
            copy.write(part)
            rows += part.count(b"\n")  # a line end within a value is written as \n, two characters
    return rows


def count_missing(lines: bytes) -> int:
    """How many of these listed images are not in the image folder."""
    names = (os.fsdecode(line.partition(b"\t")[0]) for line in lines.splitlines())
    return sum(1 for name in names if not (settings.IMAGE_ROOT / name).is_file())


def put_back(secrets: archive.Secrets) -> list[str]:
    """Write the backup's secrets where `make run` keeps its own; returns the settings that a person has to set.

    Written before the transaction commits: secrets without rows do no harm, rows without their secrets are lost.
    """
    current = current_secrets()
    changed = [name for name in SECRET_FILES if getattr(secrets, name) != current[name]]
    if not are_own_secrets():
        return changed
    for name in changed:
        write_private(settings.DATA / "secrets" / SECRET_FILES[name], getattr(secrets, name) + "\n")
    return []


def are_own_secrets() -> bool:
    """Whether this process's secrets come from the data folder of `make run`."""
    try:
        return (settings.DATA / "secrets" / "secret_key").read_text(encoding="utf-8").strip() == settings.SECRET_KEY
    except OSError:
        return False


def write_private(target: Path, text: str) -> None:
    """Replace a file of mode 0600, whole or not at all, on disk before this returns."""
    aside = target.with_name(f".{target.name}.restored")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(target)
    archive.sync_folder(target.parent)

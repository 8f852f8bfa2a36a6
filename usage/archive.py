"""The file that ``manage.py backup`` writes and ``manage.py restore`` reads.

A gzip-compressed tar, written and read from front to back, so that neither a table nor the list of images is ever
held in memory. Its members, in this order:

    manifest.json           format, created_at, shards, migrations, tables with their columns, the ledger's partitions
    settings.json           SECRET_KEY, TOKEN_PEPPERS, ENCRYPTION_KEYS as the settings take them
    images/000000 ...       one line an image: path below IMAGE_ROOT, tab, bytes
    tables/<name>/000000    rows as PostgreSQL's COPY writes them (text format), a table's parts one after the other,
                            tables that others refer to first
    end.json                rows of each table and where the sequences stand; a file without it is incomplete
"""

import gzip
import io
import json
import os
import tarfile
import time
import zlib
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.db.migrations.recorder import MigrationRecorder

FORMAT = 1
PART_BYTES = 4 * 1024 * 1024
COMPRESSION = 3  # of 9: a third of the time of the default, a tenth more bytes
LEDGER = "usage_record"
STATEMENTS = "usage_statement"  # after the books, which take no rows of a closed month
BOOKS = (LEDGER, "usage_dailyusage")

# Not in a backup: the restored database has its own migrations, and everybody signs in again.
LEFT_OUT = ("django_migrations", "django_session")

TABLES = """
SELECT c.relname, array_agg(a.attname ORDER BY a.attnum)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND c.relname <> ALL(%s)
GROUP BY c.relname ORDER BY c.relname
"""
REFERENCES = """
SELECT a.relname, b.relname
FROM pg_constraint f JOIN pg_class a ON a.oid = f.conrelid JOIN pg_class b ON b.oid = f.confrelid
WHERE f.contype = 'f' AND f.conrelid <> f.confrelid AND a.relnamespace = current_schema()::regnamespace
"""
PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY 1"
SEQUENCES = "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = current_schema() AND last_value > 0"


class DamagedArchive(Exception):
    """The file isn't a backup of ours, or not a whole one; the message says which."""


class Manifest(msgspec.Struct):
    """What a restore reads of manifest.json. `migrations` are [app, name] each, `tables` have their columns."""

    format: int
    shards: int
    migrations: list[list[str]]
    tables: dict[str, list[str]]
    partitions: list[str]


class Secrets(msgspec.Struct):
    """settings.json: the settings without which the rows can't be used, as the environment takes them."""

    SECRET_KEY: str
    TOKEN_PEPPERS: str
    ENCRYPTION_KEYS: str


class End(msgspec.Struct):
    """end.json: the number of rows of each table, the last value of each sequence that was used."""

    rows: dict[str, int]
    sequences: dict[str, int]


Part = TypeVar("Part", Manifest, Secrets, End)


def decode(name: str, content: bytes, kind: type[Part]) -> Part:
    """The content of the JSON member `name`. Raises DamagedArchive when that isn't what the member must hold."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):  # their text, and the content in a traceback, could show a secret
        pass
    raise DamagedArchive(f"This is not a backup of the gateway, or it is damaged: {name} can't be read.")


class Writer:
    """Writes a new archive, mode 0600. Raises FileExistsError rather than replace a file. Close it with `finish`."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._folder = path.parent
        self._file = os.fdopen(descriptor, "wb")
        self._gzip = gzip.GzipFile(fileobj=self._file, mode="wb", compresslevel=COMPRESSION)
        self._tar = tarfile.open(fileobj=self._gzip, mode="w|")  # noqa: SIM115 - closed by `finish`

    def add(self, name: str, content: bytes) -> None:
        """Add a member."""
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = len(content), 0o600, int(time.time())
        self._tar.addfile(member, io.BytesIO(content))

    def add_json(self, name: str, content: Any) -> None:
        """Add a member that holds JSON."""
        self.add(name, json.dumps(content).encode())

    def add_parts(self, name: str, chunks: Iterable[bytes | memoryview]) -> int:
        """Add members ``name/000000`` and so on of about `PART_BYTES`, whole chunks each; returns how many lines."""
        lines = number = 0
        part = bytearray()
        for chunk in chunks:
            part += chunk
            if len(part) >= PART_BYTES:
                lines += self._add_part(name, number, part)
                number += 1
                part = bytearray()
        return lines + (self._add_part(name, number, part) if part else 0)

    def _add_part(self, name: str, number: int, part: bytearray) -> int:
        self.add(f"{name}/{number:06}", bytes(part))
        return part.count(b"\n")

    def finish(self) -> None:
        """Write everything out and make it survive a power cut."""
        self._tar.close()
        self._gzip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sync_folder(self._folder)


def sync_folder(folder: Path) -> None:
    """Make the names of the files in a folder survive a power cut; a file's own fsync is about its content only."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The members, (name, content) one after the other.

    Raises:
        OSError: the file can't be read.
        DamagedArchive: it isn't an archive, or it breaks off.
    """
    with gzip.open(path) as content:
        try:
            with tarfile.open(fileobj=content, mode="r|") as tar:
                for member in tar:
                    part = tar.extractfile(member)
                    if part is not None:
                        yield member.name, part.read()
            while content.read(PART_BYTES):  # to the end, where the checksum stands
                pass
        # ValueError, OverflowError: a header with impossible numbers or names
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as exc:
            raise DamagedArchive(f"{path} is not a backup, or is damaged or cut off.") from exc


def tables(cursor: CursorWrapper) -> dict[str, list[str]]:
    """The tables of a backup with their columns, those first that others refer to."""
    cursor.execute(TABLES, [list(LEFT_OUT)])
    columns: dict[str, list[str]] = dict(cursor.fetchall())
    order: TopologicalSorter[str] = TopologicalSorter({name: set() for name in columns})
    cursor.execute(REFERENCES)
    for table, referred in cursor.fetchall():
        if table in columns and referred in columns:
            order.add(table, referred)
    order.add(STATEMENTS, *BOOKS)
    return {name: columns[name] for name in order.static_order()}


def partitions(cursor: CursorWrapper) -> list[str]:
    """The names of the ledger's partitions."""
    cursor.execute(PARTITIONS, [LEDGER])
    return [name for (name,) in cursor.fetchall()]


def sequences(cursor: CursorWrapper) -> dict[str, int]:
    """The last value of each sequence that was used."""
    cursor.execute(SEQUENCES)
    return dict(cursor.fetchall())


def migrations() -> list[list[str]]:
    """The applied migrations, [app, name] each, sorted."""
    return sorted([app, name] for app, name in MigrationRecorder(connection).applied_migrations())


def peppers_text(peppers: dict[int, bytes]) -> str:
    """Peppers as ``TOKEN_PEPPERS`` takes them: ``1:<pepper>,2:<pepper>``."""
    return ",".join(f"{version}:{pepper.decode()}" for version, pepper in sorted(peppers.items()))

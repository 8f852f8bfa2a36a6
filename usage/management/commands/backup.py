"""``manage.py backup FILE``."""

import os
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.utils.timezone import now
from psycopg import sql

from usage import archive


class Command(BaseCommand):
    """Write everything that a restored gateway needs into one file."""

    help = (
        "Write the database, as it is at one moment, SECRET_KEY, the token peppers, the encryption keys and the list"
        " of images into FILE. Keep it as safe as those secrets. Image files are not in it: copy IMAGE_ROOT as well."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", type=Path, help="A new file, such as gateway.backup.tar.gz")

    def handle(self, *args: Any, file: Path, **options: Any) -> None:
        try:
            writer = archive.Writer(file)
        except FileExistsError as exc:
            raise CommandError(f"{file} exists; a backup doesn't replace a file.") from exc
        except OSError as exc:
            raise CommandError(f"{file} can't be written: {exc.strerror}.") from exc
        try:
            rows, images = write(writer)
            writer.finish()
        except BaseException as exc:
            file.unlink(missing_ok=True)
            if isinstance(exc, OSError):
                raise CommandError(f"{file} can't be written: {exc.strerror}.") from exc
            raise
        self.stdout.write(f"{file}: {rows} rows, {images} images listed.")


def write(writer: archive.Writer) -> tuple[int, int]:
    """Fill an archive from one snapshot of the database; returns the rows and the images listed."""
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        tables = archive.tables(cursor)
        manifest = {
            "format": archive.FORMAT,
            "created_at": now().isoformat(),
            "shards": settings.SHARDS,
            "migrations": archive.migrations(),
            "tables": tables,
            "partitions": archive.partitions(cursor),
        }
        writer.add_json("manifest.json", manifest)
        writer.add_json("settings.json", current_secrets())
        images = writer.add_parts("images", image_lines(settings.IMAGE_ROOT))
        rows = {
            name: writer.add_parts(f"tables/{name}", copied(cursor, name, columns)) for name, columns in tables.items()
        }
        # Sequences stand outside of snapshots: read last, they are past every row that was copied.
        writer.add_json("end.json", {"rows": rows, "sequences": archive.sequences(cursor)})
    return sum(rows.values()), images


def current_secrets() -> dict[str, str]:
    """The settings without which the rows can't be used, as the environment takes them."""
    return {
        "SECRET_KEY": settings.SECRET_KEY,
        "TOKEN_PEPPERS": archive.peppers_text(settings.TOKEN_PEPPERS),
        "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
    }


def copied(cursor: CursorWrapper, table: str, columns: list[str]) -> Iterator[bytes | memoryview]:
    """A table's rows in COPY's text format."""
    statement = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(table)
    )
    with cursor.copy(statement) as copy:
        yield from copy


def image_lines(root: Path) -> Iterator[bytes]:
    """One line for each kept image: its path below `root`, a tab, its bytes."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            try:
                size = path.lstat().st_size
            except FileNotFoundError:  # its time was over just now
                continue
            yield os.fsencode(f"{path.relative_to(root)}\t{size}\n")

"""A PostgreSQL database of a test module's own, which this process and those it starts use instead of the run's."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
from django.core.management import call_command
from django.db import connection

from tests import stack
from tokens.installation import ensure_installation


def drop_database(server: Any, name: str) -> None:
    """Drop a database, if there is one, through a connection or cursor; connections of ours that are left are ended.

    ``WITH (FORCE)`` fails while autovacuum is at work there, which may not be ended by us; without it, PostgreSQL does.
    """
    ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND usename = current_user"
    server.execute(ours, [name])
    server.execute(f"DROP DATABASE IF EXISTS {name}")


@contextlib.contextmanager
def own_database() -> Iterator[str]:
    """A migrated one without any tenant; yields its URL."""
    name = f"own_{uuid.uuid4().hex}"
    former, url = os.environ["DATABASE_URL"], urlsplit(stack.SERVERS.database_url)._replace(path=f"/{name}").geturl()
    with psycopg.connect(stack.SERVERS.database_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
        connection.close()
        former_name, connection.settings_dict["NAME"] = connection.settings_dict["NAME"], name
        os.environ["DATABASE_URL"] = url
        try:
            call_command("migrate", verbosity=0)
            ensure_installation()
            yield url
        finally:
            os.environ["DATABASE_URL"] = former
            connection.close()
            connection.settings_dict["NAME"] = former_name
            drop_database(server, name)

"""A database and a Valkey of a test module's own, so that no other test's worker looks at what it breaks."""

import contextlib
import uuid
from collections.abc import Iterator
from functools import cache

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection

from tests import stack
from tests.owndatabase import drop_database
from tests.ownvalkey import OwnValkey, own_valkey
from tokens.installation import ensure_installation

TEMPLATE = "books_template"


@contextlib.contextmanager
def _using(name: str) -> Iterator[None]:
    """This process's connection speaks to another database meanwhile.

    What is saved there is published, and so needs a store of its own beside it: the run's would get its catalog.
    """
    connection.close()
    before, connection.settings_dict["NAME"] = connection.settings_dict["NAME"], name
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["NAME"] = before


@cache
def _template() -> str:
    """A migrated database to make others from; once a run."""
    with psycopg.connect(stack.SERVERS.database_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {TEMPLATE}".encode())
    with _using(TEMPLATE):
        call_command("migrate", verbosity=0)
        ensure_installation()
    return TEMPLATE


@contextlib.contextmanager
def own_books() -> Iterator[OwnValkey]:
    """Empty books, and a store that is opened for them."""
    source, name = _template(), f"books_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(stack.SERVERS.database_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {source}".encode())
        try:
            with _using(name), own_valkey(pytest.MonkeyPatch()) as valkey:
                yield valkey
        finally:
            drop_database(server, name)

"""Closed months: what SQL can't do to them, and what `usage verify` finds once somebody has done it all the same."""

# ruff: noqa: F811 - fixtures are imported

import io
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from tests.bookkeeping import Customer as Books
from tests.test_closing import (  # noqa: F401 - fixtures
    LAST,
    THIS,
    _nothing_of_others,
    acme,
    closed,
    free,
    rehash,
    used,
    wrong,
)
from usage import keeping, sealing
from usage.ledger import record
from usage.models import Statement, StatementFile, StatementPiece


def test_nobody_empties_the_rollups(acme: Books) -> None:
    used(acme, LAST)
    closed(acme)
    with pytest.raises(DatabaseError, match="TRUNCATE of usage_dailyusage"), transaction.atomic():
        connection.cursor().execute("TRUNCATE usage_dailyusage")
    assert wrong(acme) == []


def test_nobody_adds_to_a_file(acme: Books) -> None:
    used(acme, LAST)
    file = closed(acme).files.get(format="csv")
    with pytest.raises(DatabaseError, match="is complete"), transaction.atomic():
        StatementPiece.objects.create(file=file, place=99, content=b"one more line\r\n")
    assert b"".join(keeping.content(file)).endswith(b"\r\n") and wrong(acme) == []


def test_a_transaction_that_looked_before_the_close_books_nothing_into_it(acme: Books) -> None:
    """What it sees stays that of its beginning, so the rule that it asks would let it through."""
    used(acme, LAST)
    into = (
        'INSERT INTO usage_record SELECT (json_populate_record(r, \'{"number": 1, "kind": "correction"}\')).*'
        " FROM usage_record r WHERE tenant_id = %s"
    )
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM usage_record WHERE tenant_id = %s", [acme.tenant.pk])
            closed(acme)
            with pytest.raises(DatabaseError, match="READ COMMITTED"):
                cursor.execute(into, [acme.tenant.pk])
            cursor.execute("ROLLBACK")
    finally:
        other.close()
    assert wrong(acme) == []


def test_the_books_are_written_as_they_are_whatever_the_database_is_set_to(acme: Books) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER ROLE CURRENT_USER SET default_transaction_isolation TO 'repeatable read'")
    try:
        connection.close()
        used(acme, LAST)
        assert len(acme.rows()) == 1
        record([acme.event(day=THIS.isoformat())])
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER ROLE CURRENT_USER RESET default_transaction_isolation")
        connection.close()


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("rows", 7),
        ("policy", "estimate"),
        ("decided", 7),
        ("prices", "[]"),
        ("adjustments", '[{"month": "2001-01"}]'),
        ("closed_by", "somebody else"),
        ("timezone", "Asia/Tokyo"),
    ],
)
def test_a_statement_that_was_changed_is_noticed(acme: Books, change: str, value: Any) -> None:
    used(acme, LAST)
    statement = closed(acme)
    with free(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE usage_statement SET {change} = %s WHERE id = %s", [value, statement.pk])
    assert wrong(acme) == ["what the statement says was changed: the audit trail knows another seal of it"]
    remove(statement)


def test_rows_that_were_changed_together_with_the_hash_are_noticed(acme: Books) -> None:
    used(acme, LAST)
    statement = closed(acme)
    with free(), connection.cursor() as cursor:
        cursor.execute("UPDATE usage_record SET reason = 'x' WHERE tenant_id = %s", [acme.tenant.pk])
        cursor.execute("UPDATE usage_statement SET content_hash = %s WHERE id = %s", [rehash(statement), statement.pk])
    assert wrong(acme) == ["what the statement says was changed: the audit trail knows another seal of it"]
    remove(statement)


def test_a_file_that_was_changed_together_with_its_digest_is_noticed(acme: Books) -> None:
    used(acme, LAST)
    statement = closed(acme)
    with free(), connection.cursor() as cursor:
        of = "(SELECT id FROM usage_statementfile WHERE statement_id = %s AND format = 'csv')"
        cursor.execute(f"UPDATE usage_statementpiece SET content = 'x' WHERE file_id = {of}", [statement.pk])
        cursor.execute(
            "UPDATE usage_statementfile SET size = 1, digest = encode(sha256('x'), 'hex') WHERE id = " + of,
            [statement.pk],
        )
    assert wrong(acme) == ["its csv file was changed: the audit trail knows another one"]
    remove(statement)


def test_a_statement_that_is_gone_is_noticed(acme: Books) -> None:
    used(acme, LAST)
    statement = closed(acme)
    remove(statement)
    assert list(sealing.gone(acme.tenant)) == [statement.number]
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 of 1 statements"):
        call_command("usage", "verify", "--tenant", acme.tenant.slug, stdout=out)
    assert out.getvalue() == f"{statement.number}\tis gone: the audit trail tells of it\n"


def test_a_month_that_is_closed_meanwhile_is_not_gone(acme: Books) -> None:
    used(acme, LAST)
    looked: list[Any] = []

    def then_close(execute: Any, *query: Any) -> Any:
        found = execute(*query)
        if not looked:
            looked.append(query)
            closed(acme)
        return found

    with connection.execute_wrapper(then_close):
        assert list(sealing.gone(acme.tenant)) == []
    assert Statement.objects.filter(tenant=acme.tenant).exists()


def remove(statement: Statement) -> None:
    """Numbers of the other tests' statements are looked at, too."""
    with free():
        StatementPiece.objects.filter(file__statement=statement).delete()
        StatementFile.objects.filter(statement=statement).delete()
        statement.delete()

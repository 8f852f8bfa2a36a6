"""Closed months: what the database refuses, that tampering is noticed, and that nothing gets in while one is closed."""

# ruff: noqa: F811 - fixtures are imported

import io
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tests.test_closing import (  # noqa: F401 - fixtures
    LAST,
    NOON,
    THIS,
    _nothing_of_others,
    acme,
    at,
    closed,
    free,
    standing,
    used,
    wrong,
)
from tokens.errors import Refused
from usage import closedmonths, closing, keeping, statements
from usage.archive import tables
from usage.closing import close
from usage.ledger import record
from usage.models import Statement, StatementPiece

# The database itself


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE usage_dailyusage SET requests = requests + 1 WHERE tenant_id = %(tenant)s",
        "UPDATE usage_dailyusage SET booked_day = '2999-01-01' WHERE tenant_id = %(tenant)s",
        "DELETE FROM usage_dailyusage WHERE tenant_id = %(tenant)s",
        "INSERT INTO usage_dailyusage SELECT * FROM (SELECT d.* FROM usage_dailyusage d WHERE tenant_id = %(tenant)s) x"
        " ON CONFLICT (tenant_id, booked_day, member_id, token_id, model, currency) DO UPDATE SET requests = 9",
        'INSERT INTO usage_record SELECT (json_populate_record(r, \'{"number": 1, "kind": "correction"}\')).*'
        " FROM usage_record r WHERE tenant_id = %(tenant)s",
        'INSERT INTO {partition} SELECT (json_populate_record(r, \'{{"number": 1, "kind": "correction"}}\')).*'
        " FROM usage_record r WHERE tenant_id = %(tenant)s",
        "UPDATE usage_statement SET content_hash = '' WHERE tenant_id = %(tenant)s",
        "DELETE FROM usage_statement WHERE tenant_id = %(tenant)s",
        "DELETE FROM usage_statementpiece",
        "UPDATE usage_statementfile SET digest = ''",
        "TRUNCATE usage_statement CASCADE",
    ],
)
def test_the_database_refuses_to_change_a_closed_month(acme: Books, statement: str) -> None:
    used(acme, LAST)
    closed(acme)
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM usage_record WHERE tenant_id = %s", [acme.tenant.pk])
        partition = cursor.fetchone()[0]
        with pytest.raises(DatabaseError, match="closed"), transaction.atomic():
            cursor.execute(
                statement.replace("{partition}", partition).replace("{{", "{").replace("}}", "}"),
                {"tenant": acme.tenant.pk},
            )
    assert wrong(acme) == []


@pytest.mark.parametrize(
    ("tampering", "noticed"),
    [
        ("UPDATE usage_record SET cost = cost + 1 WHERE tenant_id = %s", "the ledger's rows"),
        ("DELETE FROM usage_record WHERE tenant_id = %s", "the ledger's rows"),
        ("UPDATE usage_record SET booked_day = '2999-01-01' WHERE tenant_id = %s", "the ledger's rows"),
        ("UPDATE usage_dailyusage SET cost = cost + 1 WHERE tenant_id = %s", "the rollups"),
        (
            "UPDATE usage_statementpiece p SET content = 'x' FROM usage_statementfile f, usage_statement s"
            " WHERE p.file_id = f.id AND f.statement_id = s.id AND s.tenant_id = %s AND f.format = 'pdf'",
            "its pdf file was changed",
        ),
        ("UPDATE usage_statement SET serial = serial + 1000000 WHERE tenant_id = %s", "is missing"),
    ],
)
def test_tampering_is_noticed(acme: Books, tampering: str, noticed: str) -> None:
    used(acme, LAST)
    statement = closed(acme)
    slug = acme.tenant.slug
    out = io.StringIO()
    call_command("usage", "verify", "--tenant", slug, stdout=out)
    assert out.getvalue() == f"{statement.number}\t{slug}\t{LAST:%Y-%m}\tas it was\n"
    with free(), connection.cursor() as cursor:
        cursor.execute(tampering, [acme.tenant.pk])
        assert cursor.rowcount > 0
    assert any(noticed in what for what in wrong(acme)), wrong(acme)
    with pytest.raises(CommandError, match="1 of 1 statements"):
        call_command("usage", "verify", "--tenant", slug, stdout=out)
    with free():  # numbers of the other tests' statements are looked at, too
        StatementPiece.objects.filter(file__statement=statement).delete()
        statement.files.all().delete()
        statement.delete()


def test_a_backup_has_statements_after_the_books() -> None:
    """Restored before them, they would have the database refuse the rows of their months."""
    with connection.cursor() as cursor:
        order = list(tables(cursor))
    assert order.index("usage_statement") > max(order.index("usage_record"), order.index("usage_dailyusage"))


# Races


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as exc:
            found.append(exc)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


@pytest.mark.parametrize("guarded", [True, False], ids=["lock", "control"])
def test_no_batch_commits_into_a_month_that_is_being_closed(
    acme: Books, guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has written its rows when the closing hashes; without the locks it commits after the hash."""
    used(acme, LAST)
    event = acme.event(of=request_id(at(LAST)), day=LAST.isoformat())
    written, go_on = threading.Event(), threading.Event()
    touch = statements.touch_secrets

    def hold(uses: Any) -> None:
        touch(uses)
        written.set()
        assert go_on.wait(20)

    monkeypatch.setattr(statements, "touch_secrets", hold)
    if not guarded:
        monkeypatch.setattr(closedmonths, "share", lambda tenants: closedmonths.opens(tenants))
        monkeypatch.setattr(closedmonths, "take", lambda _tenant: None)
    with ExitStack() as stack:
        stack.callback(go_on.set)
        if not guarded:
            stack.enter_context(free())
        writer, _ = in_thread(lambda: record([event]))
        assert written.wait(20)
        closer, found = in_thread(lambda: closed(acme))
        closer.join(1 if guarded else 20)
        assert closer.is_alive() == guarded, "it waits for the batch"
        go_on.set()
        writer.join(20)
        closer.join(20)
    (statement,) = found
    assert isinstance(statement, Statement), statement
    assert statement.rows == (2 if guarded else 1)
    assert (wrong(acme) == []) == guarded
    if not guarded:
        with free():
            StatementPiece.objects.filter(file__statement=statement).delete()
            statement.files.all().delete()
            statement.delete()


def test_a_batch_that_comes_while_a_month_is_closed_waits_and_counts_later(
    acme: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(acme, LAST)
    hashed, go_on = threading.Event(), threading.Event()
    number = closing._number

    def hold(statement: Statement) -> None:
        hashed.set()
        assert go_on.wait(20)
        number(statement)

    monkeypatch.setattr(closing, "_number", hold)
    event = acme.event(of=request_id(at(LAST)), day=LAST.isoformat())
    closer, found = in_thread(lambda: closed(acme))
    assert hashed.wait(20)
    writer, _ = in_thread(lambda: record([event]))
    writer.join(0.7)
    assert writer.is_alive(), "it waits for the closing"
    go_on.set()
    closer.join(20)
    writer.join(20)
    assert isinstance(found[0], Statement) and found[0].rows == 1
    assert acme.rows(event.request_id)[0].booked_day == THIS
    assert wrong(acme) == []


@pytest.mark.parametrize("guarded", [True, False], ids=["lock", "control"])
def test_numbers_have_no_gap_and_are_given_once(guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    customers = [Books() for _ in range(4)]
    for books in customers:
        used(books, LAST)
    if not guarded:
        together, number = threading.Barrier(len(customers)), closing._number

        def at_once(statement: Statement) -> None:
            number(statement)
            together.wait(20)

        monkeypatch.setattr(closing, "LOCK_NUMBER", "SELECT %s")
        monkeypatch.setattr(closing, "_number", at_once)
    monkeypatch.setattr(keeping, "keep", lambda _statement: None)
    started = [in_thread(partial(closed, books)) for books in customers]
    for thread, _ in started:
        thread.join(30)
    results = [found[0] for _, found in started]
    refused = [one for one in results if not isinstance(one, Statement)]
    assert bool(refused) != guarded, results
    serials = list(Statement.objects.filter(year=NOON.year).order_by("serial").values_list("serial", flat=True))
    assert serials == list(range(1, len(serials) + 1))


def test_of_two_who_close_one_does(acme: Books) -> None:
    used(acme, LAST)
    seen = standing(acme)
    close(seen, "first")
    with pytest.raises(Refused, match="was closed meanwhile"):
        close(seen, "second")
    assert Statement.objects.filter(tenant=acme.tenant).count() == 1

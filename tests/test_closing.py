"""Closed months: what is in the way, what is frozen, what comes later, and that nothing gets in while one is closed."""

import datetime as dt
import hashlib
import io
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pypdf
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from config.redis import store
from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tokens.admission import keys
from tokens.audit import AuditEntry
from tokens.errors import Refused
from tokens.models import Tenant
from usage import canonical, closedmonths, drain, keeping
from usage.alarms import AlarmKind
from usage.closing import close
from usage.exporting.formats import FORMATS, export
from usage.ledger import record
from usage.models import Alarm, DailyUsage, Price, QuarantinedEvent, Statement, UsageRecord
from usage.months import State, look
from usage.obstacles import ObstacleKind
from usage.resolving import ESTIMATE, resolve
from usage.unresolved import matching
from usage.verifying import verify

NOON = dt.datetime.now(dt.UTC).replace(hour=12, minute=0, second=0, microsecond=0)
THIS = NOON.date().replace(day=1)
LAST = (THIS - dt.timedelta(days=1)).replace(day=1)
BEFORE = (LAST - dt.timedelta(days=1)).replace(day=1)


def at(month: dt.date, day: int = 3) -> dt.datetime:
    return dt.datetime(month.year, month.month, day, 12, tzinfo=dt.UTC)


@pytest.fixture(autouse=True)
def _nothing_of_others(settings: Any, tmp_path: Path) -> None:
    """What other tests have put aside, and whose it is can't be read, may be anybody's, and so be in the way here."""
    QuarantinedEvent.objects.filter(resolved_at=None).update(resolved_at=NOON)
    settings.SPOOL_ROOT = tmp_path / "spool"
    drain.drain()


@pytest.fixture
def acme() -> Books:
    books = Books()
    Price.objects.create(model=books.model, per_image="0.04", currency="EUR", valid_from=BEFORE)
    return books


def used(books: Books, month: dt.date, kind: str = "exact", of: uuid.UUID | None = None, **more: Any) -> uuid.UUID:
    """Book a call of that month; returns its id."""
    event = books.event(kind, of=of or request_id(at(month)), day=at(month).date().isoformat(), **more)
    record([event])
    return event.request_id


def standing(books: Books) -> Any:
    return look([Tenant.objects.get(pk=books.tenant.pk)])[0]


def closed(books: Books) -> Statement:
    return close(standing(books), "tests")


def files(statement: Statement) -> dict[str, bytes]:
    return {file.format: b"".join(keeping.content(file)) for file in statement.files.all()}


def wrong(books: Books) -> list[str]:
    return [what for _, found in verify(Statement.objects.filter(tenant=books.tenant)) for what in found]


# Closing


def test_a_month_is_frozen_with_what_was_in_it(acme: Books) -> None:
    used(acme, LAST)
    used(acme, LAST, "void")
    used(acme, THIS)
    assert standing(acme).state is State.READY
    statement = closed(acme)
    assert (statement.month, statement.rows, statement.closed_by) == (LAST, 2, "tests")
    assert [(row["currency"], row["requests"], row["cost"]) for row in statement.totals] == [("EUR", 1, "0.08")]
    assert [(row["model"], row["per_image"], row["rows"]) for row in statement.prices] == [(acme.model, "0.04", 2)]
    assert (standing(acme).state, standing(acme).month) == (State.OPEN, THIS)
    entry, filed = AuditEntry.objects.filter(object_type="usage.statement", object_id=str(statement.pk)).order_by("pk")
    assert (entry.verb, entry.tenant_id, entry.object_name) == ("closed", acme.tenant.pk, statement.number)
    assert {name for name, _, _ in filed.changes} == FORMATS.keys()
    with pytest.raises(Refused, match="isn't over"):
        closed(acme)
    assert wrong(acme) == []


def test_months_close_in_order_and_empty_ones_too(acme: Books) -> None:
    assert standing(acme).state is State.UNUSED
    used(acme, BEFORE)
    first, second = closed(acme), closed(acme)
    assert [(one.month, one.rows) for one in (first, second)] == [(BEFORE, 1), (LAST, 0)]
    assert second.serial == first.serial + 1 and second.number == f"{second.year}-{second.serial:06}"
    assert wrong(acme) == []


def test_a_lease_after_the_tenants_own_midnight(acme: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    auckland = Books("Pacific/Auckland")
    record([auckland.event(of=request_id(at(LAST)), day=at(LAST).date().isoformat())])
    midnight = dt.datetime.combine(THIS, dt.time(), auckland.tenant.zone(NOON))
    margin = dt.timedelta(seconds=settings.LEASE_SECONDS)
    for moment, state in (
        (midnight - dt.timedelta(seconds=1), State.OPEN),
        (midnight + margin - dt.timedelta(seconds=1), State.OPEN),
        (midnight + margin, State.READY),
    ):
        monkeypatch.setattr("usage.months.now", lambda moment=moment: moment)
        assert standing(auckland).state is state, moment
    assert standing(auckland).ends == midnight + margin


# What is in the way


def blocked_by(books: Books) -> set[ObstacleKind]:
    found = standing(books)
    if found.state is State.BLOCKED:
        with pytest.raises(Refused, match="can't be closed yet"):
            close(found, "tests")
    return {one.kind for one in found.obstacles}


def call_of(books: Books, month: dt.date) -> bytes:
    return msgspec.json.encode({"tenant": books.tenant.pk, "day": at(month).date()})


@contextmanager
def reserved(books: Books, month: dt.date) -> Iterator[None]:
    shard, number = keys.shard_of(books.tenant.pk, settings.SHARDS), str(request_id(at(month)))
    soon = int((time.time() + 600) * 1_000_000)
    store().hset(keys.reservation(shard, number), mapping={"state": "RESERVED", "call": call_of(books, month)})
    store().zadd(keys.deadlines(shard), {number: soon})
    try:
        yield
    finally:
        store().zrem(keys.deadlines(shard), number)
        store().delete(keys.reservation(shard, number))


def test_a_reservation_of_the_month_is_in_the_way_and_one_of_the_next_is_not(acme: Books) -> None:
    used(acme, LAST)
    with reserved(acme, LAST):
        assert blocked_by(acme) == {ObstacleKind.RESERVATIONS}
    with reserved(acme, THIS), reserved(Books(), LAST):
        assert blocked_by(acme) == set()


def test_an_event_that_waits_is_in_the_way(acme: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    used(acme, LAST)
    stream = f"closing-{uuid.uuid4()}"  # no worker of another test drains it
    monkeypatch.setattr(keys, "usage", lambda _shard: stream)
    fields = acme.fields(of=request_id(at(THIS)), day=THIS.isoformat())
    store().xadd(stream, fields)  # type: ignore[arg-type]
    assert blocked_by(acme) == set()
    store().xadd(stream, acme.fields(of=request_id(at(LAST)), day=LAST.isoformat()))  # type: ignore[arg-type]
    assert blocked_by(acme) == {ObstacleKind.UNDRAINED}
    store().delete(stream)


def test_a_spooled_call_is_in_the_way(acme: Books, settings: Any, tmp_path: Path) -> None:
    used(acme, LAST)
    settings.SPOOL_ROOT = tmp_path
    (tmp_path / f"{request_id(at(THIS))}.bad").write_text("?")
    assert blocked_by(acme) == set(), "of a month that isn't to be closed"
    (tmp_path / f"{request_id(at(LAST))}.bad").write_text("?")
    assert blocked_by(acme) == {ObstacleKind.SPOOLED}, "whose it is can't be read: it may be anybody's"


def test_quarantine_and_gaps_are_in_the_way(acme: Books) -> None:
    used(acme, LAST)
    raw = {name.decode(): value.decode() for name, value in acme.fields(of=request_id(at(LAST))).items()}
    event = QuarantinedEvent.objects.create(raw=raw, digest=uuid.uuid4().hex * 2, error="DataError")
    assert blocked_by(acme) == {ObstacleKind.QUARANTINED}
    assert blocked_by(Books()) == set()
    event.resolved_at = NOON
    event.save()
    alarm = Alarm.objects.create(
        kind=AlarmKind.SEQUENCE_GAP, subject=f"{acme.tenant.slug} {uuid.uuid4()} 1-2", message="2 events"
    )
    assert blocked_by(acme) == {ObstacleKind.GAP}
    alarm.closed_at = NOON
    alarm.save()
    assert blocked_by(acme) == set()


def test_a_store_that_doesnt_answer_is_in_the_way(acme: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    used(acme, LAST)
    with monkeypatch.context() as patched:
        patched.setattr(settings, "REDIS_URL", "unix:///tmp/there-is-no-such-socket")
        store.cache_clear()
        assert blocked_by(acme) == {ObstacleKind.STORE_AWAY}
    store.cache_clear()


def test_numbers_that_nobody_has_compared_are_in_the_way(acme: Books) -> None:
    used(acme, LAST)
    shard = keys.shard_of(acme.tenant.pk, settings.SHARDS)
    store().set(keys.sequence(shard, acme.tenant.pk), 7)
    assert ObstacleKind.UNCHECKED in blocked_by(acme)
    store().delete(keys.sequence(shard, acme.tenant.pk))


# Unresolved calls


@pytest.mark.parametrize(("policy", "cost", "outcome"), [("nothing", None, "void"), ("estimate", "0.08", "exact")])
def test_the_policy_decides_unresolved_calls_in_the_month(
    acme: Books, policy: str, cost: str | None, outcome: str
) -> None:
    acme.tenant.unresolved_policy = policy
    acme.tenant.save()
    version = acme.tenant.version
    call = used(acme, LAST, "unresolved")
    assert (standing(acme).state, standing(acme).unresolved) == (State.READY, 1)
    statement = closed(acme)
    _, decision = acme.rows(call)
    assert (decision.outcome, decision.booked_day, statement.decided) == (outcome, THIS - dt.timedelta(days=1), 1)
    assert "month close by policy" in decision.reason
    assert sum(Decimal(row["cost"] or 0) for row in statement.totals) == Decimal(cost or 0)
    assert not DailyUsage.objects.filter(tenant=acme.tenant, booked_day__gte=THIS).exists()
    assert Tenant.objects.get(pk=acme.tenant.pk).version == version, "no call is decided by it"
    acme.check_books()
    assert wrong(acme) == []


# Afterwards


def test_what_comes_late_counts_in_the_next_open_month(acme: Books) -> None:
    lost = used(acme, LAST, "unresolved")
    statement = closed(acme)
    used(acme, LAST, of=lost)  # the provider's own answer, after all
    late = used(acme, LAST)
    correction, primary = acme.rows(lost)[-1], acme.rows(late)[0]
    assert (correction.outcome, correction.day.replace(day=1)) == ("exact", LAST)
    assert correction.booked_day >= THIS and primary.booked_day == THIS
    acme.check_books()
    assert wrong(acme) == []
    out = io.BytesIO()
    export(keeping.query_of(statement).__class__(acme.tenant, THIS, NOON.date() + dt.timedelta(days=1), ()), "pdf", out)
    text = " ".join("".join(page.extract_text() for page in pypdf.PdfReader(out).pages).split())
    assert "Adjustments: calls of earlier months" in text and f"adjusts statement {statement.number}" in text


def test_a_decision_after_the_close_counts_later(acme: Books) -> None:
    used(acme, LAST)
    statement = closed(acme)
    late = used(acme, LAST, "unresolved")
    resolve({late: ESTIMATE}, "the provider's account", "tests")
    assert {row.booked_day >= THIS for row in acme.rows(late)} == {True}
    assert not matching(acme.tenant).exists()
    assert Statement.objects.get(pk=statement.pk).content_hash == statement.content_hash and wrong(acme) == []


def test_a_file_is_the_same_bytes_whatever_comes_later(acme: Books) -> None:
    lost = used(acme, LAST, "unresolved")
    used(acme, LAST)
    statement = closed(acme)
    kept = files(statement)
    assert kept.keys() == FORMATS.keys()
    assert statement.number in pypdf.PdfReader(io.BytesIO(kept["pdf"])).pages[0].extract_text()
    made = {name: io.BytesIO() for name in ("csv", "json", "focus")}
    used(acme, LAST, of=lost)
    used(acme, LAST)
    for name, out in made.items():
        export(keeping.query_of(statement), name, out, statement.number)
        assert out.getvalue() == kept[name], "made again from the frozen rows"
    acme.tenant.name = acme.token.name = "Renamed"
    acme.tenant.save()
    acme.token.save()
    keeping.keep(statement)
    assert files(statement) == kept
    assert {file.digest for file in statement.files.all()} == {
        hashlib.sha256(content).hexdigest() for content in kept.values()
    }


def test_control_without_the_rule_a_late_row_would_change_the_export(
    acme: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(acme, LAST)
    statement = closed(acme)
    monkeypatch.setattr(closedmonths, "opens", lambda _tenants: {})
    with pytest.raises(AssertionError), refusing():  # the trigger refuses it, so it lands in quarantine
        used(acme, LAST)
    with free():
        used(acme, LAST)
    out = io.BytesIO()
    export(keeping.query_of(statement), "csv", out, statement.number)
    assert out.getvalue() != files(statement)["csv"]
    assert wrong(acme) == [
        f"the ledger's rows of the month were changed: 2 rows hash to {rehash(statement)}",
        "the rollups of the month were changed: they don't sum to the statement's totals",
    ]


def rehash(statement: Statement) -> str:
    with transaction.atomic():
        return canonical.hashed(statement.tenant_id, statement.month, statement.end)[0]


@contextmanager
def refusing() -> Iterator[None]:
    before = QuarantinedEvent.objects.count()
    yield
    assert QuarantinedEvent.objects.count() == before


TABLES = "^usage_(record|dailyusage|statement)"


@contextmanager
def free() -> Iterator[None]:
    """The database's triggers are off, as for somebody who tampers with it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relname ~ %s", [TABLES])
        tables = [name for (name,) in cursor.fetchall()]

    def switch(how: str) -> None:
        with connection.cursor() as cursor:
            for table in tables:
                cursor.execute(f"ALTER TABLE {table} {how} TRIGGER USER")

    switch("DISABLE")
    try:
        yield
    finally:
        switch("ENABLE")


# The command line


def run(*words: str) -> tuple[str, str]:
    out, errors = io.StringIO(), io.StringIO()
    call_command("usage", *words, stdout=out, stderr=errors)
    return out.getvalue(), errors.getvalue()


def test_the_command_tells_closes_and_refuses(acme: Books) -> None:
    slug = acme.tenant.slug
    used(acme, BEFORE, "unresolved")
    out, _ = run("close", "--tenant", slug, "--dry-run")
    assert out == f"{slug}\t{BEFORE:%Y-%m}\tready\t1 unresolved calls count as: Nothing: they aren't charged\n"
    assert not Statement.objects.filter(tenant=acme.tenant).exists()
    with pytest.raises(CommandError, match=f"Months close in order: {BEFORE:%Y-%m}"):
        run("close", "--tenant", slug, "--month", f"{LAST:%Y-%m}")
    out, _ = run("close", "--tenant", slug, "--month", f"{BEFORE:%Y-%m}")
    statement = Statement.objects.get(tenant=acme.tenant)
    assert out.split("\t")[:3] == [statement.number, slug, f"{BEFORE:%Y-%m}"]
    assert statement.closed_by.startswith("command line")
    with pytest.raises(CommandError, match="is closed: statement"):
        run("close", "--tenant", slug, "--month", f"{BEFORE:%Y-%m}")
    with reserved(acme, LAST), pytest.raises(CommandError, match=r"1 call is under way\. Calls end within their lease"):
        run("close", "--tenant", slug)
    for words, sentence in (
        (("--all", "--month", "2026-01"), "--month goes with --tenant"),
        (("--tenant", "nobody-here"), "There is no tenant"),
        (("--tenant", slug, "--month", "x"), "not a month"),
        (("--tenant", slug, "--month", "2001-01"), "Nothing was booked"),
    ):
        with pytest.raises(CommandError, match=sentence):
            run("close", *words)


def test_no_more_queries_for_more_tenants() -> None:
    many = [Books() for _ in range(20)]
    for books in many:
        used(books, LAST)
    tenants = [books.tenant for books in many]

    def queries(count: int) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert {one.state for one in look(tenants[:count])} == {State.READY}
        return len(captured)

    assert queries(1) == queries(20)


def test_rows_of_the_running_month_are_booked_as_ever(acme: Books) -> None:
    used(acme, LAST)
    closed(acme)
    call = used(acme, THIS)
    assert acme.rows(call)[0].booked_day == at(THIS).date()
    assert UsageRecord.objects.filter(tenant=acme.tenant, booked_day__gte=THIS).count() == 1

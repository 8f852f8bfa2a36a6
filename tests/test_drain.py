"""The drain: everything in the streams reaches the books, nothing twice, whoever dies when."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, cast

import psycopg
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.conf import settings as gateway_settings
from django.db import DataError, OperationalError, ProgrammingError, connection
from pytest_django import Settings

from config.redis import parse_address, store
from tests import stack
from tests.bookkeeping import Customer
from tokens.admission import keys
from usage import drain as draining
from usage.drain import drain
from usage.events import parse
from usage.ledger import record
from usage.models import EventReceipt, QuarantinedEvent, UsageRecord

OWN_DATABASE = 9
DRAIN = "import django; django.setup(); from usage.drain import drain; print('ready', flush=True); drain(0)"


@pytest.fixture(autouse=True)
def own_store(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A database of the store to ourselves: a worker of another test would drain what we send."""
    settings.REDIS_URL = parse_address(settings.REDIS_URL).url(OWN_DATABASE)
    monkeypatch.setenv("REDIS_URL", settings.REDIS_URL)  # for the processes that we start
    store.cache_clear()
    store().flushdb()
    yield
    store().close()
    store.cache_clear()


@pytest.fixture
def alice() -> Customer:
    return Customer()


def stream_of(customer: Customer) -> str:
    return keys.usage(keys.shard_of(customer.tenant.pk, gateway_settings.SHARDS))


def send(customer: Customer, *entries: Mapping[bytes, bytes]) -> list[bytes]:
    with store().pipeline(transaction=False) as pipeline:
        for fields in entries:
            pipeline.xadd(stream_of(customer), cast("dict[Any, Any]", fields))
        return cast("list[bytes]", pipeline.execute())


def pending(customer: Customer) -> int:
    return int(store().xpending(stream_of(customer), keys.GROUP)["pending"])


def test_it_books_what_waits_and_clears_the_stream(alice: Customer) -> None:
    send(alice, *[alice.fields() for _ in range(1203)])
    assert drain() == 1203
    assert len(alice.rows()) == alice.total("requests") == 1203
    assert (store().xlen(stream_of(alice)), pending(alice)) == (0, 0)
    assert EventReceipt.objects.filter(tenant=alice.tenant).count() == 1203
    alice.check_books()


def test_it_drains_every_shard() -> None:
    customers = [Customer() for _ in range(gateway_settings.SHARDS)]
    for customer in customers:
        send(customer, customer.fields())
    drain()
    assert len({stream_of(customer) for customer in customers}) == gateway_settings.SHARDS
    assert [len(customer.rows()) for customer in customers] == [1] * gateway_settings.SHARDS


def test_it_makes_the_groups_of_a_new_store_and_reads_what_was_there_before(alice: Customer) -> None:
    send(alice, alice.fields(), alice.fields())
    assert drain() == 2
    assert len(alice.rows()) == 2


def test_poison_is_quarantined_and_blocks_nothing(alice: Customer) -> None:
    unreadable = {**alice.fields(), b"result": f'{{"images": "\0{uuid.uuid4()}'.encode()}
    empty = {b"nothing": uuid.uuid4().bytes}
    refused = alice.fields(tenant=2**62)
    send(alice, alice.fields(), unreadable, alice.fields(), empty, refused, alice.fields())
    assert drain() == 6
    assert len(alice.rows()) == 3
    assert (store().xlen(stream_of(alice)), pending(alice)) == (0, 0)
    kept = QuarantinedEvent.objects.order_by("-id")[:3]
    assert sorted(entry.error for entry in kept) == ["BadEventError", "BadEventError", "IntegrityError"]
    send(alice, unreadable)  # delivered again, as after a crash before its acknowledgement
    drain()
    assert QuarantinedEvent.objects.order_by("-id")[0].pk == kept[0].pk


def drain_to_death(*limits: int) -> int:
    """How often a drain died until nothing was left: at most so often; how many deaths make an event poison."""
    command = [sys.executable, "-m", "tests.controls.deadly_drain", *map(str, limits)]
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"}
    return int(subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60).stdout)


def test_an_event_that_kills_ends_in_quarantine_and_the_others_are_booked_once(alice: Customer) -> None:
    good = [alice.fields() for _ in range(600)]
    marked = [alice.fields(agent="kills") for _ in range(2)]
    send(alice, *good[:200], marked[0], *good[200:400], marked[1], *good[400:])
    assert drain_to_death(30) <= 4 + 2 * 3, "together at first, then each by itself"
    assert len(alice.rows()) == alice.total("requests") == 600
    assert (store().xlen(stream_of(alice)), pending(alice)) == (0, 0)
    kept = QuarantinedEvent.objects.filter(error="PoisonError").order_by("-id")[:2]
    assert {entry.raw["request_id"] for entry in kept} == {fields[b"request_id"].decode() for fields in marked}
    assert kept[0].message == "Booking it by itself failed 3 times; it may end processes."
    alice.check_books()


def test_control_where_nobody_gives_up_an_event_kills_for_ever(alice: Customer) -> None:
    send(alice, alice.fields(agent="kills"), alice.fields())
    assert drain_to_death(12, 1000) == 12
    assert (len(alice.rows()), pending(alice)) == (1, 1)


@pytest.mark.parametrize(
    "failure",
    [OperationalError("deadlock detected"), ProgrammingError("no such column"), SoftTimeLimitExceeded(), SystemExit()],
    ids=lambda failure: type(failure).__name__,
)
def test_a_database_that_fails_is_not_held_against_an_event(
    failure: BaseException, alice: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(alice, alice.fields(), alice.fields())

    def fail(events: Any) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(draining, "record", fail)
        for _ in range(10):
            with pytest.raises(type(failure)):
                drain(claim_after_ms=0)
    assert drain(claim_after_ms=0) == 2
    assert len(alice.rows()) == 2


@pytest.mark.parametrize("surprise", [KeyError, DataError])
def test_an_event_that_the_program_fails_at_is_quarantined_and_the_others_are_booked(
    surprise: type[Exception], alice: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(alice, alice.fields(), alice.fields(agent="surprises"), *[alice.fields() for _ in range(3)])

    def fail(events: Any) -> None:
        if any(event.agent == "surprises" for event in events):
            raise surprise("unheard of")
        record(events)

    monkeypatch.setattr(draining, "record", fail)
    for _ in range(4):  # in their midst, then three times by itself
        with pytest.raises(surprise):
            drain(claim_after_ms=0)
    assert len(alice.rows()) == 4
    assert drain(claim_after_ms=0) == 1
    assert len(alice.rows()) == 4
    assert QuarantinedEvent.objects.latest("id").raw["request_id"] not in {str(row.request_id) for row in alice.rows()}


def test_a_lock_is_not_waited_for_until_the_drain_is_taken_for_dead(
    alice: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert draining.LOCK_MS < draining.CLAIM_AFTER_MS
    monkeypatch.setattr(draining, "LOCK_MS", 50)
    send(alice, alice.fields())
    with psycopg.connect(stack.SERVERS.database_url) as other:
        other.execute("LOCK TABLE usage_record IN SHARE MODE")
        for _ in range(draining.GIVE_UP_AFTER + 1):
            with pytest.raises(OperationalError, match="lock timeout"):
                drain(claim_after_ms=0)
    assert drain(claim_after_ms=0) == 1
    assert len(alice.rows()) == 1
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("0",), "others on this connection wait as before"


def test_a_newer_version_is_left_to_a_newer_worker(
    alice: Customer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(draining, "_said_at", {})
    future = {**alice.fields(), b"call": b'{"v": 2, "renamed": true}', b"new": b"field"}
    old = alice.fields()
    send(alice, *[future for _ in range(draining.BATCH)], old)
    assert drain() == 1
    for _ in range(10):
        assert drain(claim_after_ms=0) == 0
    assert len(alice.rows()) == 1
    assert [record.message for record in caplog.records] == [
        "Usage events of version 2 wait for a newer worker: this one reads up to version 1"
    ]
    assert draining.oldest_seconds() > 0
    assert not QuarantinedEvent.objects.filter(raw__contains={"generation": alice.generation}).exists()
    monkeypatch.setattr(draining, "VERSION", 2)
    monkeypatch.setattr(draining, "parse", lambda fields: parse({**old, b"request_id": fields[b"request_id"]}))
    assert drain() == draining.BATCH, "at once: nobody has to be taken for dead"
    assert (store().xlen(stream_of(alice)), pending(alice)) == (0, 0)


def test_it_takes_over_what_a_dead_process_left_before_or_after_its_commit(alice: Customer) -> None:
    drain()  # makes the groups
    send(alice, *[alice.fields() for _ in range(40)])
    dead = cast("list[Any]", store().xreadgroup(keys.GROUP, "dead", {stream_of(alice): ">"}, count=30))
    record([parse(fields) for _, fields in dead[0][1][:10]])
    assert drain() == 10  # the living one's: what the dead one holds is not old enough
    assert pending(alice) == 30
    assert drain(claim_after_ms=0) == 30
    assert len(alice.rows()) == alice.total("requests") == 40
    assert (store().xlen(stream_of(alice)), pending(alice)) == (0, 0)
    alice.check_books()


def test_it_forgets_idle_consumers_but_never_one_that_holds_entries(
    alice: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "FORGET_AFTER_MS", 20)
    drain()  # makes the groups
    stream = stream_of(alice)
    send(alice, alice.fields())
    store().xreadgroup(keys.GROUP, "holds-one", {stream: ">"})
    store().xgroup_createconsumer(stream, keys.GROUP, "idle")
    time.sleep(0.05)
    drain()
    names = {consumer["name"] for consumer in store().xinfo_consumers(stream, keys.GROUP)}
    assert b"holds-one" in names
    assert b"idle" not in names
    drain(claim_after_ms=0)
    assert len(alice.rows()) == 1


def test_a_process_drains_once_at_a_time(alice: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    send(alice, alice.fields())
    reached, go_on = threading.Event(), threading.Event()

    def slow(events: Any) -> None:
        reached.set()
        go_on.wait(10)
        record(events)

    monkeypatch.setattr(draining, "record", slow)
    counts: list[int] = []

    def drain_once() -> None:
        counts.append(drain())
        connection.close()

    first = threading.Thread(target=drain_once)
    first.start()
    assert reached.wait(10)
    assert drain() == 0
    go_on.set()
    first.join(10)
    assert (counts, len(alice.rows())) == ([1], 1)


def booked(customer: Customer) -> int:
    return UsageRecord.objects.filter(tenant=customer.tenant).count()


def start_draining() -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", DRAIN],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_kill_9_in_the_middle_loses_nothing_and_books_nothing_twice(alice: Customer) -> None:
    for _ in range(10):
        send(alice, *[alice.fields(charged=1000 + alice.sequence % 7) for _ in range(1000)])
    expected = sum(1000 + number % 7 for number in range(10_000))
    for goal in (1000, 4000):
        child = start_draining()
        with child:
            end = time.monotonic() + 30
            while booked(alice) < goal and time.monotonic() < end:
                time.sleep(0.001)
            child.send_signal(signal.SIGKILL)
        assert child.returncode == -signal.SIGKILL
        assert goal <= booked(alice) < 10_000  # otherwise it was not killed in the middle
    while drain(claim_after_ms=0):
        pass
    assert booked(alice) == alice.total("requests") == 10_000
    assert alice.total("charged_tokens") == expected
    assert EventReceipt.objects.filter(tenant=alice.tenant, generation=alice.generation).count() == 10_000
    assert (store().xlen(stream_of(alice)), pending(alice)) == (0, 0)
    alice.check_books()


def test_two_processes_drain_at_once(alice: Customer) -> None:
    send(alice, *[alice.fields() for _ in range(3000)])
    with start_draining() as one, start_draining() as other:
        assert (one.wait(30), other.wait(30)) == (0, 0)
    drain(claim_after_ms=0)
    assert booked(alice) == alice.total("requests") == 3000
    alice.check_books()

"""Calls that end while the store is out of reach: straight into the ledger, once, and the store learns it later.

On a database and a Valkey of this module's own: a worker of another test would replay what waits here.
"""

import asyncio
import contextlib
import dataclasses
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from django.db import connection, connections

from config.redis import store
from gateway import booking
from gateway.booking import Booking, NotBooked
from gateway.models import Provider
from tests import processes, rawservers
from tests.conftest import Customer, Gateway, point_at
from tests.ledgerwatch import check_books, in_flight, rows
from tests.owndatabase import own_database
from tests.ownvalkey import OwnValkey, own_valkey
from tests.scriptcalls import ESTIMATE, RESULT, Caller, generation
from tokens.admission import keys
from tokens.admission.settlement import Ending
from usage import drain, expiry, guardian, tasks, unsettled
from usage.models import EventReceipt, QuarantinedEvent, UnsettledCall, UsageRecord


@pytest.fixture(scope="module")
def module_valkey(provider: Path, django_db_blocker: Any) -> Iterator[OwnValkey]:
    """The module's store, beside its database; both know the run's sandbox provider."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(django_db_blocker.unblock())
        sandbox = Provider.objects.get(name="sandbox").base_url.removesuffix("/v1")
        stack.enter_context(own_database())
        server = stack.enter_context(own_valkey(pytest.MonkeyPatch()))
        point_at(sandbox)
        yield server


@pytest.fixture
def valkey(module_valkey: OwnValkey) -> OwnValkey:
    """It runs and nothing waits for it, whatever a failed test left."""
    assert module_valkey.child
    if module_valkey.child.exit_status() is not None:
        store().close()
        module_valkey.start()
    UnsettledCall.objects.all().delete()
    assert guardian.confirm(wait=False) in {"confirmed", "rebuilt"}
    return module_valkey


@pytest.fixture
def caller(valkey: OwnValkey) -> Caller:
    return Caller(limits=("images:100/day", "tokens:100000/month"))


def come_back(valkey: OwnValkey, data: Path | None = None) -> str:
    """Kill the store, give it a former state of its disk (None: an empty one), and let the guardian see."""
    valkey.kill()
    shutil.rmtree(valkey.folder)
    if data is not None:
        shutil.copytree(data, valkey.folder)
    store().close()
    valkey.start()
    return guardian.confirm(wait=False)


def exact(caller: Caller, request_id: str, call: bytes, images: int = 2, tokens: int = 700) -> Ending:
    return ending(caller, request_id, call, "exact", images, tokens)


def ending(
    caller: Caller, request_id: str, call: bytes, kind: str, images: int, tokens: int, reason: str = ""
) -> Ending:
    figures = {"images": images, "charged": tokens, "reported": tokens if kind == "exact" else None}
    provenance = "reported" if kind == "exact" else "estimated"
    result = msgspec.json.encode({**RESULT, **figures, "provenance": provenance, "reason": reason})
    sent = reason != "not_dispatched"
    return Ending(request_id, caller.shard, caller.tenant.pk, kind, images, tokens, sent, result, call)


def admitted(caller: Caller) -> tuple[str, bytes]:
    status, request_id, call = caller.admit(2)
    assert status == "ADMITTED"
    return request_id, call


def settled(caller: Caller) -> list[tuple[str, str, int, int]]:
    """The tenant's ledger once the store knows all: (kind, outcome, images, tokens) a row."""
    unsettled.replay()
    assert not UnsettledCall.objects.exists()
    drain.drain(claim_after_ms=0)
    found = UsageRecord.objects.filter(tenant=caller.tenant).order_by("request_id", "number")
    return [(row.kind, row.outcome, row.images, row.charged_tokens) for row in found]


def used(caller: Caller) -> dict[str, int]:
    """The tenant's counters of today, used and reserved."""
    day = caller.principal().plan(time.time()).periods.day
    raw: Any = store().hgetall(keys.use(caller.shard, f"tenant:{caller.tenant.pk}", f"day:{day}"))
    return {name.decode(): int(value) for name, value in raw.items()}


def figures(requests: int, images: int, tokens: int) -> dict[str, int]:
    """What `used` says with nothing reserved."""
    names = {"requests": requests, "images": images, "tokens": tokens}
    return {**names, **{f"reserved_{name}": 0 for name in names}}


def missing_receipts(caller: Caller) -> int:
    numbers = list(EventReceipt.objects.filter(tenant=caller.tenant).values_list("sequence", flat=True))
    return max(numbers, default=0) - len(numbers)


# Over HTTP


def test_calls_in_flight_are_answered_and_in_the_ledger_before_the_store_is_back(
    valkey: OwnValkey, provider: Path, make_customer: Callable[..., Customer], tmp_path: Path
) -> None:
    customer = make_customer()
    customer.limit("images:10/day", "concurrent:8")
    words = ("delay=1500ms", "delay=1500ms drop=after_draw", "delay=1500ms status=400")
    environment: dict[str, Any] = {"SETTLE_RETRY_SECONDS": "0.3", "SPOOL_ROOT": str(tmp_path / "spool")}
    environment |= {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    with (
        processes.web(tmp_path, **environment) as (url, _),
        httpx.Client(timeout=20) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        gateway = Gateway(url, provider, client)
        calls = [
            pool.submit(gateway.post, customer.secret, {"prompt": f"a gem [sandbox {word}]", "size": "256x256"})
            for word in (words[0], *words)
        ]
        processes.wait_until(lambda: in_flight(customer) == 4, 5, "four calls in flight")
        time.sleep(0.5)  # for the gateway to read that the last one was admitted
        valkey.kill()
        answers = [call.result() for call in calls]
        assert [answer.status_code for answer in answers] == [200, 200, 500, 400]
        found = list(UsageRecord.objects.filter(tenant=customer.tenant).order_by("request_id"))
        assert sorted(row.kind for row in found) == ["exact", "exact", "unresolved", "void"]
        assert {row.generation for row in found} == {""}
        drawn = gateway.drawn()
        for row in found:
            if row.kind == "exact":
                assert row.charged_tokens == drawn[str(row.request_id)]["usage"]["total_tokens"]
        assert unsettled.count() == 4
        assert not (tmp_path / "spool").exists()
        assert "gateway_settle_booked_total 4.0" in client.get(f"{url}/metrics").text
        store().close()
        valkey.start()
        assert guardian.confirm() == "confirmed"
        assert in_flight(customer) == 4
        assert unsettled.replay() == 4
        assert unsettled.replay() == unsettled.count() == in_flight(customer) == 0
        assert {row.number for row in rows(customer)} == {0}
        processes.wait_until(lambda: processes.answers(f"{url}/readyz"), 5, "readiness")
        after = gateway.post(customer.secret, {"prompt": ""})
        assert after.headers["X-RateLimit-Remaining-Images"] == "7"
        with valkey.frozen():  # its connections stay, and new ones come about but are never answered
            connected = True
            while connected:
                begun = time.monotonic()
                refused = gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256"})
                assert time.monotonic() - begun < 0.5
                assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
                connected = "not connected" not in client.get(f"{url}/readyz").text
    unsettled.replay()  # admissions that the frozen store may have made
    assert unsettled.count() == in_flight(customer) == 0
    check_books([customer])


# What may happen between the booking and the replay


def test_the_store_learns_it_once_however_often_it_is_told(caller: Caller) -> None:
    given = exact(caller, *admitted(caller))
    unsettled.record([given])
    unsettled.record([given, given])
    with ThreadPoolExecutor(3) as pool:  # each thread with a connection of its own, as other processes
        assert sum(pool.map(replay_in_a_thread, range(3))) >= 1
    unsettled.record([given])  # as a process that had no answer from PostgreSQL tries again
    assert settled(caller) == [("exact", "exact", 2, 700)]
    assert used(caller) == figures(1, 2, 700)
    assert missing_receipts(caller) == 0


def replay_in_a_thread(_: int) -> int:
    try:
        return unsettled.replay()
    finally:
        connection.close()


@pytest.mark.parametrize("booked", ["before", "after"])
@pytest.mark.parametrize("kind", ["exact", "void"])
def test_a_lease_that_ended_meanwhile_changes_nothing_in_the_end(kind: str, booked: str, caller: Caller) -> None:
    request_id, call = admitted(caller)
    given = ending(caller, request_id, call, kind, *((2, 700) if kind == "exact" else (0, 0)))
    if booked == "before":
        unsettled.record([given])
    store().hset(keys.reservation(caller.shard, request_id), "lease_end", 1)
    store().zadd(keys.deadlines(caller.shard), {request_id: 1})
    assert expiry.expire_overdue() == 1
    drain.drain()
    if booked == "after":
        unsettled.record([given])
    found = settled(caller)
    images, tokens = (2, 700) if kind == "exact" else (0, 0)
    assert (sum(row[2] for row in found), sum(row[3] for row in found)) == (images, tokens)
    assert [row[0] for row in found] == ([kind] if booked == "before" else ["unresolved", "correction"])
    assert used(caller) == figures(1, images, tokens)
    assert missing_receipts(caller) == 0


def replaying(rebuild: Callable[..., None]) -> Callable[..., None]:
    """The guardian's rebuilding, with a replay just before."""

    def replay_first(*arguments: Any) -> None:
        assert unsettled.replay() == 1
        rebuild(*arguments)

    return replay_first


@pytest.mark.parametrize("replayed", ["fenced", "rebuilt"])
def test_a_store_that_comes_back_empty_counts_it_once(
    replayed: str, valkey: OwnValkey, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = exact(caller, *admitted(caller))
    unsettled.record([given])
    if replayed == "fenced":
        monkeypatch.setattr(guardian, "rebuild", replaying(guardian.rebuild))
    assert come_back(valkey) == "rebuilt"
    assert used(caller) == figures(1, 2, 700)
    assert settled(caller) == [("exact", "exact", 2, 700)]
    assert used(caller) == figures(1, 2, 700)
    assert missing_receipts(caller) == 0


def test_a_store_that_was_rolled_back_to_the_reservation_counts_it_once(
    valkey: OwnValkey, caller: Caller, tmp_path: Path
) -> None:
    given = exact(caller, *admitted(caller))
    shutil.copytree(valkey.folder, tmp_path / "before")
    other = exact(caller, *admitted(caller))
    unsettled.record([other])
    assert settled(caller) == [("exact", "exact", 2, 700)]  # of which the store will know nothing
    unsettled.record([given])
    assert come_back(valkey, tmp_path / "before") == "rebuilt"
    assert settled(caller) == [("exact", "exact", 2, 700)] * 2
    assert used(caller) == figures(2, 4, 1400)


def test_what_was_resolved_meanwhile_is_what_the_store_learns(caller: Caller) -> None:
    request_id, call = admitted(caller)
    unknown = ending(caller, request_id, call, "unresolved", 2, ESTIMATE, "upstream_timeout")
    unsettled.record([unknown])
    unsettled.record([ending(caller, request_id, call, "void", 0, 0, "resolved")])
    unsettled.record([unknown])
    (row,) = UnsettledCall.objects.all()
    assert unsettled._ending(row).kind == "void"
    assert [entry[1] for entry in settled(caller)] == ["unresolved", "void"]
    assert used(caller) == figures(1, 0, 0)


def test_a_replay_deletes_no_ending_that_it_has_not_told(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id, call = admitted(caller)
    unsettled.record([ending(caller, request_id, call, "unresolved", 2, ESTIMATE, "upstream_timeout")])
    hand_over = unsettled._hand_over

    def resolve_meanwhile(row: UnsettledCall) -> bool:
        done = hand_over(row)
        unsettled.record([exact(caller, request_id, call)])
        return done

    with monkeypatch.context() as patched:
        patched.setattr(unsettled, "_hand_over", resolve_meanwhile)
        unsettled.replay()
    assert unsettled.count() == 1
    assert [entry[1] for entry in settled(caller)] == ["unresolved", "exact"]
    assert used(caller) == figures(1, 2, 700)


def test_a_call_that_was_never_sent_is_left_to_the_store(caller: Caller) -> None:
    request_id, call = admitted(caller)
    never = ending(caller, request_id, call, "void", 0, 0, "not_dispatched")
    unasked = ending(caller, str(uuid.uuid4()), call, "void", 0, 0, "not_dispatched")  # an admission that got lost
    unsettled.record([never, unasked])
    assert not UsageRecord.objects.filter(tenant=caller.tenant).exists()
    assert settled(caller) == [("void", "void", 0, 0)]
    assert used(caller) == figures(0, 0, 0)


def test_the_task_waits_for_a_store_that_is_down(valkey: OwnValkey, caller: Caller) -> None:
    unsettled.record([exact(caller, *admitted(caller))])
    valkey.kill()
    tasks.replay_unsettled()
    assert unsettled.count() == 1
    store().close()
    valkey.start()
    tasks.replay_unsettled()
    assert unsettled.count() == 0
    guardian.confirm()
    assert used(caller) == figures(1, 2, 700), "the reservation names a generation that is still the store's"
    assert settled(caller) == [("exact", "exact", 2, 700)]
    assert missing_receipts(caller) == 0


def test_one_that_the_store_refuses_stays_and_holds_up_no_other(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr(unsettled, "_complained_at", -unsettled.COMPLAIN_SECONDS)
    monkeypatch.setattr(unsettled.logger, "error", lambda *words, **_: complaints.append(words))
    refused, taken = exact(caller, *admitted(caller)), exact(caller, *admitted(caller))
    name = keys.reservation(caller.shard, refused.request_id)
    kept = store().dump(name) or b""
    store().set(name, "not as admission writes it")
    unsettled.record([refused, taken])
    assert [unsettled.replay() for _ in range(3)] == [1, 0, 0]
    assert [str(row) for row in UnsettledCall.objects.all()] == [refused.request_id]
    assert len(complaints) == 1
    store().restore(name, 0, kept, replace=True)
    assert settled(caller) == [("exact", "exact", 2, 700)] * 2
    assert used(caller) == figures(2, 4, 1400)


def test_one_that_the_ledger_refuses_is_left_to_the_store_and_the_others_are_booked(caller: Caller) -> None:
    unreadable, unknown, good = (exact(caller, *admitted(caller)) for _ in range(3))
    unreadable = dataclasses.replace(unreadable, call=b"{}")
    no_tenant = msgspec.json.encode(msgspec.json.decode(unknown.call) | {"tenant": 2**40})
    unsettled.record([unreadable, dataclasses.replace(unknown, call=no_tenant), good])
    assert [str(row.request_id) for row in UsageRecord.objects.filter(tenant=caller.tenant)] == [good.request_id]
    assert unsettled.count() == 3
    assert not QuarantinedEvent.objects.exists()
    # The store has the calls as they were admitted, so nothing of them is lost.
    assert settled(caller) == [("exact", "exact", 2, 700)] * 3
    assert used(caller) == figures(3, 6, 2100)


# Both or none


def test_the_row_and_what_the_store_must_learn_commit_together(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    given = exact(caller, *admitted(caller))

    def fail(_: object) -> None:
        raise RuntimeError("killed before the commit")

    with monkeypatch.context() as patched:
        patched.setattr(unsettled, "_note", fail)
        with pytest.raises(RuntimeError):
            unsettled.record([given])
    assert not UsageRecord.objects.filter(tenant=caller.tenant).exists()
    assert not UnsettledCall.objects.exists()
    unsettled.record([given])
    assert settled(caller) == [("exact", "exact", 2, 700)]


def test_control_a_row_alone_would_hold_the_estimate_for_ever(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    given = exact(caller, *admitted(caller))
    with monkeypatch.context() as patched:
        patched.setattr(unsettled, "_note", lambda _: None)
        unsettled.record([given])
    assert settled(caller) == [("exact", "exact", 2, 700)]
    assert used(caller) != figures(1, 2, 700)


def test_control_counters_that_were_rebuilt_would_count_it_twice_without_the_generation(
    caller: Caller,
) -> None:
    request_id, call = admitted(caller)
    unsettled.record([exact(caller, request_id, call)])
    guardian.start_over()
    assert used(caller) == figures(1, 2, 700)
    store().hset(keys.reservation(caller.shard, request_id), "generation", generation())  # as if nobody looked
    assert settled(caller) == [("exact", "exact", 2, 700)]
    assert used(caller) != figures(1, 2, 700)


# The web process's way into PostgreSQL


async def book_all(endings: list[Ending], desk: Booking | None = None) -> list[BaseException | None]:
    """Book endings at once; what became of each."""
    desk = desk or Booking()
    return await asyncio.gather(*map(desk.book, endings), return_exceptions=True)


def test_endings_that_wait_together_are_one_transaction(caller: Caller) -> None:
    endings = [exact(caller, *admitted(caller)) for _ in range(20)]
    assert asyncio.run(book_all(endings)) == [None] * 20
    with connection.cursor() as cursor:
        of_tenant = "SELECT count(*), count(DISTINCT xmin::text) FROM usage_record WHERE tenant_id = %s"
        cursor.execute(of_tenant, [caller.tenant.pk])
        assert cursor.fetchone() == (20, 1)
    assert settled(caller) == [("exact", "exact", 2, 700)] * 20


def lead_to(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new connections to PostgreSQL go to another port."""
    described = connections.settings["default"]
    monkeypatch.setitem(described, "HOST", "127.0.0.1")
    monkeypatch.setitem(described, "PORT", str(port))


def test_without_postgresql_it_says_so_at_once(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_to(1, monkeypatch)
    begun = time.monotonic()
    (outcome,) = asyncio.run(book_all([exact(caller, *admitted(caller))]))
    assert isinstance(outcome, NotBooked)
    assert time.monotonic() - begun < 1


def test_a_postgresql_that_hangs_is_given_up_and_later_ones_do_not_wait_for_it(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(booking, "BOOK_SECONDS", 0.5)
    desk, given, released = Booking(), exact(caller, *admitted(caller)), threading.Event()
    record = unsettled.record

    def hang(endings: list[Ending]) -> None:
        released.wait(20)
        record(endings)

    async def book() -> tuple[float, float]:
        begun = time.monotonic()
        assert isinstance((await book_all([given], desk))[0], NotBooked)
        first = time.monotonic()
        assert isinstance((await book_all([given], desk))[0], NotBooked)
        second = time.monotonic()
        released.set()
        async with asyncio.timeout(5):
            while isinstance((await book_all([given], desk))[0], NotBooked):
                await asyncio.sleep(0.02)
        return first - begun, second - first

    monkeypatch.setattr(unsettled, "record", hang)
    first, second = asyncio.run(book())
    assert first < 2
    assert second < 0.4
    assert settled(caller) == [("exact", "exact", 2, 700)]


def test_a_server_that_never_answers_ends_its_thread(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = rawservers.RawServer(rawservers.hang_before_reading)
    lead_to(silent.listener.getsockname()[1], monkeypatch)
    begun = time.monotonic()
    (outcome,) = asyncio.run(book_all([exact(caller, *admitted(caller))]))
    silent.close()
    assert isinstance(outcome, NotBooked)
    assert str(outcome) == "OperationalError", "it was given up from outside: the thread still waits"
    assert time.monotonic() - begun < booking.BOOK_SECONDS


def test_a_thread_that_cannot_be_started_is_tried_again_with_the_next_call(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def book() -> list[BaseException | None]:
        desk, endings = Booking(), [exact(caller, *admitted(caller)) for _ in range(2)]
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            (first,) = await book_all(endings[:1], desk)
        return [first, *await book_all(endings[1:], desk)]

    refused, booked = asyncio.run(book())
    assert (type(refused), str(refused)) == (NotBooked, "can't start new thread")
    assert booked is None

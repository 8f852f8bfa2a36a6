"""A usage event that is lost between store and ledger is noticed at the next look, and one that only waits is not.

Calls are admitted and ended by the real scripts; what is lost is deleted from the stream by hand.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from django.conf import settings as gateway_settings

from config.celery import app
from config.redis import store
from tests.ownbooks import own_books
from tests.ownvalkey import OwnValkey
from tests.scriptcalls import EXACT, Caller, generation
from tokens.admission import keys
from usage import alarmchecks, drain, gaps, guardian, ledger, waiting
from usage.alarms import AlarmKind
from usage.events import parse
from usage.models import Alarm, EventReceipt, QuarantinedEvent, SequenceCheck
from usage.reconciliation import Verdict, compare_counters
from usage.tasks import check_sequences


@pytest.fixture(scope="module")
def books(django_db_setup: None, django_db_blocker: Any) -> Iterator[OwnValkey]:
    with django_db_blocker.unblock(), own_books() as valkey:
        yield valkey


@pytest.fixture
def caller(books: OwnValkey) -> Iterator[Caller]:
    yield Caller()
    Alarm.objects.all().delete()
    QuarantinedEvent.objects.all().delete()


def entries(caller: Caller) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return cast("list[Any]", store().xrange(keys.usage(caller.shard)))


def lose(caller: Caller, *sequences: int) -> list[dict[bytes, bytes]]:
    """Delete waiting events from the stream; returns them."""
    own = [(number, fields) for number, fields in entries(caller) if int(fields[b"tenant"]) == caller.tenant.pk]
    lost = [(number, fields) for number, fields in own if int(fields[b"sequence"]) in sequences]
    assert len(lost) == len(sequences)
    store().xdel(keys.usage(caller.shard), *[number for number, _ in lost])
    return [fields for _, fields in lost]


def send(caller: Caller, fields: dict[bytes, bytes]) -> None:
    store().xadd(keys.usage(caller.shard), cast("dict[Any, Any]", fields))


def calls(caller: Caller, count: int) -> None:
    for _ in range(count):
        caller.calls(EXACT)


def book() -> None:
    while drain.drain(claim_after_ms=0):
        pass


def name() -> str:
    return generation().partition(":")[0]


def alarms(kind: AlarmKind = AlarmKind.SEQUENCE_GAP) -> list[str]:
    return sorted(Alarm.objects.filter(kind=kind, closed_at=None).values_list("subject", flat=True))


def through(caller: Caller) -> int:
    return SequenceCheck.objects.get(tenant=caller.tenant, generation=name()).through


def test_a_lost_event_has_its_alarm_until_it_comes_in(caller: Caller) -> None:
    calls(caller, 6)
    lost = lose(caller, 2, 4)
    book()
    check_sequences()
    assert alarms() == [f"{caller.tenant.slug} {name()} 2-4"]
    assert "2 usage events" in Alarm.objects.get().message
    message = Alarm.objects.get().message
    assert "numbers 2, 4. Next to what is lost: calls of 2026-" in message
    assert re.search(r"calls of (\S+ \S+) and (\S+ \S+) UTC", message), "of the events 1 and 5"
    assert through(caller) == 6, "no check looks at these again, but through the alarm"
    check_sequences()
    assert Alarm.objects.count() == 1
    send(caller, lost[0])
    book()
    check_sequences()
    assert len(alarms()) == 1
    assert Alarm.objects.get().message == message.replace("2 usage events", "1 usage event").replace("s 2, 4", " 4")
    send(caller, lost[1])
    book()
    check_sequences()
    assert alarms() == []
    assert Alarm.objects.get().closed_at


def test_control_without_a_loss_there_is_no_alarm(caller: Caller) -> None:
    calls(caller, 6)
    check_sequences()
    book()
    check_sequences()
    assert alarms() == []
    assert through(caller) == 6


def test_the_newest_events_are_missed_as_well(caller: Caller) -> None:
    calls(caller, 2)
    book()
    check_sequences()
    calls(caller, 2)
    lose(caller, 3, 4)
    check_sequences()
    assert alarms() == [f"{caller.tenant.slug} {name()} 3-4"]


def hold_the_first_two(caller: Caller) -> None:
    """Another worker has taken events 1 and 2 and not finished; 3 and 4 are booked."""
    book()
    calls(caller, 4)
    store().xreadgroup(keys.GROUP, "another", {keys.usage(caller.shard): ">"}, count=2)
    assert drain.drain(claim_after_ms=600_000) == 2
    assert EventReceipt.objects.filter(tenant=caller.tenant).count() == 2


def test_an_event_that_waits_is_not_lost(caller: Caller) -> None:
    hold_the_first_two(caller)
    check_sequences()
    assert alarms() == []
    book()
    check_sequences()
    assert alarms() == []
    assert through(caller) == 4


def test_whoever_has_events_waiting_is_not_reconciled(caller: Caller) -> None:
    calls(caller, 1)
    assert [found.verdict for found in compare_counters([caller.tenant])] == [Verdict.BUSY]
    book()
    assert [found.verdict for found in compare_counters([caller.tenant])] == [Verdict.EQUAL]


def test_control_whoever_does_not_look_at_the_stream_cries_wolf(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "waiting", lambda shard: waiting.Waiting(set(), {}, complete=True))
    hold_the_first_two(caller)
    check_sequences()
    assert alarms() == [f"{caller.tenant.slug} {name()} 1-2"]


def book_first(caller: Caller, count: int) -> None:
    """Book the oldest events of a stream, as a drain that is in the middle of a backlog."""
    for number, fields in entries(caller)[:count]:
        ledger.record([parse(fields)])
        store().xdel(keys.usage(caller.shard), number)


def test_a_long_stream_is_decided_as_far_as_it_was_looked_at(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PIECE", 1)
    monkeypatch.setattr(waiting, "MOST", 2)
    other = Caller()
    while other.shard != caller.shard:
        other = Caller()
    calls(caller, 2)
    lose(caller, 1)
    calls(other, 3)
    calls(caller, 1)
    book_first(caller, 1)
    check_sequences()
    assert alarms() == [], "whether number 1 still waits isn't known yet"
    book_first(caller, 2)
    check_sequences()
    assert alarms() == [f"{caller.tenant.slug} {name()} 1-1"]


def test_a_quarantined_event_is_not_lost(caller: Caller) -> None:
    calls(caller, 5)
    for broken in lose(caller, 2, 5):
        send(caller, {**broken, b"result": b"{"})
    book()
    assert QuarantinedEvent.objects.count() == 2
    check_sequences()
    assert alarms() == []
    alarmchecks.check()
    assert alarms(AlarmKind.QUARANTINE) == [""]


def test_a_restart_of_the_store_goes_on_counting_and_a_rebuilt_one_begins_at_1(
    caller: Caller, books: OwnValkey
) -> None:
    calls(caller, 2)
    book()
    books.kill()
    books.start()
    store().close()
    assert guardian.confirm() == "confirmed"
    calls(caller, 2)
    book()
    check_sequences()
    assert (alarms(), through(caller)) == ([], 4)
    calls(caller, 2)
    lose(caller, 5)
    before = name()
    guardian.start_over()
    assert name() != before
    check_sequences()
    assert alarms() == [f"{caller.tenant.slug} {before} 5-5"], "what was lost before is found after"
    calls(caller, 1)
    assert [int(fields[b"sequence"]) for _, fields in entries(caller)] == [1]
    book()
    check_sequences()
    assert through(caller) == 1
    assert len(alarms()) == 1


def test_a_number_that_is_given_twice_is_noticed(caller: Caller) -> None:
    calls(caller, 3)
    book()
    store().set(keys.sequence(caller.shard, caller.tenant.pk), 1)
    check_sequences()
    assert alarms(AlarmKind.SEQUENCE_BEHIND) == [caller.tenant.slug]
    calls(caller, 2)
    book()
    assert list(QuarantinedEvent.objects.values_list("error", flat=True)) == ["SequenceUsedTwice"] * 2
    check_sequences()
    assert alarms(AlarmKind.SEQUENCE_BEHIND) == []
    alarmchecks.check()
    assert alarms(AlarmKind.QUARANTINE) == [""]


def test_nothing_is_looked_at_while_the_store_is_fenced(caller: Caller) -> None:
    calls(caller, 3)
    lose(caller, 2)
    book()
    kept = generation()
    for shard in range(gateway_settings.SHARDS):
        store().hdel(keys.meta(shard), "generation")
    check_sequences()
    alarmchecks.check()
    assert (alarms(), alarms(AlarmKind.STORE_FENCED)) == ([], [""])
    for shard in range(gateway_settings.SHARDS):
        store().hset(keys.meta(shard), "generation", kept)
    check_sequences()
    alarmchecks.check()
    assert (len(alarms()), alarms(AlarmKind.STORE_FENCED)) == (1, [])


def test_old_receipts_go_and_the_highest_stays(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaps, "KEPT", 2)
    calls(caller, 6)
    lose(caller, 6)
    book()
    check_sequences()
    left = EventReceipt.objects.filter(tenant=caller.tenant).values_list("sequence", flat=True)
    assert sorted(left) == [4, 5]
    assert alarms() == [f"{caller.tenant.slug} {name()} 6-6"]
    calls(caller, 3)
    book()
    check_sequences()
    assert sorted(left.all()) == [8, 9]
    assert len(alarms()) == 1
    assert guardian._reached(store(), name())


def test_receipts_between_an_alarms_numbers_stay_until_it_closes(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "KEPT", 1)
    receipts = EventReceipt.objects.filter(tenant=caller.tenant).values_list("sequence", flat=True)
    calls(caller, 8)
    lost = lose(caller, 3, 6)
    book()
    for _ in range(2):
        check_sequences()
        calls(caller, 1)
        book()
        assert "2 usage events" in Alarm.objects.get().message, "4 and 5 came in"
    check_sequences()
    assert sorted(receipts.all()) == [4, 5, 10]
    for left, event in ((1, lost[0]), (0, lost[1])):
        send(caller, event)
        book()
        check_sequences()
        assert len(alarms()) == left
    calls(caller, 1)
    book()
    check_sequences()
    assert sorted(receipts.all()) == [11]


def test_it_is_looked_at_every_minute() -> None:
    schedule: dict[Any, Any] = {
        entry["task"]: entry["schedule"] for entry in gateway_settings.CELERY_BEAT_SCHEDULE.values()
    }
    assert {name for name in schedule if name.startswith("usage.")} <= app.tasks.keys()
    assert schedule["usage.check_sequences"] + schedule["usage.check_alarms"] <= 120


def test_a_store_from_before_a_rebuild_is_not_vouched_for(caller: Caller, books: OwnValkey, tmp_path: Path) -> None:
    """Its sequences have reached every receipt of their time; what was used since, it doesn't know."""
    calls(caller, 2)
    book()
    shutil.copytree(books.folder, tmp_path / "copy")
    guardian.start_over()
    current = name()
    calls(caller, 2)
    book()
    assert books.child
    books.child.stop(0)
    shutil.rmtree(books.folder)
    shutil.copytree(tmp_path / "copy", books.folder)
    books.start()
    store().close()
    assert name() != current
    assert guardian.confirm() == "fenced"
    assert alarms(AlarmKind.STORE_FENCED) == [""]
    assert guardian.confirm(wait=False) == "rebuilt"

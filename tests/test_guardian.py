"""The guardian of the admission store: a store that lost anything admits nobody until it is rebuilt from the ledger.

On a Valkey and a database of these tests' own, in this process; calls are admitted and ended by the real scripts.
"""

import datetime as dt
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from django.db import connection

from config.redis import store
from config.requestids import make_request_id
from config.supervisor.valkey import EmbeddedValkey
from tests import stack
from tests.owndatabase import drop_database
from tests.processes import wait_until
from tests.scriptcalls import EXACT, NOT_SENT, UNRESOLVED, VOID, Caller, counters, event, generation
from tokens import issuing
from tokens.admission import keys, scripts
from tokens.admission.periods import Calendar, open_periods
from usage import drain, guardian, ledger
from usage.models import UsageRecord

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE, NAME = "guardian_template", "guardian_own"
LEASE = 1.5  # seconds


def address(name: str) -> str:
    """The URL of a database on the run's PostgreSQL."""
    return stack.SERVERS.database_url.replace("/gateway?", f"/{name}?")


@pytest.fixture(scope="module")
def template() -> Iterator[str]:
    """A migrated database to make others from."""
    with psycopg.connect(stack.SERVERS.database_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {TEMPLATE}".encode())
        environment = {**os.environ, "DATABASE_URL": address(TEMPLATE)}
        command = [sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity", "0"]
        subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=60)
        yield TEMPLATE
        drop_database(server, TEMPLATE)


@pytest.fixture
def database(template: str) -> Iterator[str]:
    """An empty database, which this process uses instead of the run's."""
    with psycopg.connect(stack.SERVERS.database_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {NAME} TEMPLATE {template}".encode())
        connection.close()
        name, connection.settings_dict["NAME"] = connection.settings_dict["NAME"], NAME
        yield NAME
        connection.close()
        connection.settings_dict["NAME"] = name
        drop_database(server, NAME)


@pytest.fixture
def valkey(tmp_path: Path, settings: Any, database: str) -> Iterator[EmbeddedValkey]:
    """A Valkey that this process uses instead of the run's, empty and unknown to the guardian."""
    server = EmbeddedValkey(tmp_path)
    server.start()
    settings.REDIS_URL, settings.LEASE_SECONDS = server.url, LEASE
    store.cache_clear()
    yield server
    store().close()
    store.cache_clear()
    server.stop(5)


def restart(server: EmbeddedValkey, data: Path | None = None) -> None:
    """Kill the server and start it again, on a former state of its data if given."""
    assert server.child
    server.child.stop(0)
    if data is not None:
        shutil.rmtree(server.folder)
        shutil.copytree(data, server.folder)
    server.start()
    store().close()


def book() -> None:
    """Bring everything into the ledger."""
    drain.drain(claim_after_ms=0)
    assert sum(int(store().xlen(keys.usage(shard))) for shard in range(16)) == 0


def until_rebuilt() -> float:
    """Confirm until the store is rebuilt; returns how many seconds it stayed fenced."""
    begun = time.time()
    wait_until(lambda: guardian.confirm() == "rebuilt", LEASE + 5, "the rebuilt store")
    return time.time() - begun


def test_a_new_store_of_a_new_installation_is_ready_at_once(valkey: EmbeddedValkey) -> None:
    assert generation() == ""
    assert guardian.confirm() == "rebuilt"
    assert guardian.confirm() == "confirmed"
    assert generation().endswith(f":{store().info('server')['run_id']}")
    assert Caller().admit()[0] == "ADMITTED"


def test_a_store_that_was_restarted_whole_is_confirmed_under_its_name(valkey: EmbeddedValkey) -> None:
    guardian.confirm()
    caller = Caller(limits=("images:4/day",))
    caller.calls(EXACT)
    book()
    before, counted = generation(), counters()
    restart(valkey)
    run_id = store().info("server")["run_id"]
    assert generation() == before != f"{before.partition(':')[0]}:{run_id}", "nothing but the guardian may vouch for it"
    assert guardian.confirm() == "confirmed"
    assert generation() == f"{before.partition(':')[0]}:{run_id}"
    assert counters() == counted
    caller.calls(EXACT)
    assert caller.admit()[0] == "REFUSED"


def test_an_emptied_store_admits_nobody_for_a_lease_and_then_knows_all_again(valkey: EmbeddedValkey) -> None:
    """Every way for a call to end, in three time zones, with quotas of each scope and period."""
    guardian.confirm()
    zones = ("Pacific/Kiritimati", "America/New_York", "Pacific/Pago_Pago")
    callers = [Caller(zone, ("images:50/day", "tokens:90000/month", "requests:40/total")) for zone in zones]
    for caller in callers:
        issuing.set_limits(caller.member, ["images:60/total"])
        issuing.set_limits(caller.token, ["tokens:90000/total", "images:30/month"])
        for endings in ((EXACT,), (VOID,), (NOT_SENT,), (UNRESOLVED,)):
            caller.calls(*endings)
        for late in (EXACT, VOID, NOT_SENT):  # corrections in the ledger
            caller.calls(UNRESOLVED, late)
        caller.calls(("exact", 1, 3000, ""))  # fewer images, more tokens than reserved
    book()
    before, counted = generation(), counters()
    # By token and day: six calls (the two never sent aren't counted); 2 + 2 + 2 + 1 images; 700 + 1000 + 700 + 3000.
    days = set()
    for caller in callers:
        periods = open_periods(Calendar(caller.timezone), time.time())
        days.add(periods.day)
        for scope in ("token", "member", "tenant"):
            assert caller.use(scope, f"day:{periods.day}") == (6, 7, 5400)
            assert caller.use(scope, f"month:{periods.month}") == (6, 7, 5400)
    assert len(days) > 1, "the zones are 25 hours apart"
    store().flushall()

    assert guardian.confirm() == "fenced"
    assert generation() == "", "no generation, so the admit script answers NOT_READY"
    assert not list(store().scan_iter(match="*:token:*")), "nothing is loaded before every call in flight has ended"
    assert until_rebuilt() >= LEASE - 1.0  # the end of the fence is a whole second
    assert guardian.confirm() == "confirmed"
    assert counters() == counted
    assert generation().partition(":")[0] != before.partition(":")[0]
    assert callers[0].admit()[0] == "ADMITTED"


def test_periods_that_are_over_count_where_they_must_and_nowhere_else(valkey: EmbeddedValkey) -> None:
    """Rows of today, yesterday and last month, some older than a total quota."""
    guardian.confirm()
    caller = Caller("Europe/Berlin")
    today = dt.date.fromisoformat(open_periods(Calendar(caller.timezone), time.time()).day)
    days = [today, today - dt.timedelta(days=1), today.replace(day=1) - dt.timedelta(days=1)]
    ledger.record([event(caller, day, 900 + number) for number, day in enumerate(days)])
    limit = issuing.set_limits(caller.token, ["tokens:100000/total"])[0]
    later = int((limit.created_at.timestamp() + 1) * 1000)
    ledger.record([event(caller, today, 50, make_request_id(later))])

    store().flushall()
    assert guardian.confirm(wait=False) == "rebuilt"
    assert caller.use("token", f"day:{today}") == (2, 4, 950)
    of_month = [900 + number for number, day in enumerate(days) if f"{day:%Y-%m}" == f"{today:%Y-%m}"]
    assert caller.use("tenant", f"month:{today:%Y-%m}") == (
        len(of_month) + 1,
        2 * len(of_month) + 2,
        sum(of_month) + 50,
    )
    assert caller.use("token", f"total:{limit.pk}") == (1, 2, 50)
    assert caller.use("token", f"day:{days[1]}") == (0, 0, 0)


def fill_and_roll_back(valkey: EmbeddedValkey, copy: Path) -> Caller:
    """A caller with a quota of six images, all delivered and booked; then the store forgets the last four."""
    guardian.confirm()
    caller = Caller(limits=("images:6/total", "images:6/day"))
    caller.calls(EXACT)
    book()
    shutil.copytree(valkey.folder, copy)
    for _ in range(2):
        caller.calls(EXACT)
    assert caller.admit()[0] == "REFUSED"
    book()
    restart(valkey, copy)
    return caller


def test_a_store_that_was_rolled_back_is_fenced_and_over_admits_nothing(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    caller = fill_and_roll_back(valkey, tmp_path / "copy")
    assert guardian.confirm() == "fenced"
    assert caller.admit()[0] == "NOT_READY"
    until_rebuilt()
    assert caller.admit()[0] == "REFUSED"
    assert images_booked(caller) == 6


def test_control_without_the_comparison_a_rolled_back_store_over_admits(
    valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardian, "_reached", lambda client, name: True)
    caller = fill_and_roll_back(valkey, tmp_path / "copy")
    assert guardian.confirm() == "confirmed"
    caller.calls(EXACT)
    book()
    assert images_booked(caller) == 8, "of a quota of six"


def end_what_was_open(valkey: EmbeddedValkey, copy: Path) -> Caller:
    """A quota of six images, two of them for calls in flight, which end when the store has forgotten two others."""
    guardian.confirm()
    caller = Caller(limits=("images:6/total", "images:6/day"))
    caller.calls(EXACT)
    open_calls = [caller.admit(1) for _ in range(2)]
    book()
    shutil.copytree(valkey.folder, copy)
    caller.calls(EXACT)
    book()
    restart(valkey, copy)
    for _, request_id, call in open_calls:
        assert caller.end(request_id, call, "exact", 1, 200) == b"DONE"
    return caller


@pytest.mark.parametrize("drained", [False, True])
def test_calls_that_end_before_the_guardian_looks_do_not_make_a_rolled_back_store_look_whole(
    drained: bool, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    caller = end_what_was_open(valkey, tmp_path / "copy")
    if drained:
        book()
    assert guardian.confirm() == "fenced"
    until_rebuilt()
    assert caller.admit()[0] == "REFUSED"
    assert images_booked(caller) == 6


def test_control_numbers_of_a_store_that_nobody_vouched_for_deceive_the_guardian(
    valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = scripts.finish().text
    wrong = right.replace("local sequence = confirmed and", "local sequence = generation and")
    assert wrong != right
    script = scripts.Script("finish", wrong, hashlib.sha1(wrong.encode(), usedforsecurity=False).hexdigest())
    monkeypatch.setattr(scripts, "finish", lambda: script)
    caller = end_what_was_open(valkey, tmp_path / "copy")
    assert guardian.confirm() == "confirmed"
    caller.calls(EXACT)
    book()
    assert images_booked(caller) == 8, "of a quota of six"


# What happens while the store is rebuilt


def fenced(limits: tuple[str, ...] = ()) -> Caller:
    """A caller of a store that is fenced."""
    guardian.confirm()
    caller = Caller(limits=limits)
    for shard in range(16):
        store().hdel(keys.meta(shard), "generation")
    return caller


def today(caller: Caller) -> str:
    return open_periods(Calendar(caller.timezone), time.time()).day


def come_in(how: str, caller: Caller) -> None:
    """Usage of two images: by an event that another worker books at once, or straight into the ledger."""
    if how == "drained":
        call = caller.call_fields(caller.principal(), 2)
        assert caller.end(make_request_id(), call, "exact", 2, 700) == b"DONE"
        book()
    else:
        ledger.record([event(caller, dt.date.fromisoformat(today(caller)), 700)])


def while_loading(how: str, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let it come in once all counters are loaded, for a tenant that had none; the name of each attempt."""
    note, names = guardian._note_name, list[str]()

    def note_and_more(name: str) -> None:
        note(name)
        names.append(name)
        if len(names) == 1:
            come_in(how, caller)

    monkeypatch.setattr(guardian, "_note_name", note_and_more)
    return names


@pytest.mark.parametrize("how", ["drained", "written"])
def test_usage_that_comes_in_while_counters_are_loaded_is_counted(
    how: str, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = fenced()
    attempts = while_loading(how, caller, monkeypatch)
    assert guardian.confirm(wait=False) == "rebuilt"
    assert caller.use("tenant", f"day:{today(caller)}") == (1, 2, 700)
    assert len(attempts) == 2


def test_control_who_looks_only_at_what_waits_misses_it(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = fenced()
    while_loading("drained", caller, monkeypatch)
    books = guardian._books
    monkeypatch.setattr(guardian, "_books", lambda client: books(client)._replace(last=[], row=0, number=0))
    assert guardian.confirm(wait=False) == "rebuilt"
    assert caller.use("tenant", f"day:{today(caller)}") == (0, 0, 0)


def leave_to_a_newer_worker(caller: Caller) -> None:
    entry: dict[Any, Any] = {"request_id": make_request_id(), "kind": "exact", "call": b'{"v": 2}', "result": b"{}"}
    store().xadd(keys.usage(caller.shard), entry)


@pytest.mark.parametrize("before", [lambda: None, drain.drain], ids=["unread", "left"])
def test_an_event_of_a_newer_version_does_not_keep_the_store_closed(
    before: Callable[[], object], valkey: EmbeddedValkey
) -> None:
    caller = fenced()
    leave_to_a_newer_worker(caller)
    before()
    assert guardian.confirm(wait=False) == "rebuilt"
    assert store().xlen(keys.usage(caller.shard)) == 1
    assert caller.admit()[0] == "ADMITTED"


def test_an_event_that_can_be_booked_keeps_it_closed_beside_one_that_cannot(valkey: EmbeddedValkey) -> None:
    caller = fenced()
    leave_to_a_newer_worker(caller)
    drain.drain()
    come_in_later = caller.call_fields(caller.principal(), 2)
    books = guardian._books(store())
    assert not books.waits
    caller.end(make_request_id(), come_in_later, "exact", 2, 700)
    assert guardian._books(store()).waits
    assert not guardian._open(store(), f"name:{store().info('server')['run_id']}", books)


def test_a_store_that_is_started_again_while_it_is_rebuilt_is_not_opened(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = fenced()
    with monkeypatch.context() as patched:
        patched.setattr(guardian, "_note_name", lambda name: restart(valkey))
        with pytest.raises(redis.ConnectionError, match="started again"):
            guardian.confirm(wait=False)
    assert generation() == ""
    assert guardian.confirm(wait=False) == "rebuilt"
    assert caller.admit()[0] == "ADMITTED"


def test_calls_that_were_open_when_the_store_lost_its_generation_hold_what_they_may_have_cost(
    valkey: EmbeddedValkey,
) -> None:
    """Four images a day: one drawn, three of calls whose process was killed. Nothing is left afterwards."""
    guardian.confirm()
    caller = Caller(limits=("images:4/day", "images:4/hour"))
    caller.calls(("exact", 1, 300, ""))
    book()
    late = [caller.admit(1) for _ in range(2)][1]
    for shard in range(16):
        store().hdel(keys.meta(shard), "generation")
    assert guardian.confirm() == "fenced"
    until_rebuilt()
    (figures,) = [found for name, (found, _) in counters().items() if f"tenant:{caller.tenant.pk}:day" in name]
    assert figures["reserved_images"] == 0
    assert figures["images"] == 3
    assert caller.admit(2)[0] == "REFUSED"
    assert caller.end(late[1], late[2], "exact", 1, 200) == b"DONE"
    assert caller.use("tenant", f"day:{open_periods(Calendar('UTC'), time.time()).day}")[1] == 3, (
        "counted by the rebuild"
    )
    assert caller.admit(1)[0] == "ADMITTED"


def test_a_rebuilt_store_remembers_hourly_rates(valkey: EmbeddedValkey) -> None:
    guardian.confirm()
    caller = Caller(limits=("images:4/hour",))
    caller.calls(EXACT)
    book()
    store().flushall()
    until_rebuilt()
    assert caller.admit(2)[0] == "ADMITTED"
    assert caller.admit(1)[0] == "REFUSED"


def images_booked(caller: Caller) -> int:
    """The images of a caller that are in the ledger."""
    return sum(UsageRecord.objects.filter(tenant=caller.tenant).values_list("images", flat=True))


def test_only_one_guardian_works_at_a_time(valkey: EmbeddedValkey, database: str) -> None:
    with psycopg.connect(address(database), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [guardian.LOCK])
        assert guardian.confirm() == "busy"
        assert generation() == ""
    wait_until(lambda: guardian.confirm() != "busy", what="the lock of one who is gone")
    assert generation()


def test_a_store_that_does_not_answer_is_not_taken_for_an_empty_one(valkey: EmbeddedValkey) -> None:
    guardian.confirm()
    before = generation()
    assert valkey.child
    valkey.child.stop(0)
    with pytest.raises(redis.RedisError):
        guardian.confirm()
    valkey.start()
    store().close()
    assert guardian.confirm() == "confirmed", "the lock was let go, and nothing was fenced"
    assert generation().partition(":")[0] == before.partition(":")[0]

"""The ledger beside two accounts that it isn't made from: the store's counters, and what a provider says it drew."""

import csv
import io
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.core.management import CommandError, call_command
from django.utils.timezone import now

from config.redis import store
from tests.bookkeeping import Customer as Books
from tests.conftest import Customer, Gateway
from tests.ledgerwatch import rows
from tests.processes import wait_until
from tests.scriptcalls import EXACT, NOT_SENT, UNRESOLVED, VOID, Caller
from tokens.admission import keys
from usage import counters, drain, reconciliation
from usage.alarms import AlarmKind, raise_alarm
from usage.ledger import record
from usage.models import Alarm, UnsettledCall
from usage.reconciliation import Compared, Verdict, compare_counters, repair
from usage.waiting import Waiting


def usage(*arguments: Any) -> tuple[str, str, str]:
    """What the command prints, remarks, and the sentence it fails with."""
    out, errors = io.StringIO(), io.StringIO()
    try:
        call_command("usage", "reconcile", *map(str, arguments), stdout=out, stderr=errors)
    except CommandError as exc:
        return out.getvalue(), errors.getvalue(), str(exc)
    return out.getvalue(), errors.getvalue(), ""


@pytest.fixture
def caller() -> Caller:
    """Calls that ended in every way, within quotas of every scope, all in the ledger."""
    made = Caller("Pacific/Kiritimati", ("images:900/day", "tokens:900000/month", "requests:900/total"))
    for endings in ((EXACT,), (VOID,), (NOT_SENT,), (UNRESOLVED,), (UNRESOLVED, EXACT), (UNRESOLVED, NOT_SENT)):
        made.calls(*endings)
    assert made.admit(2)[0] == "ADMITTED"  # and one that is open
    settle(made)
    return made


def settle(caller: Caller) -> None:
    """Wait until all of the caller's events are in the ledger."""
    wait_until(
        lambda: drain.drain(claim_after_ms=0) == 0 and not store().xlen(keys.usage(caller.shard)), what="the drain"
    )


def compared(caller: Caller) -> Compared:
    (found,) = compare_counters([caller.tenant])
    return found


def counter(caller: Caller) -> str:
    """The tenant's counter of the day."""
    (name,) = store().scan_iter(f"{{s{caller.shard}}}:use:tenant:{caller.tenant.pk}:day:*", count=10_000)
    return bytes(name).decode()


def test_equal_accounts_are_found_equal(caller: Caller) -> None:
    assert compared(caller).verdict is Verdict.EQUAL
    out, errors, failed = usage("--counters", "--tenant", caller.tenant.slug)
    assert (out, errors, failed) == ("", "1 of 1 tenants compared.\n", "")


def test_a_counter_that_differs_is_told_and_repaired_when_asked(caller: Caller) -> None:
    name = counter(caller)
    store().hincrby(name, "tokens", 70)
    store().delete(name.replace(":day:", ":month:").rpartition("-")[0])
    found = compared(caller)
    assert found.verdict is Verdict.DIFFERS
    assert {(item.scope, item.period.partition(":")[0]) for item in found.differences.values()} == {
        (f"tenant:{caller.tenant.pk}", "day"),
        (f"tenant:{caller.tenant.pk}", "month"),
    }
    reserved = store().hget(name, "reserved_images")
    out, _, failed = usage("--counters", "--tenant", caller.tenant.slug)
    use = int(store().hget(name, "tokens") or 0)
    assert f"tokens (store {use}, ledger {use - 70})" in out
    assert failed == "The counters of 1 tenant differ from the ledger."
    assert compared(caller).verdict is Verdict.DIFFERS, "telling repairs nothing"
    _, errors, failed = usage("--counters", "--tenant", caller.tenant.slug, "--repair")
    assert failed == ""
    assert f"{caller.tenant.slug}: repaired." in errors
    assert compared(caller).verdict is Verdict.EQUAL
    assert store().hget(name, "reserved_images") == reserved == b"2"
    assert store().ttl(name.replace(":day:", ":month:").rpartition("-")[0]) > 0


def test_a_repair_that_comes_late_changes_nothing(caller: Caller) -> None:
    name = counter(caller)
    store().hincrby(name, "tokens", 70)
    found = compared(caller)
    caller.calls(EXACT)
    before = store().hgetall(name)
    assert not repair(found)
    assert store().hgetall(name) == before


def test_a_tenant_in_use_is_not_compared(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciliation, "waiting", lambda shard: Waiting(set(), {}, complete=False))
    _, errors, failed = usage("--counters", "--tenant", caller.tenant.slug)
    assert f"not compared: {caller.tenant.slug}" in errors
    assert failed == ""


def test_a_call_that_the_store_must_still_learn_of_makes_it_busy(caller: Caller) -> None:
    of = uuid.uuid4()
    fields = {"request_id": str(of), "shard": caller.shard, "tenant": caller.tenant.pk, "kind": "exact"}
    ending = {**fields, "images": 1, "tokens": 1, "keep_request": True, "result": "", "call": "", "answer": ""}
    store().hincrby(counter(caller), "images", 1)
    waits = UnsettledCall.objects.create(request_id=of, ending=json.dumps(ending).encode())
    verdict = compared(caller).verdict
    waits.delete()
    assert verdict is Verdict.BUSY
    assert compared(caller).verdict is Verdict.DIFFERS


def test_a_call_that_ends_meanwhile_makes_it_busy(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    real = counters.expected

    def slow(*arguments: Any) -> Any:
        found = real(*arguments)
        caller.calls(EXACT)
        return found

    monkeypatch.setattr(counters, "expected", slow)
    assert compared(caller).verdict is Verdict.BUSY


@pytest.mark.parametrize("looks", [True, False], ids=["looking at the stream", "control: not looking"])
def test_what_waits_is_no_difference(caller: Caller, monkeypatch: pytest.MonkeyPatch, looks: bool) -> None:
    behind = counters.expected(caller.tenant, time.time())
    caller.calls(EXACT)  # which a worker of another test may book: what the ledger said before is kept
    monkeypatch.setattr(counters, "expected", lambda *arguments: behind)
    tenants = {caller.tenant.pk} if looks else set()
    monkeypatch.setattr(reconciliation, "waiting", lambda shard: Waiting(tenants, {}, complete=True))
    assert compared(caller).verdict is (Verdict.BUSY if looks else Verdict.DIFFERS)


def test_a_total_quota_may_have_missed_what_came_while_it_was_published(caller: Caller) -> None:
    (name,) = store().scan_iter(f"{{s{caller.shard}}}:use:tenant:{caller.tenant.pk}:total:*", count=10_000)
    store().hincrby(name, "images", -1)
    assert compared(caller).verdict is Verdict.EQUAL
    store().hincrby(name, "images", 10)
    assert compared(caller).verdict is Verdict.DIFFERS


def test_the_alarm_opens_and_closes(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciliation, "compare_counters", lambda: compare_counters([caller.tenant]))
    opened = Alarm.objects.filter(kind=AlarmKind.COUNTERS_DIFFER, subject=caller.tenant.slug, closed_at=None)
    store().hincrby(counter(caller), "tokens", 5)
    reconciliation.check_counters()
    assert "tokens (store " in opened.get().message
    store().hincrby(counter(caller), "tokens", -5)
    reconciliation.check_counters()
    assert not opened.exists()


def test_what_was_looked_at_is_told_even_if_the_time_ends(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Caller()
    opened = Alarm.objects.filter(kind=AlarmKind.COUNTERS_DIFFER, closed_at=None)
    for tenant in (caller.tenant, other.tenant):
        raise_alarm(AlarmKind.COUNTERS_DIFFER, tenant.slug, "They differ.")

    def late() -> Iterator[Compared]:
        yield from compare_counters([caller.tenant])
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(reconciliation, "compare_counters", late)
    with pytest.raises(SoftTimeLimitExceeded):
        reconciliation.check_counters()
    assert not opened.filter(subject=caller.tenant.slug).exists()
    assert opened.filter(subject=other.tenant.slug).update(closed_at=now()) == 1


MANAGE = Path(__file__).resolve().parent.parent / "manage.py"

NOT_REPORTED = "tokens not reported, charged at the bound"

# What a provider may say of a call that the ledger has as the first column: tokens, images; what is found.
ACCOUNTS: list[tuple[str, list[tuple[int | None, int | None]], str]] = [
    ("exact", [(4182, 2)], "equal"),
    ("exact", [(4182, None)], "equal"),
    ("exact", [(None, 2)], "equal"),
    ("missing", [(None, 2)], NOT_REPORTED),
    ("missing", [(4850, 2)], "equal"),
    ("unresolved", [(None, 2)], "drawn, unresolved"),
    ("exact", [(4183, 2)], "differs"),
    ("exact", [(4182, 3)], "differs"),
    ("exact", [], "not drawn"),
    ("exact", [(2091, 1), (2091, 1)], "drawn twice"),
    ("void", [(4182, 2)], "drawn, void in ledger"),
    ("unresolved", [(4000, 2)], "drawn, unresolved"),
    ("unresolved", [], "not drawn, unresolved"),
    ("void", [], ""),
    ("", [(4182, 2)], "not in ledger"),
    ("exact", [(4182, 2)], "equal"),
]


@pytest.fixture
def accounts() -> tuple[Books, list[uuid.UUID]]:
    """Calls in the ledger as ACCOUNTS says; their request ids."""
    books = Books()
    ids = [
        uuid.UUID(int=(1_600_000_000_000 + books.tenant.pk * 1000 + at << 80) + (7 << 76) + (2 << 62))
        for at in range(len(ACCOUNTS))
    ]
    missing = {"reported": None, "charged": 4850, "provenance": "missing"}
    record(
        [
            books.event("exact", of=of, provider=books.model, **missing)
            if kind == "missing"
            else books.event(kind, of=of, provider=books.model)
            for (kind, *_), of in zip(ACCOUNTS, ids, strict=True)
            if kind
        ]
    )
    return books, ids


def as_json(ids: list[uuid.UUID]) -> str:
    lines = [
        {"at": "-", "request_id": str(of), "n": n, "usage": {"total_tokens": tokens}}
        for (_, drawn, _), of in zip(ACCOUNTS, ids, strict=True)
        for tokens, n in drawn
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def as_csv(ids: list[uuid.UUID]) -> str:
    lines = [
        f"{of},x,{'' if n is None else n},{'' if tokens is None else tokens}"
        for (_, drawn, _), of in zip(ACCOUNTS, ids, strict=True)
        for tokens, n in drawn
    ]
    return "\n".join(["request_id,model,n,total_tokens", *lines])


@pytest.mark.parametrize("write", [as_json, as_csv])
def test_every_way_to_differ_is_found(
    accounts: tuple[Books, list[uuid.UUID]], write: Callable[[list[uuid.UUID]], str], tmp_path: Path
) -> None:
    _, ids = accounts
    path = tmp_path / "account"
    path.write_text(write(ids))
    out, _, failed = usage("--provider", path, "--format", "csv")
    found = {uuid.UUID(row["request_id"]): row["finding"] for row in csv.DictReader(io.StringIO(out))}
    wrong = {of: what for (_, _, what), of in zip(ACCOUNTS, ids, strict=True) if what not in ("", "equal")}
    assert found == wrong
    assert failed == f"The accounts differ on {len(wrong)} calls."
    listed = json.loads(usage("--provider", path, "--format", "json")[0])
    assert len(listed["calls"]) == len(wrong)
    assert listed["totals"]["equal"]["calls"] == 5
    assert listed["totals"][NOT_REPORTED] == {"calls": 1, "drawn_tokens": 0, "charged_tokens": 4850}
    table = usage("--provider", path)[0]
    assert f"manage.py usage reconcile --provider {path} --format resolve | manage.py usage resolve --list -" in table
    assert "no command can book it" in table
    assert "{again}" not in table
    (total,) = (line for line in table.splitlines() if line.startswith("total"))
    assert total.split() == ["total", "15", "42,307", "57,706"]


def test_control_equal_accounts_end_well(accounts: tuple[Books, list[uuid.UUID]], tmp_path: Path) -> None:
    _, ids = accounts
    path = tmp_path / "account"
    path.write_text("\n".join(as_json(ids).splitlines()[:3]))
    assert usage("--provider", path)[2] == ""


def test_days_say_what_is_compared(accounts: tuple[Books, list[uuid.UUID]], tmp_path: Path) -> None:
    _, ids = accounts
    path = tmp_path / "account"
    path.write_text(as_json(ids))
    out, _, failed = usage("--provider", path, "--from", "2031-01-01", "--to", "2031-02-01", "--format", "json")
    assert (json.loads(out)["calls"], failed) == ([], "")
    assert usage("--provider", path, "--from", "2031-02-01", "--to", "2031-02-01")[2].startswith("--to must be")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nonsense\n1\n", "neither JSON lines nor CSV"),
        ('{"request_id": "x", "usage": {"total_tokens": 1}}', "line 1"),
        ('{"request_id": null, "usage": {"total_tokens": 1.5}}', "line 1"),
        ('{"usage"', "line 1"),
        ("request_id,total_tokens\n,many", "line 2"),
    ],
)
def test_a_file_that_is_no_account_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "account"
    path.write_text(text)
    assert sentence in usage("--provider", path)[2]


def test_a_line_without_a_request_id_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "account"
    path.write_text('{"request_id": null, "n": 1, "usage": {"total_tokens": 5}}\n')
    out, _, failed = usage("--provider", path)
    assert "no request id" in out
    assert failed == "The accounts differ on 1 call."


def test_what_the_sandbox_drew_is_what_the_ledger_says(gateway: Gateway, customer: Customer, tmp_path: Path) -> None:
    directives = ["", "", "[sandbox status=400]", "[sandbox drop=after_draw]", "[sandbox usage=missing]", ""]
    bodies = [{"prompt": f"a gem {directive}", "size": "256x256", "n": 1} for directive in directives]
    ids = [gateway.post(customer.secret, body).headers["x-request-id"] for body in bodies]
    kinds = {str(row.request_id): row.kind for row in rows(customer)}
    assert set(kinds) == set(ids)
    drawn = {of: entry for of, entry in gateway.drawn().items() if of in ids}
    path = tmp_path / "generations.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in drawn.values()))
    found = json.loads(usage("--provider", path, "--format", "json")[0])
    unresolved = {of for of in drawn if kinds[of] == "unresolved"}
    assert ids[3] in unresolved
    assert {call["request_id"] for call in found["calls"] if call["finding"] == "drawn, unresolved"} == unresolved
    equal = [drawn[of]["usage"]["total_tokens"] for of in drawn if kinds[of] == "exact" and of != ids[4]]
    sums = found["totals"]["equal"]
    assert (sums["calls"], sums["drawn_tokens"]) == (len(equal), sum(equal))
    assert [call["request_id"] for call in found["calls"] if call["finding"] == NOT_REPORTED] == [ids[4]]
    assert not {"differs", "not in ledger", "not drawn", "drawn, void in ledger"} & found["totals"].keys()


def test_months_end_what_was_drawn_is_listed_and_resolved(
    accounts: tuple[Books, list[uuid.UUID]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, ids = accounts
    (call,) = (
        of for row, of in zip(ACCOUNTS, ids, strict=True) if row == ("unresolved", [(4000, 2)], "drawn, unresolved")
    )
    path = tmp_path / "account"
    path.write_text(as_json(ids))
    listed, remarks, failed = usage("--provider", path, "--format", "resolve")
    assert (listed, failed) == (f"{call},4000,2\n", "")
    assert "doesn't say for how many tokens" in remarks
    assert "1 call to resolve. 8 more differ otherwise" in remarks
    monkeypatch.setattr(sys, "stdin", io.StringIO(listed))
    call_command("usage", "resolve", "--list", "-", "--reason", "account", stdout=io.StringIO(), stderr=io.StringIO())
    assert books.rows(call)[-1].provenance == "decided"
    assert usage("--provider", path, "--format", "resolve")[0] == ""
    found = {call["request_id"] for call in json.loads(usage("--provider", path, "--format", "json")[0])["calls"]}
    assert str(call) not in found, "it is equal now"
    books.check_books()


def test_the_pipe_of_the_manual_resolves_and_one_that_is_closed_is_no_error(
    accounts: tuple[Books, list[uuid.UUID]], tmp_path: Path
) -> None:
    books, ids = accounts
    path = tmp_path / "account of november"
    path.write_text(as_csv(ids))
    advice = usage("--provider", path)[0].partition("\ndrawn, unresolved:\n")[2].splitlines()[0]
    pipe = advice.partition(": ")[2].replace("manage.py", f"{sys.executable} {MANAGE}").replace("TEXT", "account")
    done = subprocess.run(["bash", "-o", "pipefail", "-c", pipe], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.count("resolved")) == (0, 1), done.stderr
    assert sum(row.outcome == "exact" and row.kind == "correction" for row in books.rows()) == 1
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(MANAGE), "usage", "reconcile", "--provider", str(path), "--format", "csv"]
    cut = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert cut.returncode == 141
    assert "Traceback" not in cut.stderr and "Broken pipe" not in cut.stderr

"""Closing a month while something else goes on, or after it went wrong before, or with much in the way."""

# ruff: noqa: F811 - fixtures are imported

import datetime as dt
import uuid
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.utils.timezone import now

from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tests.test_closing import (  # noqa: F401 - fixtures
    BEFORE,
    LAST,
    NOON,
    THIS,
    _nothing_of_others,
    acme,
    at,
    blocked_by,
    closed,
    standing,
    used,
    wrong,
)
from tests.test_closing_guards import in_thread
from tokens.errors import Refused
from tokens.models import Tenant
from usage import closing, obstacles
from usage.closing import close
from usage.ledger import record
from usage.models import QuarantinedEvent, Statement
from usage.months import State
from usage.obstacles import ObstacleKind
from usage.pending import Asked, Dated
from usage.resolving import ESTIMATE, resolve


def test_a_close_that_was_interrupted_after_the_decisions_tells_of_them(
    acme: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(acme, LAST, "unresolved")
    used(acme, LAST, "unresolved")
    with monkeypatch.context() as patched, pytest.raises(OperationalError):
        patched.setattr(closing, "_close", lambda *_: (_ for _ in ()).throw(OperationalError("gone")))
        closed(acme)
    assert standing(acme).unresolved == 0
    statement = closed(acme)
    assert statement.decided == 2 and wrong(acme) == []


def test_a_policy_that_was_changed_meanwhile_is_the_one_that_counts(acme: Books) -> None:
    used(acme, LAST, "unresolved")
    seen = standing(acme)
    tenant = Tenant.objects.get(pk=acme.tenant.pk)
    tenant.unresolved_policy = "estimate"
    tenant.save()
    statement = close(seen, "tests")
    assert (statement.policy, statement.totals[0]["cost"]) == ("estimate", "0.08")


def test_a_call_that_is_decided_during_the_close_is_decided_once(acme: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [used(acme, LAST, "unresolved") for _ in range(2)]
    decide = closing._decide

    def after_a_person(*words: Any) -> None:
        resolve({calls[0]: ESTIMATE}, "the provider's account", "somebody")
        decide(*words)

    monkeypatch.setattr(closing, "_decide", after_a_person)
    statement = closed(acme)
    assert statement.decided == 1, "the other one isn't the policy's"
    assert [len(acme.rows(call)) for call in calls] == [2, 2]
    assert acme.rows(calls[0])[1].booked_day == now().astimezone(acme.tenant.zone(now())).date(), "today, as ever"
    acme.check_books()
    assert wrong(acme) == []


def test_usage_of_an_earlier_month_that_came_meanwhile_goes_first(acme: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    used(acme, LAST)
    seen = standing(acme)
    used(acme, BEFORE)
    with pytest.raises(Refused, match=f"{BEFORE:%Y-%m} is first"):
        close(seen, "tests")
    assert not Statement.objects.filter(tenant=acme.tenant).exists()


def test_the_last_millisecond_of_the_month_settled_and_drained_after_the_close(acme: Books) -> None:
    used(acme, LAST)
    last = dt.datetime.combine(THIS, dt.time(), dt.UTC) - dt.timedelta(milliseconds=1)
    statement = closed(acme)
    late = acme.event(of=request_id(last), day=last.date().isoformat())
    record([late])
    (row,) = acme.rows(late.request_id)
    assert (row.day, row.booked_day, row.at) == (last.date(), THIS, last)
    assert statement.rows == 1 and wrong(acme) == []


def test_more_in_quarantine_than_is_looked_at_is_in_everybodys_way(
    acme: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(acme, LAST)
    other = Books()
    made = []
    for books in (other, acme):
        raw = {name.decode(): value.decode() for name, value in books.fields(of=request_id(at(LAST))).items()}
        made.append(QuarantinedEvent.objects.create(raw=raw, digest=uuid.uuid4().hex * 2, error="DataError"))
    monkeypatch.setattr(obstacles, "MOST", 1)
    assert blocked_by(acme) == {ObstacleKind.QUARANTINED}
    QuarantinedEvent.objects.filter(pk__in=[one.pk for one in made]).update(resolved_at=NOON)
    assert blocked_by(acme) == set()


def test_much_that_waits_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of thousands of tenants: the page of months would take minutes just when much waits."""
    asked = [Asked(Tenant(pk=number), LAST, THIS, NOON) for number in range(1, 2_001)]
    looks: list[Asked] = []

    def has(month: Asked, _call: Dated) -> bool:
        looks.append(month)
        return True

    monkeypatch.setattr(Asked, "has", has)
    found: Any = {month.tenant.pk: dict.fromkeys(ObstacleKind, 0) for month in asked}
    calls = [Dated(number % 2_000 + 1, LAST, None) for number in range(4_000)]
    obstacles._note(found, asked, ObstacleKind.UNDRAINED, calls)
    assert len(looks) == 4_000
    assert {counts[ObstacleKind.UNDRAINED] for counts in found.values()} == {2}


@pytest.mark.parametrize("when", ["now", "ahead"])
def test_a_running_month_and_a_future_one_stay_open(acme: Books, when: str) -> None:
    month = THIS if when == "now" else (THIS + dt.timedelta(days=32)).replace(day=1)
    used(acme, month)
    assert standing(acme).state is State.OPEN
    with pytest.raises(Refused, match="isn't over"):
        closed(acme)


@pytest.mark.parametrize("change", ["cost = cost + 0.00000000000001", "requests = 2", "unresolved_tokens = 1"])
def test_totals_that_the_ledger_doesnt_sum_to_are_not_frozen(acme: Books, change: str) -> None:
    used(acme, LAST)
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE usage_dailyusage SET {change} WHERE tenant_id = %s", [acme.tenant.pk])
    with pytest.raises(Refused, match=f"on {at(LAST).date()} isn't what the ledger's rows sum to"):
        closed(acme)
    assert standing(acme).state is State.READY


def test_of_two_who_close_at_once_one_does(acme: Books) -> None:
    used(acme, LAST)
    used(acme, LAST, "unresolved")
    seen = [standing(acme), standing(acme)]
    started = [in_thread(partial(close, one, "tests")) for one in seen]
    for thread, _ in started:
        thread.join(60)
    results = [found[0] for _, found in started]
    assert sorted(type(one).__name__ for one in results) == ["Refused", "Statement"], results
    statement = Statement.objects.get(tenant=acme.tenant)
    assert (statement.rows, statement.decided) == (3, 1)
    acme.check_books()
    assert wrong(acme) == []

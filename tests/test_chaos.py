"""The 60-second form of `make chaos`: every kind of process killed three times under load, and three accounts agree."""

import datetime as dt
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.accounts import Accounts, Row, breaches
from tests.chaos.schedule import make
from tests.processes import ROOT

pytestmark = pytest.mark.timeout(240)  # the first test waits for the whole run

SEED = dt.datetime.now(dt.UTC).date().toordinal()  # another one every day
Run = tuple[dict[str, Any], Accounts]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Half a minute of faults, and what came of it."""
    folder: Path = tmp_path_factory.mktemp("chaos")
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(SEED), "--minutes", "0.5", "--output", str(folder)]
    output = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run(command, cwd=ROOT, stdout=output[0], stderr=output[1], text=True, timeout=220, check=False)
    sys.stdout.write(done.stdout)  # pytest shows it when a test fails
    assert (folder / "result.json").exists(), done.stdout[-3000:]
    yield json.loads((folder / "result.json").read_text()), Accounts.load(folder / "accounts.json")


def test_nothing_is_lost_doubled_or_over_admitted_whoever_is_killed(run: Run) -> None:
    result, _ = run
    assert result["breaches"] == []
    assert result["lacks"] == [], "the run proves too little"
    assert result["status"] == 0


def test_these_tests_start_no_servers_of_a_run_in_their_own_process() -> None:
    assert "tests.chaos.environment" not in sys.modules


def test_the_same_seed_makes_the_same_schedule() -> None:
    assert make(SEED, 30) == make(SEED, 30) != make(SEED + 1, 30)


def copy(accounts: Accounts) -> Accounts:
    """Lists and dicts of its own."""
    return Accounts(
        [*accounts.attempts],
        [*accounts.drawn],
        [*accounts.rows],
        [*accounts.quotas],
        {**accounts.revoked},
        {**accounts.states},
        [*accounts.found],
    )


def an_answered(accounts: Accounts) -> str:
    """The request id of a call that was answered, charged as reported, and is no replay."""
    drawn = {line.request_id for line in accounts.drawn if "usage=" not in line.directive}
    return next(
        one.request_id for one in accounts.attempts if one.tokens and not one.replayed and one.request_id in drawn
    )


def lose(accounts: Accounts) -> None:
    call = an_answered(accounts)
    accounts.rows = [row for row in accounts.rows if row.request_id != call]


def charge_one_more(accounts: Accounts) -> None:
    _amend(accounts, lambda row: replace(row, charged=row.charged + 1))


def void(accounts: Accounts) -> None:
    _amend(accounts, lambda row: replace(row, kind="void", outcome="void", charged=0))


def _amend(accounts: Accounts, change: Callable[[Row], Row]) -> None:
    call = an_answered(accounts)
    accounts.rows = [change(row) if row.request_id == call else row for row in accounts.rows]


def book_twice(accounts: Accounts) -> None:
    call = an_answered(accounts)
    accounts.rows += [replace(row, number=1) for row in accounts.rows if row.request_id == call]


def draw_twice(accounts: Accounts) -> None:
    """The provider was asked again under one idempotency key: another request id, the same mark."""
    accounts.drawn.append(replace(accounts.drawn[0], request_id="another"))


def never_draw(accounts: Accounts) -> None:
    call = an_answered(accounts)
    accounts.drawn = [line for line in accounts.drawn if line.request_id != call]


def say_that_nothing_was_spent(accounts: Accounts) -> None:
    call = an_answered(accounts)
    accounts.attempts = [
        replace(one, status=503, type="unavailable", tokens=None) if one.request_id == call else one
        for one in accounts.attempts
    ]


def shrink(kind: str) -> Callable[[Accounts], None]:
    def change(accounts: Accounts) -> None:
        accounts.quotas = [
            replace(limit, amount=1, burst=0) if limit.kind == kind else limit for limit in accounts.quotas
        ]

    return change


def revoke_before(accounts: Accounts) -> None:
    accounts.revoked = dict.fromkeys(accounts.revoked, 0.0)


def disagree(accounts: Accounts) -> None:
    accounts.states[an_answered(accounts)] = "EXPIRED"


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lose, "lost"),
        (charge_one_more, "lost"),
        (charge_one_more, "mischarged"),
        (void, "unaccounted"),
        (book_twice, "doubled"),
        (draw_twice, "doubled"),
        (never_draw, "invented"),
        (say_that_nothing_was_spent, "misreported"),
        (shrink("quota"), "over-admitted"),
        (shrink("rate"), "over-admitted"),
        (shrink("concurrent"), "over-admitted"),
        (revoke_before, "admitted after revoke"),
        (disagree, "diverged"),
    ],
)
def test_control_accounts_that_were_tampered_with_are_found_out(
    spoil: Callable[[Accounts], None], kind: str, run: Run
) -> None:
    _, accounts = run
    tampered = copy(accounts)
    before = {found for found, _ in breaches(accounts)}
    spoil(tampered)
    assert kind in {found for found, _ in breaches(tampered)} - before

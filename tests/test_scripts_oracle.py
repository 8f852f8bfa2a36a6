"""The admission scripts beside a plain Python oracle that knows the rules and none of the code.

The long form, in thousands of runs, says how many steps it took: ``HYPOTHESIS_EXAMPLES=3000 pytest --timeout 3600
tests/test_scripts_oracle.py -k divergence -o log_cli=true -o log_cli_level=INFO``.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from config.redis import store
from tests.scriptmachine import Scripts
from tokens import scripts as directory_scripts
from tokens.admission import scripts

logger = logging.getLogger(__name__)
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "120"))
BOUNDS = settings(
    stateful_step_count=50, deadline=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)
)
Steps = Iterator[object]
Story = Callable[[Scripts], Steps]
CAUGHT = (AssertionError, ValueError, redis.ResponseError, Flaky)


def test_no_divergence() -> None:
    Scripts.steps = 0
    run_state_machine_as_test(Scripts, settings=settings(BOUNDS, max_examples=EXAMPLES))
    logger.info("%d runs, %d steps, 0 divergences", EXAMPLES, Scripts.steps)


def fill_a_quota(machine: Scripts) -> Steps:
    for _ in range(6):
        yield machine.settle(machine.admit(1, 4, 1), 100, False)
    yield machine.admit(1, 1, 1)


def fill_a_rate(machine: Scripts) -> Steps:
    for _ in range(5):
        yield machine.admit(1, 1, 1000)


def give_back_and_fill(machine: Scripts) -> Steps:
    for _ in range(2):
        yield machine.admit(1, 1, 1000)
    yield machine.void(machine.admit(1, 1, 1000), True)
    for _ in range(2):
        yield machine.admit(1, 1, 1000)


def expire_at_once(machine: Scripts) -> Steps:
    yield machine.expire(machine.admit(1, 1, 1))


def end_a_secret(machine: Scripts) -> Steps:
    yield machine.hinder("end", 1, 3)
    for _ in range(2):
        yield machine.admit(1, 1, 1)


def activate_too_early(machine: Scripts) -> Steps:
    yield machine.hinder("suspend", 0, 9)
    yield machine.publish("tenant", 0)


def end_what_is_lost(machine: Scripts) -> Steps:
    held = machine.admit(1, 1, 1)
    yield machine.lose("empty", 3)
    yield machine.fail(held)
    yield machine.settle(held, 50, False)


def settle_after_a_rebuild(machine: Scripts) -> Steps:
    held = machine.admit(1, 1, 1)
    yield machine.lose("fence", 3)
    yield machine.rebuild()
    for _ in range(2):  # the first learns of the new generation
        yield machine.admit(1, 1, 1)
    yield machine.settle(held, 50, False)


def roll_back(machine: Scripts) -> Steps:
    yield machine.befall("copy")
    yield machine.lose("roll back", 3)
    yield machine.admit(1, 1, 1)


def settle_rolled_back(machine: Scripts) -> Steps:
    held = machine.admit(1, 1, 1)
    yield machine.settle(machine.admit(1, 1, 1), 50, False)
    yield machine.befall("copy")
    yield machine.lose("roll back", 3)
    yield machine.settle(held, 50, False)


def use_a_key_again(machine: Scripts) -> Steps:
    for body in "aab":
        yield machine.admit_under_a_key(1, "k", body)
    yield machine.call_under_a_key(0, "k")
    yield machine.admit_under_a_key(0, "k", "a")


def change_records(machine: Scripts) -> Steps:
    for what in ("token", "member", "tenant", "older"):
        yield machine.admit(1, 1, 1)
        yield machine.publish(what, 1)
    yield machine.admit(1, 1, 1)
    yield machine.admit_again(None)
    yield machine.revoke(1)
    yield machine.admit(2, 1, 1)
    yield machine.publish("revive", 0)
    yield machine.admit(2, 1, 1)


def stop_everybody(machine: Scripts) -> Steps:
    yield machine.hinder("stop", 0, 3)
    yield machine.admit(1, 1, 1)
    yield machine.relieve()
    yield machine.hinder("suspend", 0, 3)
    yield machine.admit(1, 1, 1)


def be_out_of_time(machine: Scripts) -> Steps:
    for shift in (-60, 60):
        yield machine.admit_untimely(1, shift, "day")
    yield machine.turn("day", 0)
    yield machine.settle(machine.admit(1, 1, 1), 50, False)
    yield machine.admit_behind_a_backlog(1)


def fence(machine: Scripts) -> Steps:
    yield machine.lose("fence", 3)
    yield machine.admit(1, 1, 1)


def restart(machine: Scripts) -> Steps:
    held = machine.admit(1, 1, 1)
    yield machine.befall("restart")
    yield machine.settle(held, 50, False)


def give_a_key_back(machine: Scripts) -> Steps:
    yield machine.void(machine.admit_under_a_key(1, "k", "a"), True)


def end_in_every_way(machine: Scripts) -> Steps:
    yield machine.settle(machine.admit(1, 1, 1), 50, False)
    yield machine.void(machine.admit(1, 1, 1), True)
    yield machine.void(machine.admit(1, 1, 1), False)
    yield machine.fail(machine.admit(1, 1, 1))
    yield machine.expire(machine.admit_briefly(1, 1, 1))


STORIES = [
    end_in_every_way,
    fill_a_quota,
    fill_a_rate,
    give_back_and_fill,
    expire_at_once,
    end_a_secret,
    activate_too_early,
    end_what_is_lost,
    settle_after_a_rebuild,
    roll_back,
    settle_rolled_back,
    use_a_key_again,
    change_records,
    stop_everybody,
    be_out_of_time,
    fence,
    restart,
    give_a_key_back,
]


def play(story: Story) -> None:
    """Take a story's steps on the machine."""
    machine = Scripts()
    try:
        for _ in story(machine):
            machine.the_store_holds_what_the_oracle_says()
    finally:
        machine.teardown()


@pytest.mark.parametrize("story", STORIES)
def test_what_chance_takes_long_to_find(story: Story) -> None:
    play(story)


RATE = "+ cost * limit.unit\n    redis.call('SET'"
NUMBER = "confirmed and redis.call('INCR', KEYS[4]) or ''"
# A script, what is right and what is wrong in it, and the story that shows it; None: found by chance.
MUTANTS: dict[str, tuple[str, str, str, Story | None]] = {
    "too many": ("admit", "cost > remaining", "cost > remaining + 3", fill_a_quota),
    "rounded": ("admit", "'SET', limit.key, tat,", "'SET', limit.key, tostring(tat),", fill_a_rate),
    "not released": ("finish", "figures[metric + 3] - estimate[metric]", "figures[metric + 3]", None),
    "ended twice": ("finish", "state ~= 'RESERVED' and not late", "false", None),
    "expired early": ("finish", "ARGV[10] == '1' and", "false and", expire_at_once),
    "free rates": ("admit", RATE, RATE.replace("cost", "0"), fill_a_rate),
    "dear rates": ("admit", RATE, RATE.replace("cost", "2 * cost"), fill_a_rate),
    "given back twice": ("finish", "over - (now - tonumber(reservation[8]))", "over * 2", give_back_and_fill),
    "period over": ("admit", "(ends[i] > 0 and now >= ends[i] * 1000000)", "false", be_out_of_time),
    "period to come": ("admit", "now < starts[i] * 1000000 or", "", be_out_of_time),
    "not confirmed": ("admit", "not meta[1] or not meta[2]", "not meta[2]", fence),
    "generation ignored": ("admit", "meta[1] ~= ARGV[1]", "false", roll_back),
    "stop ignored": ("admit", "if meta[3] then", "if false then", stop_everybody),
    "status trusted": ("admit", "token[1] ~= 'active' or", "", change_records),
    "tenant trusted": ("admit", "or tenant[1] ~= 'active'", "", stop_everybody),
    "versions ignored": ("admit", "token[2] ~= ARGV[7] or", "", change_records),
    "limits out of date": ("admit", "or tenant[2] ~= ARGV[9]", "", change_records),
    "secret over": ("admit", "or (accepted_until > 0 and now >= accepted_until * 1000000)", "", end_a_secret),
    "backlog ignored": ("admit", ">= tonumber(ARGV[16])", "> 1000000", be_out_of_time),
    "body not compared": ("admit", "known[1] ~= ARGV[13]", "false", use_a_key_again),
    "key asked again": ("admit", "if known[3] == 'done' then", "if false then", use_a_key_again),
    "key in flight": ("admit", "return {'IN_FLIGHT', known[2]}", "", use_a_key_again),
    "key kept": ("finish", "redis.call('DEL', idempotency)", "", give_a_key_back),
    "id known": ("admit", "redis.call('EXISTS', KEYS[5]) == 1", "false", change_records),
    "old generation counts": ("finish", "if counted then", "if true then", settle_after_a_rebuild),
    "restart forgets": ("finish", "string.match(reservation[9], '^[^:]*')", "reservation[9]", restart),
    "number of another server": ("finish", NUMBER, NUMBER.replace("confirmed", "generation"), settle_rolled_back),
    "number without a name": ("finish", NUMBER, "redis.call('INCR', KEYS[4])", end_what_is_lost),
    "void without a number": ("finish", NUMBER, NUMBER.replace("and", "and kind ~= 'void' and", 1), end_in_every_way),
    "lost call without an event": ("finish", "and kind == 'void' and keep == 0", "", end_what_is_lost),
    "mark that holds": ("finish", "if held then", "if state then", end_what_is_lost),
    "tombstone lifted": ("put", "stored[1] == 'revoked'", "false", change_records),
    "older record": ("put", "known >= version", "false", change_records),
    "order outranked": ("put", "redis.call('HEXISTS', KEYS[2], ARGV[3]) == 1", "false", activate_too_early),
    "same version": ("revoke", "tonumber(stored[2]) + 1", "tonumber(stored[2])", stop_everybody),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_control_the_oracle_catches_a_wrong_script(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, right, wrong, story = MUTANTS[name]
    if script in {"admit", "finish"}:
        text = getattr(scripts, script)().text
        changed = text.replace(right, wrong)
        mutant = scripts.Script(script, changed, hashlib.sha1(changed.encode(), usedforsecurity=False).hexdigest())
        monkeypatch.setattr(scripts, script, lambda: mutant)
    else:
        original = directory_scripts.script
        text = str(original(script).script)
        broken = store().register_script(text.replace(right, wrong))
        monkeypatch.setattr(directory_scripts, "script", lambda name: broken if name == script else original(name))
    assert right in text
    with pytest.raises(CAUGHT):
        if story:
            play(story)
        else:
            bounds = settings(BOUNDS, max_examples=1000, derandomize=True, database=None, phases=[Phase.generate])
            run_state_machine_as_test(Scripts, settings=bounds)

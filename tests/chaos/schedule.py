"""What befalls the stack, and when: made from a seed, so that the same seed makes it again."""

import random
from dataclasses import dataclass

# Points in the life of a call at which tests.controls.crashing can kill, stop or hold.
POINTS = (
    "before_admit",
    "after_admit",
    "before_dispatch",
    "at_provider",
    "after_answer",
    "after_keep",
    "before_settle",
    "after_settle",
    "before_reply",
    "half_reply",
)
# Points in a worker's tasks, of tests.controls.crashing_worker.
WORKER_POINTS = (
    "before_commit",
    "inside_transaction",
    "after_commit",
    "after_acknowledge",
    "before_expire",
    "after_expire",
)
VICTIMS = ("web-worker", "web-main", "worker-main", "worker-child", "valkey", "postgres", "sandbox")
LINKS = ("web-store", "worker-store", "web-books", "worker-books", "web-provider")
ROUND = 30.0  # seconds in which each kind of process is killed once; a short run has LEAST_ROUNDS all the same
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Fault:
    """One blow. `kind`: kill, freeze, crash, crash-worker, stall, term, link or revoke; `at` and `seconds` in seconds.

    `target` is a kind of process, a point, or a link; `what` is what happens to the link.
    """

    at: float
    kind: str
    target: str = ""
    what: str = ""
    seconds: float = 0.0


def make(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run of so many seconds, by time."""
    chance = random.Random(f"{seed} schedule")
    rounds = max(LEAST_ROUNDS, round(seconds / ROUND))
    length = seconds / rounds
    faults = []
    for number in range(rounds):
        blows = _spread(_at_web(chance, number), _elsewhere(chance, number), chance)
        step = length / len(blows)
        for place, blow in enumerate(blows):
            at = number * length + (place + chance.random() * 0.8) * step
            faults.append(Fault(round(at, 2), *blow))
    return sorted(faults, key=lambda fault: fault.at)


Blow = tuple[str, str, str, float]


def _at_web(chance: random.Random, number: int) -> list[Blow]:
    """What a round does to the web processes; by turns one is told to stop, or held up for longer than a lease."""
    blows: list[Blow] = [("kill", "web-main", "", 0.0), ("kill", "web-worker", "", 0.0)]
    blows.append(("crash", chance.choice(POINTS), "", 0.0))
    return [*blows, ("term", "web-main", "", 0.0) if number % 2 else ("stall", "before_settle", "", 0.0)]


def _elsewhere(chance: random.Random, number: int) -> list[Blow]:
    """What a round does to everything else."""
    others = ("worker-main", "worker-child", "valkey", "postgres", "sandbox")
    blows: list[Blow] = [("kill", victim, "", 0.0) for victim in others]
    blows += [("freeze", victim, "", round(chance.uniform(0.5, 3), 1)) for victim in chance.sample(VICTIMS, 2)]
    blows += [_link(chance) for _ in range(3)]
    blows.append(("revoke", "", "", 0.0))
    blows.append(("crash-worker", chance.choice(WORKER_POINTS), "", 0.0))
    if number % 3 == 1:
        blows.append(("kill", "beat", "", 0.0))
    if number % 6 == 5:
        blows.append(("freeze", chance.choice(VICTIMS), "", 6.0))  # longer than a lease
    return blows


def _spread(few: list[Blow], many: list[Blow], chance: random.Random) -> list[Blow]:
    """Both in random order, the few evenly among the many: with every web process down nothing would be tried."""
    chance.shuffle(few)
    chance.shuffle(many)
    places = [((number + 0.5) / len(blows), blow) for blows in (few, many) for number, blow in enumerate(blows)]
    return [blow for _, blow in sorted(places)]


def _link(chance: random.Random) -> Blow:
    what = chance.choice(("drop", "refuse", "hole", "delay", "cut"))
    seconds = {"drop": 0.0, "refuse": 1.5, "hole": chance.uniform(1, 3), "delay": 3.0, "cut": 1.0}[what]
    if what == "delay":
        what = f"delay {chance.randint(50, 500)}"
    return ("link", chance.choice(LINKS), what, round(seconds, 1))

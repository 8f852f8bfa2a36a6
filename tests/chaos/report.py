"""What a run says at its end."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.chaos.accounts import REFUSED_BY_A_LIMIT, Accounts, Breach, breaches, late_settles

LEAST = {"answered": 500, "unresolved": 20, "void": 20, "late settles": 1}
LEAST_KILLS = 3
KINDS = {
    "web workers": ("web-worker",),
    "web mains": ("web-main",),
    "Celery": ("worker-main", "worker-child", "beat"),
    "Valkey": ("valkey",),
    "PostgreSQL": ("postgres",),
    "sandbox": ("sandbox",),
}


@dataclass
class Result:
    """The figures of a run. `figures` holds counts by name, `kills` by kind of process."""

    seed: int
    figures: dict[str, float]
    refused: dict[str, int]
    kills: dict[str, int]
    others: dict[str, int]
    breaches: list[Breach]

    @property
    def lacks(self) -> list[str]:
        """Why the run proves too little; empty when it counts."""
        short = [
            f"{self.figures[name]:.0f} {name} of {least}" for name, least in LEAST.items() if self.figures[name] < least
        ]
        return short + [f"{self.kills[name]} kills of {name}" for name in KINDS if self.kills[name] < LEAST_KILLS]

    @property
    def status(self) -> int:
        """The exit status: 0 all kept, 1 a breach, 2 void: it proves too little."""
        return 1 if self.breaches else 2 if self.lacks else 0

    def lines(self) -> Iterable[str]:
        """For people."""
        yield f"seed {self.seed}"
        yield "  ".join(f"{name} {value:g}" for name, value in self.figures.items())
        yield "refused or failed: " + _counts(self.refused)
        yield "kills: " + _counts(self.kills)
        yield "other faults: " + _counts(self.others)
        kinds = Counter(kind for kind, _ in self.breaches)
        yield from (f"BREACH {kind}: {text}" for kind, text in self.breaches[:40])
        yield from (f"void: only {lack}" for lack in self.lacks)
        yield f"{'breached' if self.breaches else 'void' if self.lacks else 'kept'} {_counts(kinds)}".strip()


def sum_up(accounts: Accounts, seed: int, kills: Counter[str], others: Counter[str]) -> Result:
    """The figures of a run, and every breach."""
    found = breaches(accounts)
    kinds = Counter(kind for kind, _ in found)
    attempted = len(accounts.attempts)
    answered = sum(attempt.status == 200 and attempt.whole for attempt in accounts.attempts)
    limited = sum(attempt.type in REFUSED_BY_A_LIMIT for attempt in accounts.attempts)
    outcomes = Counter(rows[-1].outcome for rows in accounts.by_call.values())
    figures = {
        "attempted": attempted,
        "answered": answered,
        "lost": kinds["lost"],
        "doubled": kinds["doubled"],
        "over-admitted": kinds["over-admitted"],
        "exact": outcomes["exact"],
        "unresolved": outcomes["unresolved"],
        "void": outcomes["void"],
        "late settles": late_settles(accounts),
        "availability": round((answered + limited) / max(attempted, 1), 3),
    }
    refused = Counter(f"{attempt.status or '-'} {attempt.type}" for attempt in accounts.attempts if attempt.type)
    return Result(seed, figures, dict(refused), count_kills(kills), dict(others), found)


def count_kills(kills: Counter[str]) -> dict[str, int]:
    """By the kinds of process that people know."""
    return {name: sum(kills[kind] for kind in kinds) for name, kinds in KINDS.items()}


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))

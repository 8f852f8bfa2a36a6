"""Three independent accounts of the same calls, and what they must agree on. Pure: everything is passed in.

What the clients were told, what the sandbox drew (its own record, synced before the first byte of an answer), and what
the ledger holds. They meet in the request id, and in the mark: a delay that one client asked for once.
"""

import datetime as dt
import json
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.chaos.attempts import Attempt

MARK = re.compile(r"delay=\S+")
NOT_AS_REPORTED = ("usage=missing", "usage=zero", "usage=absurd")  # charged at the estimate
REFUSED_BY_A_LIMIT = frozenset({"rate_limited", "quota_exceeded", "exceeds_limit"})
UPSTREAM_ERRORS = frozenset({"upstream_failed", "upstream_timeout", "outcome_unknown", "storage_failed"})


@dataclass
class Row:
    """A ledger row, as far as it is compared. `at`: epoch seconds of the request id."""

    request_id: str
    kind: str
    number: int
    outcome: str
    tenant: int
    token: int
    n: int
    images: int
    charged: int
    reason: str
    day: str
    at: float


@dataclass
class Drawn:
    """A line of the sandbox's record. `at`: epoch seconds when the picture was finished."""

    request_id: str
    mark: str
    directive: str
    tokens: int | None
    n: int
    at: float


@dataclass
class Quota:
    """A limit and whom it holds. `scope` is tenant or token; `kind` quota, rate or concurrent."""

    kind: str
    scope: str
    owner: int
    metric: str
    amount: int
    period: str
    burst: int = 0


@dataclass
class Accounts:
    """All that is compared; `found` are breaches that the stores themselves showed: (kind, what)."""

    attempts: list[Attempt]
    drawn: list[Drawn]
    rows: list[Row]
    quotas: list[Quota]
    revoked: dict[int, float]  # token -> when its revocation had answered
    states: dict[str, str] = field(default_factory=dict)  # of reservations that the store still knows
    found: list[tuple[str, str]] = field(default_factory=list)

    @cached_property
    def by_call(self) -> dict[str, list[Row]]:
        """The rows of each request id, in their order."""
        calls: dict[str, list[Row]] = defaultdict(list)
        for row in sorted(self.rows, key=lambda row: (row.request_id, row.number)):
            calls[row.request_id].append(row)
        return dict(calls)

    @cached_property
    def drawn_by_call(self) -> dict[str, Drawn]:
        return {line.request_id: line for line in self.drawn}

    def outcome(self, request_id: str) -> str:
        """exact, void or unresolved; missing when the ledger knows nothing."""
        rows = self.by_call.get(request_id)
        return rows[-1].outcome if rows else "missing"

    def charged(self, request_id: str) -> int:
        return sum(row.charged for row in self.by_call.get(request_id, ()))

    def save(self, path: Path) -> None:
        """As JSON, to be looked at."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Accounts":
        """What `save` wrote."""
        raw: dict[str, Any] = json.loads(path.read_text())
        return cls(
            [Attempt(**line) for line in raw["attempts"]],
            [Drawn(**line) for line in raw["drawn"]],
            [Row(**line) for line in raw["rows"]],
            [Quota(**line) for line in raw["quotas"]],
            {int(token): at for token, at in raw["revoked"].items()},
            raw["states"],
            [(kind, text) for kind, text in raw["found"]],
        )


Breach = tuple[str, str]  # its kind, and the request ids and figures that show it


def breaches(accounts: Accounts) -> list[Breach]:
    """Everything that the accounts disagree on, or that passes a limit; empty when every promise was kept."""
    checks = (told, primaries, drawings, charges, refusals, quotas, rates, concurrency, revocations, reservations)
    return [*accounts.found, *(breach for check in checks for breach in check(accounts))]


def told(accounts: Accounts) -> Iterator[Breach]:
    """Lost: a client got a whole 200 and the ledger doesn't hold exactly these tokens for that call."""
    drawn = {line.mark: line.request_id for line in accounts.drawn}
    for attempt in accounts.attempts:
        if attempt.status != 200 or not attempt.whole:
            continue
        call = drawn.get(attempt.mark, "") if attempt.replayed else attempt.request_id
        outcome, charged = accounts.outcome(call), accounts.charged(call)
        if outcome != "exact" or charged != attempt.tokens:
            yield "lost", f"{call} told {attempt.tokens}, ledger {outcome} {charged}, replayed {attempt.replayed}"


def primaries(accounts: Accounts) -> Iterator[Breach]:
    """Doubled: more than one primary row of a call, or none among its rows."""
    for call, rows in accounts.by_call.items():
        count = sum(row.kind != "correction" for row in rows)
        if count != 1:
            yield "doubled", f"{call} has {count} primary rows"


def drawings(accounts: Accounts) -> Iterator[Breach]:
    """Doubled: a call or an attempt drawn twice. Unaccounted: drawn, and neither exact nor unresolved."""
    for what, names in (("call", "request_id"), ("request of a client", "mark")):
        for name, count in Counter(getattr(line, names) for line in accounts.drawn).items():
            if count > 1:
                yield "doubled", f"{what} {name} was drawn {count} times"
    for line in accounts.drawn:
        outcome = accounts.outcome(line.request_id)
        if outcome not in {"exact", "unresolved"}:
            yield "unaccounted", f"{line.request_id} was drawn and is {outcome} in the ledger ({line.directive})"


def charges(accounts: Accounts) -> Iterator[Breach]:
    """Invented: charged and never drawn. Mischarged: not what the sandbox spent."""
    for call, rows in accounts.by_call.items():
        if rows[-1].outcome == "void" and accounts.charged(call):
            yield "mischarged", f"{call} is void and charged {accounts.charged(call)}"
        if rows[-1].outcome != "exact":
            continue
        line = accounts.drawn_by_call.get(call)
        if line is None:
            yield "invented", f"{call} is exact in the ledger and was never drawn"
        elif not any(word in line.directive for word in NOT_AS_REPORTED) and accounts.charged(call) != line.tokens:
            yield "mischarged", f"{call} charged {accounts.charged(call)}, spent {line.tokens}"


def refusals(accounts: Accounts) -> Iterator[Breach]:
    """Misreported: a client was told that nothing was spent, or got an answer that no contract knows."""
    for attempt in accounts.attempts:
        if not attempt.whole or attempt.status == 200:
            continue
        call, outcome = attempt.request_id, accounts.outcome(attempt.request_id)
        if attempt.may_be_charged:
            if outcome == "missing" and not attempt.replayed:
                yield "unaccounted", f"{call} was answered {attempt.type} and is not in the ledger"
        elif outcome == "exact" or call in accounts.drawn_by_call:
            drawn = call in accounts.drawn_by_call
            yield "misreported", f"{call} answered {attempt.status} {attempt.type}, ledger {outcome}, drawn {drawn}"
        if attempt.status >= 500 and attempt.status != 503 and attempt.type not in UPSTREAM_ERRORS:
            yield "misreported", f"{call} answered {attempt.status} {attempt.type}"


def quotas(accounts: Accounts) -> Iterator[Breach]:
    """Over-admitted: a quota's use (exact as charged, unresolved at its estimate) passes its amount."""
    for quota in accounts.quotas:
        if quota.kind != "quota":
            continue
        used: Counter[str] = Counter()
        for call in accounts.by_call.values():
            first, last = call[0], call[-1]
            if getattr(first, quota.scope) != quota.owner:
                continue
            period = {"day": first.day, "month": first.day[:7]}.get(quota.period, "")
            never_sent = last.outcome == "void" and last.reason == "not_dispatched"
            used[period] += {
                "requests": 0 if never_sent else 1,
                "images": sum(row.images for row in call),
                "tokens": sum(row.charged for row in call),
            }[quota.metric]
        for period, units in used.items():
            if units > quota.amount:
                yield "over-admitted", f"{quota} used {units} in {period or 'all'}"


def rates(accounts: Accounts) -> Iterator[Breach]:
    """Over-admitted: in some interval more requests were certainly admitted than burst + rate x its length."""
    for rate in accounts.quotas:
        if rate.kind != "rate":
            continue
        admitted = sorted(
            (attempt.begun, attempt.ended)
            for attempt in accounts.attempts
            if getattr(attempt, rate.scope) == rate.owner and _kept_its_request(accounts, attempt)
        )
        for first in range(len(admitted)):
            start, end, count = admitted[first][0], 0.0, 0
            for begun, ended in sorted(admitted[first:], key=lambda pair: pair[1]):
                end, count = max(end, ended), count + (begun >= start)
                # One for the millisecond in which both clocks are read.
                if count > rate.burst + 1 + (end - start) * rate.amount / 60:
                    yield "over-admitted", f"{rate}: {count} in {end - start:.2f} s"
                    break


def _kept_its_request(accounts: Accounts, attempt: Attempt) -> bool:
    rows = accounts.by_call.get(attempt.request_id, [])
    return bool(rows) and not (rows[-1].outcome == "void" and rows[-1].reason == "not_dispatched")


def concurrency(accounts: Accounts) -> Iterator[Breach]:
    """Over-admitted: more calls with the provider at once than the limit: each was there while its delay ran."""
    answered = {attempt.request_id: attempt for attempt in accounts.attempts if attempt.status == 200}
    for limit in accounts.quotas:
        if limit.kind != "concurrent":
            continue
        edges: list[tuple[float, int]] = []
        for line in accounts.drawn:
            attempt = answered.get(line.request_id)
            if attempt and getattr(attempt, limit.scope) == limit.owner:
                milliseconds = float(line.mark.removeprefix("delay=").removesuffix("ms"))
                edges += [(max(attempt.begun, line.at - milliseconds / 1000), 1), (line.at, -1)]
        now = most = 0
        for _, change in sorted(edges):
            now += change
            most = max(most, now)
        if most > limit.amount:
            yield "over-admitted", f"{limit}: {most} at once"


def revocations(accounts: Accounts) -> Iterator[Breach]:
    """Admitted after revoke: a call of that token whose request id is younger than the answer to its revocation."""
    for call, rows in accounts.by_call.items():
        revoked = accounts.revoked.get(rows[0].token)
        if revoked is not None and rows[0].at > revoked:
            yield "admitted after revoke", f"{call} of token {rows[0].token}, {rows[0].at - revoked:.3f} s after"


def reservations(accounts: Accounts) -> Iterator[Breach]:
    """Diverged: the store ended a call otherwise than the ledger says."""
    agreeing = {"SETTLED": {"exact"}, "EXPIRED": {"unresolved"}, "VOIDED": {"void", "missing"}}
    for call, state in accounts.states.items():
        outcome = accounts.outcome(call)
        if outcome not in agreeing.get(state, set()):
            yield "diverged", f"{call} is {state} in the store and {outcome} in the ledger"


def read_drawn(path: Path) -> list[Drawn]:
    """The sandbox's record."""
    lines: Iterable[dict[str, Any]] = map(json.loads, path.read_text().splitlines())
    return [
        Drawn(
            line["request_id"],
            found.group() if (found := MARK.search(line["directive"] or "")) else "",
            line["directive"] or "",
            line["usage"]["total_tokens"],
            line["n"],
            dt.datetime.fromisoformat(line["at"]).timestamp(),
        )
        for line in lines
    ]


def begun_at(request_id: uuid.UUID) -> float:
    """Epoch seconds of a UUIDv7."""
    return (request_id.int >> 80) / 1000


def late_settles(accounts: Accounts) -> int:
    """Calls that were unresolved once and have become exact or void."""
    return sum(
        before.outcome == "unresolved" and after.outcome != "unresolved"
        for rows in accounts.by_call.values()
        for before, after in pairwise(rows)
    )

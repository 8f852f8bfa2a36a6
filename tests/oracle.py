"""The rules of admission in plain Python: what the store must answer and hold. It knows the rules and none of the code.

What it says that the store holds is an `Image`. What it knows besides (the ledger, what rates admitted) survives a loss
of the store, as PostgreSQL does.
"""

import itertools
from collections.abc import Sequence

from tests.storeimage import Amounts, Asked, Event, Image, Kept, Record, Remembered, Use
from tokens.admission.periods import OpenPeriods
from tokens.admission.principal import ScopedLimit

METRICS = {"requests": 0, "images": 1, "tokens": 2}
MICROSECONDS = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000}
STATES = {"exact": "SETTLED", "void": "VOIDED", "unresolved": "EXPIRED"}
RANKS = {"unresolved": 0, "void": 1, "exact": 2}


def unit_of(one: ScopedLimit) -> int:
    """Microseconds that a rate's one unit costs."""
    return -(-MICROSECONDS[one.limit.period] // one.limit.amount)


class Oracle:
    """Says before each step what the store must answer, and carries it out on the image."""

    def __init__(self) -> None:
        self.image = Image()
        self.run = 1  # of the server that holds it
        self.ledger: dict[str, Event] = {}
        self.taken: dict[tuple[int, str], list[list[int]]] = {}  # limit id, scope -> [µs, cost, number of the call]
        self.numbers: dict[str, int] = {}
        self.latest: dict[tuple[str, str, str], int] = {}  # a rate's arrival time, had nothing been given back

    # Admission

    def verdict(self, asked: Asked, now: float) -> str:
        """The status that `asked` must get at `now`; where it is ADMITTED or BACKLOG a rate may refuse all the same."""
        image = self.image
        records = [image.records.get(name) for name in asked.scopes.values()]
        known = image.remembered.get((asked.token, asked.key)) if asked.key else None
        if not image.generation:
            return "NOT_READY"
        if image.generation != asked.generation:
            return "GENERATION"
        if image.stopped:
            return "STOPPED"
        if any(record is None for record in records):
            return "NOT_READY"
        here = [record for record in records if record is not None]
        if any(record.status != "active" for record in here):
            return "INVALID"
        if tuple(record.version for record in here) != asked.versions:
            return "STALE"
        if here[0].ended:
            return "INVALID"
        if known and known.body != asked.body:
            return "MISMATCH"
        if known:
            return "IN_FLIGHT" if known.answer is None else "REPLAY"
        if asked.request_id in image.calls:
            return "REPEATED"
        periods = asked.periods
        if not (periods.day_start <= now < periods.day_end and periods.month_start <= now < periods.month_end):
            return "PERIOD"
        return self._left(asked, now)

    def _left(self, asked: Asked, now: float) -> str:
        short = False
        for scoped in asked.limits:
            one, scope = scoped.limit, asked.scopes[scoped.scope]
            if one.metric == "concurrent":
                running = [kept for kept in self.image.open_calls().values() if kept.lease_end > now and kept.asked]
                short |= sum(scope in kept.asked.scopes.values() for kept in running if kept.asked) + 1 > one.amount
                continue
            metric = METRICS[one.metric]
            if asked.costs[metric] > ((one.burst or one.amount) if one.is_rate else one.amount):
                return "EXCEEDS"
            if not one.is_rate:
                period = {"day": asked.periods.day, "month": asked.periods.month, "total": one.id}[one.period]
                figures = self.image.uses.get((scope, f"{one.period}:{period}"), [0] * 6)
                short |= figures[metric] + figures[metric + 3] + asked.costs[metric] > one.amount
        if short:
            return "REFUSED"
        return "BACKLOG" if len(self.image.events) >= asked.backlog else "ADMITTED"

    def admit(self, asked: Asked, at: int) -> None:
        """Take what an admission takes; `at` is the store's clock, in microseconds."""
        image = self.image
        self.numbers[asked.request_id] = len(self.numbers)
        for use in asked.uses:
            figures = image.uses.setdefault(use, [0] * 6)
            for metric, cost in enumerate(asked.costs):
                figures[metric + 3] += cost
        image.calls[asked.request_id] = Kept("RESERVED", asked, at / 1_000_000 + asked.lease)
        if asked.key:
            image.remembered[asked.token, asked.key] = Remembered(asked.body, asked.request_id)
        for scoped in asked.limits:
            if scoped.limit.is_rate:
                cost = asked.costs[METRICS[scoped.limit.metric]]
                entries = self.taken.setdefault((scoped.limit.id, asked.scopes[scoped.scope]), [])
                entries.append([at, cost, self.numbers[asked.request_id]])
                name = asked.scopes[scoped.scope], scoped.limit.metric, scoped.limit.period
                self.latest[name] = max(self.latest.get(name, 0), at) + cost * unit_of(scoped)

    def may_refuse(self, scoped: ScopedLimit, asked: Asked, since: float) -> bool:
        """Whether a rate had a reason to refuse, at any time from `since` on."""
        now, unit = since * 1_000_000, unit_of(scoped)
        name = asked.scopes[scoped.scope], scoped.limit.metric, scoped.limit.period
        tolerance = unit * (scoped.limit.burst or scoped.limit.amount)
        ahead = min(max(self.latest.get(name, 0) - now, 0), tolerance)
        return ahead + asked.costs[METRICS[scoped.limit.metric]] * unit > tolerance

    # The end of a call

    def end(
        self, call: Asked, kind: str, amounts: Amounts, answer: bytes, overdue: bool, decided: bool, now: float
    ) -> list[str]:
        """End a call and say what the script must reply; `amounts` are those charged."""
        image, request_id = self.image, call.request_id
        kept = image.calls.get(request_id)
        overruled = kept is not None and kept.decided and kind == "exact"
        late = kept is not None and kept.state == "EXPIRED" and kind != "unresolved"
        if kept and kept.state != "RESERVED" and not late and not overruled:
            return ["REPEAT", kept.state]
        if kept and kept.state == "RESERVED" and overdue and now < kept.lease_end:
            return ["EARLY"]
        if kept is None and kind == "void" and not amounts[0]:
            image.calls[request_id] = Kept(STATES[kind])
            return ["DONE", ""]
        if kept and kept.asked:
            before = (1, 0, 0) if overruled else kept.asked.costs
            self._move(kept.asked, before, amounts, kept.state == "RESERVED")
            self._answer(kept.asked, answer)
        image.calls[request_id] = Kept(STATES[kind], kept.asked if kept else None, decided=kept is not None and decided)
        confirmed = image.generation.endswith(f":{self.run}")  # otherwise numbers may have been given before
        image.sequence += confirmed
        sequence, generation = (str(image.sequence), image.generation) if confirmed else ("", "")
        image.events.append(Event(request_id, kind, sequence, generation, amounts, call.uses))
        return ["DONE", sequence]

    def counts(self, asked: Asked) -> bool:
        """Whether the counters are still those that this call was admitted in."""
        name = self.image.generation.partition(":")[0]
        return name != "" and name == asked.generation.partition(":")[0]

    def _move(self, asked: Asked, before: Amounts, amounts: Amounts, reserved: bool) -> None:
        """From what a call stood in the counters with, reserved or used, to what it was charged."""
        for use in asked.uses if self.counts(asked) else ():
            figures = self.image.uses[use]
            for metric in range(3):
                figures[metric + 3 * reserved] -= before[metric]
                figures[metric] += amounts[metric]

    def _answer(self, asked: Asked, answer: bytes) -> None:
        slot = asked.token, asked.key
        known = self.image.remembered.get(slot)
        if asked.key and known and known.request_id == asked.request_id:
            if answer:
                known.answer = answer
            else:
                del self.image.remembered[slot]

    def pay(self, call: Asked, kind: str, amounts: Amounts) -> None:
        """Lower what rates are said to have admitted to what the call was charged; images only if it was void."""
        for scoped in call.limits:
            metric = METRICS.get(scoped.limit.metric, 0)
            for entry in self.taken.get((scoped.limit.id, call.scopes[scoped.scope]), []):
                if entry[2] == self.numbers[call.request_id] and not (metric == 1 and kind != "void"):
                    entry[1] = min(entry[1], amounts[metric])

    def check_rates(self, limits: Sequence[ScopedLimit]) -> None:
        """In any interval d, what was admitted (as it was settled) <= burst + d x amount / period."""
        for scoped in limits:
            one = scoped.limit
            for entries in [entries for (number, _), entries in self.taken.items() if number == one.id and one.is_rate]:
                for first, last in itertools.combinations_with_replacement(range(len(entries)), 2):
                    cost = sum(entry[1] for entry in entries[first : last + 1])
                    passed = entries[last][0] - entries[first][0]
                    assert cost <= (one.burst or one.amount) + passed * one.amount / MICROSECONDS[one.period] + 1e-6

    # Records

    def put(self, name: str, status: str, version: int, ended: bool = False) -> int:
        """A record is replaced by a newer one; a revoked one never, and a stop that waits outranks it."""
        stored = self.image.records.get(name)
        if stored and (stored.status == "revoked" or (status != "revoked" and stored.version >= version)):
            return 0
        if stored and status == "revoked":
            version = max(version, stored.version + 1)
        if status == "active" and name in self.image.orders:
            status = "suspended"
        self.image.records[name] = Record(status, version, ended)
        return 1

    def revoke(self, name: str, status: str, order: bool) -> int:
        """A record ends before the database knows."""
        stored = self.image.records.get(name)
        if stored is None:
            return 0
        if stored.status not in {"revoked", status}:
            stored.status, stored.version = status, stored.version + 1
        if order:
            self.image.orders.add(name)
        return 1

    # The store and the ledger

    def book(self) -> None:
        """Drain the stream: the highest rank of each call counts."""
        for event in self.image.events:
            known = self.ledger.get(event.request_id)
            if known is None or RANKS[event.kind] > RANKS[known.kind]:
                self.ledger[event.request_id] = event
        self.image.events.clear()

    def rebuild(self, generation: str, periods: OpenPeriods) -> None:
        """Open a lost store again: counters of the open periods from the ledger, numbers from 1."""
        self.book()
        uses: dict[Use, list[int]] = {}
        for event in self.ledger.values():
            for use in event.uses:
                if use[1] in {f"day:{periods.day}", f"month:{periods.month}"} or use[1].startswith("total:"):
                    figures = uses.setdefault(use, [0] * 6)
                    for metric, amount in enumerate(event.amounts):
                        figures[metric] += amount
        self.image.uses, self.image.generation, self.image.sequence = uses, generation, 0
        self.taken.clear()
        self.latest.clear()

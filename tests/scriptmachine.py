"""A Hypothesis state machine: the scripts on a real store, step by step beside the oracle of tests/oracle.py.

One tenant calls with two tokens of one member. Calls begin and end in every way and order while days and months turn,
records and limits change, and the store restarts, is rolled back, emptied, fenced and rebuilt.
"""

import copy
import dataclasses
import time
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, invariant, precondition, rule
from msgspec import structs

from tests.scriptpicture import seen, told
from tests.scriptworld import LIMITS, LONG, ORDER, REVOKED, Held, World
from tests.storeimage import Image, Record
from tokens.admission import keys
from tokens.admission.principal import ScopedLimit

OVERDUE = 0.001
FEW = st.integers(0, 3)
SLOTS = st.sampled_from([0, 0, 0, 1, 1, REVOKED])  # which token: the first, the second, one that was revoked


class Scripts(World):
    """Calls of two tokens begin and end while everything round them changes."""

    calls = Bundle("calls")
    steps = 0  # of all runs

    def __init__(self) -> None:
        super().__init__()
        self.rebuild()
        self.generation = self.oracle.image.generation

    # Admissions

    @rule(target=calls, slot=SLOTS, images=st.integers(1, 4), tokens=st.integers(1, 1100))
    def admit(self, slot: int, images: int, tokens: int) -> Held | None:
        return self._admit(slot, self.bench.claim(images, tokens))

    @rule(target=calls, slot=SLOTS, images=st.integers(1, 2), tokens=st.integers(1, 300) | st.just(3001))
    def admit_briefly(self, slot: int, images: int, tokens: int) -> Held | None:
        """With a lease that is over at once."""
        admitted = self._admit(slot, self.bench.claim(images, tokens, OVERDUE))
        time.sleep(OVERDUE * 2)
        return admitted

    @rule(target=calls, slot=SLOTS, key=st.sampled_from("kl"), body=st.sampled_from("aaab"))
    def admit_under_a_key(self, slot: int, key: str, body: str) -> Held | None:
        return self._admit(slot, self.bench.claim(1, 50, key=key, body=body))

    @rule(slot=SLOTS, key=st.sampled_from("kkl"))
    def call_under_a_key(self, slot: int, key: str) -> None:
        """From admission to its settled end."""
        self.settle(self._admit(slot, self.bench.claim(1, 50, key=key, body="a")), 50, False)

    @rule(slot=SLOTS, shift=st.sampled_from([-60, 60]), which=st.sampled_from(["day", "month"]))
    def admit_untimely(self, slot: int, shift: int, which: str) -> None:
        """By a process whose clock is wrong: into a period that is over or hasn't begun."""
        now = self.calendar.at(time.time())
        start = {"day": now.day_start, "month": now.month_start}[which]
        moved = {"start": start - 60 if shift < 0 else start + LONG, "end": start if shift < 0 else start + 2 * LONG}
        changes: Any = {f"{which}_{edge}": at for edge, at in moved.items()} | {which: "another"}
        asked = self._asked(slot, claim := self.bench.claim(), dataclasses.replace(now, **changes))
        assert self._decide(asked, claim)[0] != "ADMITTED"

    @rule(slot=st.sampled_from([0, 1]))
    def admit_behind_a_backlog(self, slot: int) -> None:
        claim = self.bench.claim(1, 1)
        asked = self._asked(slot, claim, self.calendar.at(time.time()))
        assert self._decide(dataclasses.replace(asked, backlog=0), claim)[0] != "ADMITTED"

    @rule(held=calls)
    def admit_again(self, held: Held | None) -> None:
        """A request id that the store knows; one that it has lost no process asks for again."""
        held = held or self.newest
        if held and held.asked.request_id in self.oracle.image.calls:
            asked = dataclasses.replace(held.asked, generation=self.generation)
            assert self._decide(asked, held.claim)[0] != "ADMITTED"

    def lose_patience(self) -> None:
        """What keeps everybody from calling ends after a few attempts, otherwise little would ever happen."""
        self.patience -= 1
        if self.patience < 0 and self.lost():
            self.rebuild()
        if self.patience < 0 and self.hindered():
            self.relieve()

    # Ends

    @rule(held=calls, share=st.integers(0, 100), fewer=st.booleans())
    def settle(self, held: Held | None, share: int, fewer: bool) -> None:
        _, images, tokens = self.costs(held)
        self._end(held, "exact", (1, max(images - fewer, 1), tokens * share // 100), b"answer")

    @rule(held=calls, keep=st.booleans())
    def void(self, held: Held | None, keep: bool) -> None:
        self._end(held, "void", (int(keep), 0, 0))

    @rule(held=calls)
    def fail(self, held: Held | None) -> None:
        """As a process ends a call whose outcome it doesn't know."""
        self._end(held, "unresolved", self.costs(held), b"unknown")

    @rule(held=calls)
    def expire(self, held: Held | None) -> None:
        kept = self.kept(held)
        if kept and kept.asked:  # of other calls the store's list of deadlines knows nothing
            self._end(held, "unresolved", self.costs(held), b"unknown", overdue=True)

    @rule(held=calls)
    def decide(self, held: Held | None) -> None:
        """A person says that an unresolved call counts nothing; the ledger says which calls these are."""
        kept = self.kept(held)
        if kept and kept.state == "EXPIRED":
            self._end(held, "void", (1, 0, 0), decided=True)

    @rule(held=consumes(calls))
    def forget(self, held: Held | None) -> None:
        """So that new calls are more often chosen."""

    # What changes meanwhile

    @rule(which=st.sampled_from(["day", "day", "month"]), milliseconds=st.integers(0, 3))
    def turn(self, which: str, milliseconds: int) -> None:
        """A period ends now or in the middle of the next steps."""
        self.calendar.end_soon(which, milliseconds / 1000)

    @rule(number=st.integers(0, len(LIMITS) - 1), percent=st.integers(50, 200))
    def change_limit(self, number: int, percent: int) -> None:
        scope, one = LIMITS[number].scope, LIMITS[number].limit
        changed = structs.replace(one, amount=max(one.amount * percent // 100, 1), burst=one.burst * percent // 100)
        self.bench.limits[number] = ScopedLimit(scope, changed)
        for entry in [entry for entry in self.oracle.taken if entry[0] == one.id]:
            del self.oracle.taken[entry]  # what passed before passed under another amount
        self._publish({"token": f"token:{self.tokens[0]}", "member": "member:7", "tenant": "tenant:3"}[scope])

    @rule(what=st.sampled_from(["token", "member", "tenant", "older", "revive"]), slot=SLOTS)
    def publish(self, what: str, slot: int) -> None:
        """A record changes; a message that is late, or out of date about a revoked token, changes nothing."""
        name = {"member": "member:7", "tenant": "tenant:3", "revive": f"token:{self.revoked}"}.get(
            what, self._token(slot)
        )
        if what in {"older", "revive"} and name in self.database:
            version = self.database[name].version + (5 if what == "revive" else 0)
            assert self.bench.put(name, "active", version) == self.oracle.put(name, "active", version)
        elif name in self.database:
            self._publish(name)

    @rule(slot=st.sampled_from([0, 1]))
    def revoke(self, slot: int) -> None:
        """For good; the next call of this member comes with another token."""
        name, old = self._token(slot), self.tokens[slot]
        self._revoke(name, "revoked", "")
        self.database[name] = Record("revoked", self.database[name].version + 1)
        self.revoked, self.tokens[slot] = old, old + 2
        self._publish(self._token(slot))

    @rule(what=st.sampled_from(["suspend", "suspend", "learn", "end", "stop"]), slot=st.sampled_from([0, 1]), for_=FEW)
    def hinder(self, what: str, slot: int, for_: int) -> None:
        """Suspend the tenant, which the database may learn or not, end a secret, stop everybody."""
        self.patience = for_
        if what == "suspend":
            self._revoke("tenant:3", "suspended", ORDER)
        elif what == "learn" and "tenant:3" in self.oracle.image.orders:
            self.database["tenant:3"].status = "suspended"
            self._learnt()
        elif what == "end":
            self.database[self._token(slot)].ended = True
            self._publish(self._token(slot))
        elif what == "stop":
            self.client.hset(keys.meta(3), "stopped", 1)
            self.oracle.image.stopped = True

    @precondition(lambda self: self.hindered())
    @rule()
    def relieve(self) -> None:
        """Undo all of that."""
        self.client.hdel(keys.meta(3), "stopped")
        self.oracle.image.stopped = False
        self._learnt()
        self.database["tenant:3"].status = "active"
        for name in ("tenant:3", self._token(0), self._token(1)):
            self.database[name].ended = False
            self._publish(name)

    def hindered(self) -> bool:
        """Whether something but limits keeps both tokens from calling."""
        tenant = self.oracle.image.records.get("tenant:3")
        ended = any(self.database[self._token(slot)].ended for slot in (0, 1))
        return self.oracle.image.stopped or ended or (tenant is not None and tenant.status != "active")

    # The store

    @rule(what=st.sampled_from(["restart", "restart", "copy", "drain"]))
    def befall(self, what: str) -> None:
        """What costs nothing: a restart of the whole store, confirmed under its name; a backup; the drain."""
        image = self.oracle.image
        if what == "restart" and not self.lost():
            self.run += 1
            image.generation = f"{self.name}:{self.run}"
            self.client.hset(keys.meta(3), "generation", image.generation)
        elif what == "copy":
            self.copy = self.bench.copy(), copy.deepcopy(image)
        elif what == "drain":
            self.client.delete(keys.usage(3))
            self.oracle.book()

    @rule(what=st.sampled_from(["roll back", "roll back", "empty", "fence"]), for_=FEW)
    def lose(self, what: str, for_: int) -> None:
        """The store loses what it held, or is no longer trusted; after some attempts the guardian rebuilds it."""
        self.patience = for_
        if what == "roll back" and self.copy:
            self.bench.roll_back(self.copy[0])
            self._replaced(copy.deepcopy(self.copy[1]))
        elif what == "empty":
            self.client.flushdb()
            self._replaced(Image())
        else:
            self.client.hdel(keys.meta(3), "generation")
            self.oracle.image.generation = ""

    def lost(self) -> bool:
        """Whether the store isn't the one, or isn't as whole, as the guardian last confirmed it."""
        return not self.oracle.image.generation.endswith(f":{self.run}")

    @precondition(lambda self: self.lost())
    @rule()
    def rebuild(self) -> None:
        """As the guardian does."""
        self.name += 1
        generation = f"{self.name}:{self.run}"
        for name in self.database:
            self._put(name)
        self.oracle.rebuild(generation, self.calendar.at(time.time()))
        self.bench.rebuild(generation, self.oracle.image.uses)

    @invariant()
    def the_store_holds_what_the_oracle_says(self) -> None:
        type(self).steps += 1
        assert seen(self.client) == told(self.oracle.image)

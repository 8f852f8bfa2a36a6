"""The admission scripts on a database of the store to themselves: principals made by hand, raw replies read."""

import asyncio
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, cast

import redis

from tokens.admission import keys, scripts
from tokens.admission.admission import Claim, Decision, admit, command
from tokens.admission.connection import StoreConnection
from tokens.admission.periods import Calendar
from tokens.admission.principal import LimitRecord, Principal, ScopedLimit
from tokens.admission.scripts import Script
from tokens.admission.settlement import Ending
from tokens.admission.settlement import command as ending_command

GENERATION = "bench:1"
LEASE = 60.0
USE_FIELDS = ["requests", "images", "tokens", "reserved_requests", "reserved_images", "reserved_tokens"]


def limit(scope: str, text: str, number: int = 1, burst: int = 0) -> ScopedLimit:
    """``limit("tenant", "images:20/day")``; its id is `number`."""
    metric, _, rest = text.partition(":")
    amount, _, period = rest.partition("/")
    return ScopedLimit(scope, LimitRecord(number, metric, period, int(amount), burst, int(time.time()) - 10))


class Direct:
    """Stands in for StoreConnection: the same scripts through redis-py, one round trip each."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    async def run(self, script: Script, count: int, *rest: Any) -> Any:
        return script.run(self.client, list(rest[:count]), list(rest[count:]))


@dataclass
class Bench:
    """A tenant 3 with member 7 and tokens 11, 12, whose records are written as the directory writes them."""

    client: redis.Redis
    limits: list[ScopedLimit] = field(default_factory=list)
    backlog: int = 1000

    def __post_init__(self) -> None:
        self.client.flushdb()
        self.client.hset(keys.meta(3), mapping={"generation": GENERATION, "counted_since": 0})
        self.client.hset(keys.tenant(3, 3), mapping={"status": "active", "version": 1})
        self.client.hset(keys.member(3, 7), mapping={"status": "active", "version": 1, "tenant": 3})
        for token in (11, 12):
            record = {"status": "active", "version": 1, "tenant": 3, "member": 7, "expires": 0, f"secret:{token}0": 0}
            self.client.hset(keys.token(3, token), mapping=cast("dict[Any, Any]", record))

    def principal(self, token: int = 11) -> Principal:
        """A token as a process remembers it. Limits of scope `token` are those of token 11."""
        limits = tuple(scoped for scoped in self.limits if scoped.scope != "token" or token == 11)
        return Principal(
            shard=3,
            tenant=3,
            member=7,
            token=token,
            secret=token * 10,
            versions=(1, 1, 1),
            active=True,
            expires=0,
            accepted_until=0,
            networks=(),
            origins=frozenset(),
            model="",
            calendar=Calendar("Europe/Berlin"),
            limits=limits,
        )

    def claim(self, images: int = 1, tokens: int = 100, lease: float = LEASE, key: str = "", body: str = "b") -> Claim:
        return Claim(str(uuid.uuid4()), images, tokens, lease, b"{}", key, body)

    def admit(self, claim: Claim, token: int = 11, now: float | None = None, generation: str = GENERATION) -> Decision:
        """As the request path does."""
        store = cast(StoreConnection, Direct(self.client))
        at = time.time() if now is None else now
        return asyncio.run(admit(store, self.principal(token), claim, at, generation, self.backlog))

    def admit_raw(self, claim: Claim, token: int = 11) -> list[Any]:
        """The script's own reply: with ADMITTED comes the store's clock in microseconds."""
        principal = self.principal(token)
        arguments = command(principal, principal.plan(time.time()), claim, GENERATION, self.backlog)
        count = arguments[0]
        return cast("list[Any]", scripts.admit().run(self.client, arguments[1 : count + 1], arguments[count + 1 :]))

    def end(self, claim: Claim, kind: str, overdue: bool = False, keep: bool = True, **amounts: Any) -> list[Any]:
        """finish; `amounts` are images, tokens and answer."""
        ending = Ending(
            claim.request_id,
            3,
            3,
            kind,
            amounts.get("images", 0),
            amounts.get("tokens", 0),
            keep,
            b"{}",
            b"{}",
            amounts.get("answer", b""),
        )
        arguments = ending_command(ending, overdue)
        return cast("list[Any]", scripts.finish().run(self.client, arguments[1:6], arguments[6:]))

    def use(self, name: str) -> list[int]:
        """A counter: requests, images, tokens used, then the same reserved."""
        return [int(value or 0) for value in self.client.hmget(name, USE_FIELDS)]

    def events(self) -> list[dict[bytes, bytes]]:
        """The usage stream's entries."""
        return [fields for _, fields in cast("list[Any]", self.client.xrange(keys.usage(3)))]

    def contents(self) -> dict[bytes, bytes | None]:
        """Everything that is stored, to see whether a refusal wrote something."""
        return {name: self.client.dump(name) for name in self.client.scan_iter()}

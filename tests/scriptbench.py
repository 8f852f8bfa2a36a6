"""The admission scripts on a database of the store to themselves: principals made by hand, raw replies read."""

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import redis

from tokens import scripts as directory_scripts
from tokens.admission import keys, scripts
from tokens.admission.admission import Claim, Decision, admit
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

    def principal(self, token: int = 11, versions: tuple[int, ...] = (1, 1, 1)) -> Principal:
        """A token as a process remembers it. Limits of scope `token` are those of tokens with an odd number."""
        limits = tuple(scoped for scoped in self.limits if scoped.scope != "token" or token % 2)
        return Principal(
            shard=3,
            tenant=3,
            member=7,
            token=token,
            secret=token * 10,
            versions=cast("tuple[int, int, int]", versions),
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

    def end(self, claim: Claim, kind: str, overdue: bool = False, keep: bool = True, **more: Any) -> list[Any]:
        """finish; `more` are images, tokens, answer, decided and the server's run id."""
        ending = Ending(
            claim.request_id,
            3,
            3,
            kind,
            more.get("images", 0),
            more.get("tokens", 0),
            keep,
            b"{}",
            b"{}",
            more.get("answer", b""),
            more.get("decided", False),
        )
        arguments = ending_command(ending, overdue, more.get("run_id", GENERATION.partition(":")[2]))
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

    def put(self, name: str, status: str, version: int, ended: bool = False) -> int:
        """Publish ``token:11``, ``member:7`` or ``tenant:3`` as the directory does; `ended`: its secret is over."""
        kind, _, number = name.partition(":")
        fields: dict[str, Any] = {"status": status, "version": version, "tenant": 3}
        if kind == "token":
            fields |= {"member": 7, "expires": 0, f"secret:{number}0": 1 if ended else 0}
        pairs = [part for pair in fields.items() for part in pair]
        return self._change("put", name, status, version, name, *pairs)

    def revoke(self, name: str, status: str, order: str) -> int:
        """End a record before the database knows; `order` is what it must learn, or empty."""
        return self._change("revoke", name, status, name, order)

    def forget(self, name: str, order: str) -> int:
        """The database has learnt the order."""
        return int(directory_scripts.script("forget")([keys.control(3)], [name, order], client=self.client))

    def _change(self, script: str, name: str, *arguments: Any) -> int:
        names = [record_key(name), keys.control(3)]
        return int(directory_scripts.script(script)(names, arguments, client=self.client))

    def copy(self) -> list[tuple[bytes, bytes, int]]:
        """Everything that is stored with the time it expires at, as a backup of the server's disk holds it."""
        names = list(self.client.scan_iter(count=1000))
        with self.client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.dump(name)
                pipeline.pexpiretime(name)
            answers = pipeline.execute()
        return [(name, *answers[2 * place : 2 * place + 2]) for place, name in enumerate(names)]

    def roll_back(self, copy: list[tuple[bytes, bytes, int]]) -> None:
        """Replace everything by an earlier copy."""
        self.client.flushdb()
        with self.client.pipeline(transaction=False) as pipeline:
            for name, value, expires_at in copy:
                pipeline.restore(name, max(expires_at, 0), value, absttl=expires_at > 0)
            pipeline.execute()

    def rebuild(self, generation: str, uses: Mapping[tuple[str, str], list[int]]) -> None:
        """Open a lost store as the guardian does: booked events, counters from the ledger, numbers from 1."""
        for pattern in ("{s3}:use:*", "{s3}:rate:*"):
            for name in self.client.scan_iter(pattern, count=1000):
                self.client.delete(name)
        self.client.delete(keys.usage(3), keys.sequence(3, 3))
        for (scope, period), figures in uses.items():
            counter = dict(zip(USE_FIELDS, figures, strict=True))
            self.client.hset(keys.use(3, scope, period), mapping=cast("dict[Any, Any]", counter))
        self.client.hset(keys.meta(3), mapping={"generation": generation, "counted_since": 0})


def record_key(name: str) -> str:
    """The key of ``token:11``, ``member:7`` or ``tenant:3``."""
    kind, _, number = name.partition(":")
    return {"token": keys.token, "member": keys.member, "tenant": keys.tenant}[kind](3, int(number))

"""Calls without a web process: admitted and ended by the real scripts on this process's store."""

import datetime as dt
import time
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
from django.conf import settings
from django.utils.timezone import now

from config.redis import store
from config.requestids import make_request_id
from tokens import issuing, secrets
from tokens.admission import admission, keys, scripts, settlement
from tokens.admission.principal import Principal, locate, read_principal
from tokens.admission.settlement import Ending
from tokens.models import Membership, ProxyToken, Tenant
from usage.events import UsageEvent, moment_of

ESTIMATE = 1000  # tokens of a call
RESULT = {"input": None, "output": None, "provider_request_id": "", "latency_ms": 5}


@dataclass
class Caller:
    """A tenant with one member and one token, and the calls it makes."""

    timezone: str = "UTC"
    limits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        slug = f"g{uuid.uuid4().hex[:10]}"
        self.tenant: Tenant = issuing.create_tenant(slug, slug, self.timezone, limit_texts=self.limits)
        self.member: Membership = issuing.add_member(self.tenant, f"{slug}@example.com")
        self.token: ProxyToken
        self.token, self.secret = issuing.issue_token(self.member, "test")
        self.shard = keys.shard_of(self.tenant.pk, settings.SHARDS)

    def principal(self) -> Principal:
        """As a web process reads it."""
        locator = store().get(keys.locator(secrets.digest(self.secret, settings.TOKEN_PEPPERS[1])))
        assert isinstance(locator, bytes), "the directory isn't loaded"
        names = (
            keys.token(self.shard, self.token.pk),
            keys.member(self.shard, self.member.pk),
            keys.tenant(self.shard, self.tenant.pk),
        )
        records: list[Any] = [store().hgetall(name) for name in names]
        return read_principal(locate(locator), *records)

    def call_fields(self, principal: Principal, n: int) -> bytes:
        """What the usage event says of a call for `n` images."""
        fields: dict[str, Any] = {"v": 1, "tenant": self.tenant.pk, "member": self.member.pk, "token": self.token.pk}
        fields |= {"secret": principal.secret, "model": "demo", "size": "512x512", "n": n, "provider": "sandbox"}
        day = principal.plan(time.time()).periods.day
        return msgspec.json.encode({**fields, "estimate": ESTIMATE, "day": day, "address": "192.0.2.1", "agent": ""})

    def admit(self, n: int = 1) -> tuple[str, str, bytes]:
        """The admit script's word, the request id, and the call as the event will carry it."""
        principal = self.principal()
        call = self.call_fields(principal, n)
        claim = admission.Claim(make_request_id(), n, ESTIMATE, settings.LEASE_SECONDS, call)
        arguments = admission.command(principal, principal.plan(time.time()), claim, generation(), 1_000)
        count = arguments[0]
        reply = scripts.admit().run(store(), arguments[1 : 1 + count], arguments[1 + count :])
        return reply[0].decode(), claim.request_id, call

    def end(self, request_id: str, call: bytes, kind: str, images: int, tokens: int, reason: str = "") -> bytes:
        """End a call as exact, void or unresolved."""
        figures = {"images": images, "charged": tokens, "reported": tokens if kind == "exact" else None}
        provenance = "reported" if kind == "exact" else "estimated"
        result = msgspec.json.encode({**RESULT, **figures, "provenance": provenance, "reason": reason})
        keep = reason != "not_dispatched"
        ending = Ending(request_id, self.shard, self.tenant.pk, kind, images, tokens, keep, result, call)
        arguments = settlement.command(ending)
        reply = scripts.finish().run(store(), arguments[1:6], arguments[6:])
        return bytes(reply[0])

    def calls(self, *endings: tuple[str, int, int, str]) -> None:
        """Make one call of two images and end it, each time anew, as the endings say one after the other."""
        status, request_id, call = self.admit(2)
        assert status == "ADMITTED"
        for kind, images, tokens, reason in endings:
            assert self.end(request_id, call, kind, images, tokens, reason) == b"DONE"

    def use(self, scope: str, period: str) -> tuple[int, int, int]:
        """A counter: requests, images, tokens."""
        number = {"tenant": self.tenant.pk, "member": self.member.pk, "token": self.token.pk}[scope]
        raw: Any = store().hmget(keys.use(self.shard, f"{scope}:{number}", period), "requests", "images", "tokens")
        requests, images, tokens = (int(value or 0) for value in raw)
        return requests, images, tokens


EXACT = ("exact", 2, 700, "")
VOID = ("void", 0, 0, "refused_400")
NOT_SENT = ("void", 0, 0, "not_dispatched")
UNRESOLVED = ("unresolved", 2, ESTIMATE, "lease_ended")


def generation() -> str:
    """What the store says; one for all shards."""
    found = {store().hget(keys.meta(shard), "generation") for shard in range(settings.SHARDS)}
    assert len(found) == 1
    value = found.pop()
    return value.decode() if isinstance(value, bytes) else ""


def counters() -> dict[str, Any]:
    """Every use counter with its figures and when it is deleted."""
    names = sorted(store().scan_iter(match="*:use:*", count=1000))
    return {
        name.decode(): (
            {key.decode(): int(value) for key, value in store().hgetall(name).items()},  # type: ignore[union-attr]
            store().expiretime(name),
        )
        for name in names
    }


def event(caller: Caller, day: dt.date, tokens: int, request_id: str = "") -> UsageEvent:
    """An exact event of two images, without a receipt."""
    at = int(dt.datetime.combine(day, dt.time(12), dt.UTC).timestamp() * 1000)
    earlier = min(at, int((now() - dt.timedelta(minutes=1)).timestamp() * 1000))
    number = uuid.UUID(request_id or make_request_id(earlier))
    return UsageEvent(
        request_id=number,
        at=moment_of(number),
        kind="exact",
        sequence=None,
        generation=None,
        tenant=caller.tenant.pk,
        member=caller.member.pk,
        token=caller.token.pk,
        secret=caller.token.secrets.get().pk,
        model="demo",
        size="512x512",
        quality="",
        n=2,
        provider="sandbox",
        day=day,
        address="",
        agent="",
        images=2,
        input_tokens=None,
        output_tokens=None,
        reported=tokens,
        charged=tokens,
        provenance="reported",
        provider_request_id="",
        latency_ms=1,
        reason="",
    )

"""Tenants with tokens, usage events about them, and what the books must agree on."""

import datetime as dt
import json
import random
import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from django.db import connection, transaction

from tokens.models import Membership, ProxyToken, Secret, Tenant, User
from usage.events import UsageEvent, parse
from usage.models import DailyUsage, UsageRecord

# The rollups once more, from the ledger alone: each row puts its call into a state on its booked day, and the next row
# of the call takes that state back on its own booked day.
ROLLUPS_FROM_LEDGER = """
WITH states AS (
    SELECT member_id, token_id, model, booked_day, currency, outcome, lead(booked_day) OVER call AS replaced_on,
           sum(images) OVER call AS images, sum(charged_tokens) OVER call AS charged,
           sum(coalesce(input_tokens, 0)) OVER call AS input, sum(coalesce(output_tokens, 0)) OVER call AS output,
           sum(coalesce(cost, 0)) OVER call AS cost, sum(coalesce(provider_cost, 0)) OVER call AS asked,
           (cost IS NULL)::int AS unpriced, (provider_cost IS NULL)::int AS uncosted
    FROM usage_record WHERE tenant_id = %s WINDOW call AS (PARTITION BY request_id ORDER BY number)
), moves AS (
    SELECT 1 AS sign, booked_day AS on_day, * FROM states
    UNION ALL SELECT -1, replaced_on, * FROM states WHERE replaced_on IS NOT NULL
)
SELECT on_day, member_id, token_id, model, currency,
       sum(sign) FILTER (WHERE outcome = 'exact'), sum(sign * images) FILTER (WHERE outcome = 'exact'),
       sum(sign * charged) FILTER (WHERE outcome = 'exact'), sum(sign * input) FILTER (WHERE outcome = 'exact'),
       sum(sign * output) FILTER (WHERE outcome = 'exact'), sum(sign * cost) FILTER (WHERE outcome = 'exact'),
       sum(sign * asked) FILTER (WHERE outcome = 'exact'), sum(sign * unpriced) FILTER (WHERE outcome = 'exact'),
       sum(sign * uncosted) FILTER (WHERE outcome = 'exact'),
       sum(sign) FILTER (WHERE outcome = 'unresolved'), sum(sign * images) FILTER (WHERE outcome = 'unresolved'),
       sum(sign * charged) FILTER (WHERE outcome = 'unresolved'), sum(sign) FILTER (WHERE outcome = 'void')
FROM moves GROUP BY 1, 2, 3, 4, 5
"""
ROLLUP_VALUES = [
    "booked_day",
    "member_id",
    "token_id",
    "model",
    "currency",
    "requests",
    "images",
    "charged_tokens",
    "input_tokens",
    "output_tokens",
    "cost",
    "provider_cost",
    "unpriced_requests",
    "uncosted_requests",
    "unresolved_requests",
    "unresolved_images",
    "unresolved_tokens",
    "voided_requests",
]
TODAY = dt.date(2026, 11, 22)
ENDINGS: dict[str, dict[str, Any]] = {
    "exact": {"images": 2, "reported": 4182, "charged": 4182, "provenance": "reported", "reason": ""},
    "void": {"images": 0, "reported": None, "charged": 0, "provenance": "missing", "reason": "not_sent"},
    "unresolved": {"images": 2, "reported": None, "charged": 4850, "provenance": "estimated", "reason": "lease_ended"},
}


def request_id(at: dt.datetime | None = None) -> uuid.UUID:
    """A UUIDv7 of that moment, or of now."""
    milliseconds = int((at.timestamp() if at else time.time()) * 1000)
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | random.getrandbits(12) << 64 | 2 << 62 | random.getrandbits(62))


@dataclass
class Customer:
    """A tenant of the test's own, with one member and one token, and the events of its calls."""

    timezone: str = "UTC"
    generation: str = field(default_factory=lambda: f"{uuid.uuid4()}:{secrets.token_hex(20)}")
    sequence: int = 0

    @transaction.atomic  # published once, and not after each row
    def __post_init__(self) -> None:
        slug = f"books-{secrets.token_hex(5)}"
        self.tenant = Tenant.objects.create(slug=slug, name=slug, timezone=self.timezone)
        self.user = User.objects.create_user(f"{slug}@books.test")
        self.member = Membership.objects.create(tenant=self.tenant, user=self.user)
        self.token, self.secret = self.add_token("first")
        self.model = slug

    @transaction.atomic
    def add_token(self, name: str) -> tuple[ProxyToken, Secret]:
        token = ProxyToken.objects.create(tenant=self.tenant, member=self.member, name=name)
        return token, Secret.objects.create(token=token, digest=secrets.token_hex(32), pepper_version=1, shown="gem_")

    def fields(self, kind: str = "exact", *, of: uuid.UUID | None = None, **changes: Any) -> dict[bytes, bytes]:
        """A stream entry with the next sequence number; `changes` go to call or result by their names."""
        self.sequence += 1
        call: dict[str, Any] = {"v": 1, "tenant": self.tenant.pk, "member": self.member.pk, "token": self.token.pk}
        call |= {
            "secret": self.secret.pk,
            "model": self.model,
            "size": "512x512",
            "quality": "",
            "n": 2,
            "provider": "sandbox",
        }
        call |= {"estimate": 4850, "day": TODAY.isoformat(), "address": "203.0.113.9", "agent": "curl/8.5"}
        result: dict[str, Any] = {"input": None, "output": None, "provider_request_id": "", "latency_ms": 12}
        result |= ENDINGS[kind]
        for name, value in changes.items():
            (call if name in call else result)[name] = value
        return {
            b"request_id": str(of or request_id()).encode(),
            b"kind": kind.encode(),
            b"sequence": str(self.sequence).encode(),
            b"generation": self.generation.encode(),
            b"tenant": str(self.tenant.pk).encode(),
            b"call": json.dumps(call).encode(),
            b"result": json.dumps(result).encode(),
        }

    def event(self, kind: str = "exact", *, of: uuid.UUID | None = None, **changes: Any) -> UsageEvent:
        """The same, read."""
        return parse(self.fields(kind, of=of, **changes))

    def rows(self, of: uuid.UUID | None = None) -> list[UsageRecord]:
        """The tenant's ledger rows, or those of one call, in their order."""
        rows = UsageRecord.objects.filter(tenant=self.tenant).order_by("request_id", "number")
        return list(rows.filter(request_id=of) if of else rows)

    def total(self, name: str) -> Any:
        """The sum of a column over all of the tenant's rollups."""
        return sum(DailyUsage.objects.filter(tenant=self.tenant).values_list(name, flat=True))

    def check_books(self) -> None:
        """The rollups are what the ledger says; each call has one primary row."""
        with connection.cursor() as cursor:
            cursor.execute(ROLLUPS_FROM_LEDGER, [self.tenant.pk])
            expected = {row[:5]: tuple(value or 0 for value in row[5:]) for row in cursor.fetchall()}
        found = DailyUsage.objects.filter(tenant=self.tenant).values_list(*ROLLUP_VALUES)
        assert {row[:5]: row[5:] for row in found} == expected
        primaries = [row.request_id for row in self.rows() if row.kind != "correction"]
        assert len(primaries) == len(set(primaries)) == len({row.request_id for row in self.rows()})

"""Records: what the admission store knows of a tenant, a member and a token, made from PostgreSQL's rows.

A record is a hash of strings and depends on nothing but the rows, not on the clock, so that two makings of one
version are the same. Its row is read before its parts: what a record holds is at least as new as its version, and
whatever is newer publishes again.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from django.conf import settings

from tokens.admission import keys
from tokens.models import Limit, Membership, ProxyToken, Secret, Tenant
from tokens.outbox import Entry, Kind

_KEYS = {Kind.TENANT: keys.tenant, Kind.MEMBER: keys.member, Kind.TOKEN: keys.token}


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its hash's `fields`, the `locators` (key -> value) of its secrets, and those that have `ended`."""

    entry: Entry
    version: int
    fields: dict[str, str]
    locators: dict[str, str] = field(default_factory=dict)
    ended: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """active, suspended or revoked."""
        return self.fields["status"]

    @property
    def key(self) -> str:
        """The key of its hash."""
        return key_of(self.entry)


def shard_of(tenant_id: int) -> int:
    """The shard of a tenant in this installation."""
    return keys.shard_of(tenant_id, settings.SHARDS)


def key_of(entry: Entry) -> str:
    """The key of a record's hash."""
    return _KEYS[entry.kind](shard_of(entry.tenant_id), entry.object_id)


def read(kind: Kind, ids: Iterable[int]) -> list[Record]:
    """The records of the rows with these ids, in two or three queries; rows that don't exist are left out."""
    ids = list(ids)
    if kind is Kind.TENANT:
        return _read_tenants(ids)
    return _read_members(ids) if kind is Kind.MEMBER else _read_tokens(ids)


def _read_tenants(ids: list[int]) -> list[Record]:
    tenants = list(Tenant.objects.filter(pk__in=ids).order_by())
    limits = _limits("tenant_id", ids, member=None, token=None)
    return [
        Record(
            tenant.entry(),
            tenant.version,
            {
                "status": tenant.status,
                "version": str(tenant.version),
                "shard": str(shard_of(tenant.pk)),
                "slug": tenant.slug,
                "timezone": tenant.timezone,
                "next_timezone": tenant.next_timezone,
                "next_timezone_from": _epoch(tenant.next_timezone_from),
                "origins": _json(tenant.origins),
                "model": tenant.model,
                "limits": _json(limits.get(tenant.pk, [])),
            },
        )
        for tenant in tenants
    ]


def _read_members(ids: list[int]) -> list[Record]:
    members = list(Membership.objects.filter(pk__in=ids).order_by())
    limits = _limits("member_id", ids)
    return [
        Record(
            member.entry(),
            member.version,
            {
                "status": member.status,
                "version": str(member.version),
                "tenant": str(member.tenant_id),
                "limits": _json(limits.get(member.pk, [])),
            },
        )
        for member in members
    ]


def _read_tokens(ids: list[int]) -> list[Record]:
    tokens = list(ProxyToken.objects.filter(pk__in=ids).order_by())
    limits = _limits("token_id", ids)
    secrets: dict[int, list[Any]] = defaultdict(list)
    columns = ("token_id", "pk", "digest", "accepted_until", "ended_at")
    for row in Secret.objects.filter(token__in=ids).order_by("pk").values_list(*columns):
        secrets[row[0]].append(row)
    return [_token_record(token, limits.get(token.pk, []), secrets[token.pk]) for token in tokens]


def _token_record(token: ProxyToken, limits: Sequence[dict[str, Any]], secrets: Sequence[Any]) -> Record:
    fields = {
        "status": token.status,
        "version": str(token.version),
        "tenant": str(token.tenant_id),
        "member": str(token.member_id),
        "expires": _epoch(token.expires_at),
        "networks": _json(token.networks),
        "model": token.model,
        "limits": _json(limits),
    }
    place = f"{shard_of(token.tenant_id)}:{token.tenant_id}:{token.member_id}:{token.pk}"
    locators, ended = {}, []
    for _, secret_id, digest, accepted_until, ended_at in secrets:
        if ended_at is not None:
            ended.append(keys.locator(digest))
            continue
        fields[f"secret:{secret_id}"] = _epoch(accepted_until)
        locators[keys.locator(digest)] = f"{place}:{secret_id}"
    return Record(token.entry(), token.version, fields, locators, tuple(ended))


def _limits(scope: str, ids: list[int], **only: None) -> dict[int, list[dict[str, Any]]]:
    """The limits of each id in column `scope`, in the form that the record holds."""
    columns = (scope, "pk", "metric", "period", "amount", "burst", "created_at")
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in Limit.objects.filter(**{f"{scope}__in": ids}, **only).order_by("pk").values_list(*columns):
        owner, limit_id, metric, period, amount, burst, created_at = row
        found[owner].append(
            {
                "id": limit_id,
                "metric": metric,
                "period": period,
                "amount": amount,
                "burst": burst or 0,
                "start": int(created_at.timestamp()),
            }
        )
    return found


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _epoch(moment: dt.datetime | None) -> str:
    """Epoch seconds, rounded down: nothing lasts longer in the store than in the database; 0 for none."""
    return str(int(moment.timestamp())) if moment is not None else "0"

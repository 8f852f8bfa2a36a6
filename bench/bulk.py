"""What the scale tests need in great numbers, written straight into the benchmark's own database and store."""

import datetime as dt
import json
import os
import statistics
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import msgspec
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.db import connection
from django.urls import reverse

from bench import cores
from config.redis import store
from config.requestids import make_request_id
from tokens import directory as token_directory
from tokens import secrets
from tokens.admission import keys
from tokens.models import ProxyToken, User
from usage.drain import drain
from usage.partitions import create_partitions
from usage.reports import Query, report

PIPELINED = 5_000  # commands in one writing
MONTH = dt.date(2026, 10, 1), dt.date(2026, 11, 1)
MODELS = 3

DIRECTORY = """
INSERT INTO tokens_tenant
  (version, slug, name, status, timezone, next_timezone, origins, model, plan_version, unresolved_policy, created_at)
SELECT 1, '{prefix}-' || t, 'Tenant ' || t, 'active', 'Europe/Berlin', '', '{{}}', '', 0, 'nothing', now()
FROM generate_series(1, {tenants}) t;
INSERT INTO tokens_user
  (password, is_superuser, is_finance, first_name, last_name, email, is_staff, is_active, date_joined)
SELECT '!', false, false, '', '', '{prefix}-' || t || '@example.com', false, true, now()
FROM generate_series(1, {tenants}) t;
INSERT INTO tokens_membership (version, tenant_id, user_id, role, status, created_at)
SELECT 1, t.id, u.id, '', 'active', now()
FROM tokens_tenant t JOIN tokens_user u ON u.email = t.slug || '@example.com' WHERE t.slug LIKE '{prefix}-%';
INSERT INTO tokens_proxytoken
  (version, tenant_id, member_id, name, status, networks, model, created_at, created_by, revoked_by, revoke_reason)
SELECT 1, m.tenant_id, m.id, 'token ' || k, 'active', '{{}}', '', now(), '', '', ''
FROM tokens_membership m JOIN tokens_tenant t ON t.id = m.tenant_id, generate_series(1, {each}) k
WHERE t.slug LIKE '{prefix}-%';
INSERT INTO tokens_limit (tenant_id, token_id, metric, period, amount, from_plan, created_at)
SELECT k.tenant_id, k.id, 'requests', 'minute', 30000000, false, now()
FROM tokens_proxytoken k JOIN tokens_tenant t ON t.id = k.tenant_id WHERE t.slug LIKE '{prefix}-%';
"""
SECRETS = """
INSERT INTO tokens_secret (token_id, digest, pepper_version, shown, imported, created_at, last_used_by)
SELECT *, %s, 'gem_', false, now(), '' FROM unnest(%s::bigint[], %s::text[])
"""

# Calls of a month, one after the other, spread evenly over all tokens and models.
LEDGER = """
INSERT INTO usage_record (request_id, kind, number, outcome, tenant_id, member_id, token_id, model, size, n, images,
  input_tokens, output_tokens, reported_tokens, charged_tokens, provenance, quality, cost, currency, unpriced,
  day, booked_day,
  provider, provider_request_id, latency_ms, reason, at, generation, sequence)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(h, 1, 3) || '8'
  || substr(h, 4, 15))::uuid, 'exact', 0, 'exact', k.tenant_id, k.member_id, k.id,
  'model-' || 1 + i / {tokens} % {models},
  '1024x1024', 1, 1, 20, 1480, 1500, 1500, 'reported', '', 0.04, 'EUR', '', at::date, at::date, 'provider-1',
  'req-' || substr(h, 1, 12), 8000, '', at, 'bench', i
FROM (
  SELECT i, md5(i::text) AS h, '{start}'::timestamptz + ('{end}'::timestamptz - '{start}') * i / {rows} AS at
  FROM generate_series(0, {rows} - 1) i
) calls
JOIN (SELECT *, row_number() OVER (ORDER BY id) AS place FROM tokens_proxytoken) k ON k.place = 1 + calls.i % {tokens}
"""
ROLLUPS = """
INSERT INTO usage_dailyusage (tenant_id, member_id, token_id, model, booked_day, currency, requests, images,
  charged_tokens, input_tokens, output_tokens, cost, provider_cost, unpriced_requests, uncosted_requests,
  unresolved_requests, unresolved_images, unresolved_tokens, voided_requests)
SELECT tenant_id, member_id, token_id, model, booked_day, currency, count(*), sum(images), sum(charged_tokens),
  sum(input_tokens), sum(output_tokens), sum(cost), 0, 0, count(*), 0, 0, 0, 0
FROM usage_record GROUP BY tenant_id, member_id, token_id, model, booked_day, currency ORDER BY booked_day
"""


def directory(prefix: str, tenants: str, each: str, file: str) -> str:
    """So many tenants with one member and `each` tokens, known to the store; the tokens' secrets go into `file`."""
    with connection.cursor() as cursor:
        cursor.execute(DIRECTORY.format(prefix=prefix, tenants=int(tenants), each=int(each)))
        found = ProxyToken.objects.filter(tenant__slug__startswith=f"{prefix}-").order_by("pk")
        ids = list(found.values_list("pk", flat=True))
        made = [secrets.make_secret() for _ in ids]
        version = max(settings.TOKEN_PEPPERS)
        pepper = settings.TOKEN_PEPPERS[version]
        cursor.execute(SECRETS, [version, ids, [secrets.digest(secret, pepper) for secret in made]])
        cursor.execute("ANALYZE")
    token_directory.load_all()
    Path(file).write_text("\n".join(made), encoding="ascii")
    return str(len(made))


def no_rewrites() -> str:
    """Let the store no longer rewrite its append-only file by itself: that would fall into one round or the other."""
    store().config_set("auto-aof-rewrite-percentage", 0)
    return ""


def events(count: str) -> str:
    """Put so many usage events of calls that ended exactly into the shards' streams, spread over all tokens."""
    tokens = list(ProxyToken.objects.values_list("tenant_id", "member_id", "pk", "secrets__pk"))
    generation = store().hget(keys.meta(0), "generation")
    sequences: defaultdict[int, int] = defaultdict(int)
    result = msgspec.json.encode(_result())
    pipeline = store().pipeline(transaction=False)
    for number in range(int(count)):
        tenant, member, token, secret = tokens[number % len(tokens)]
        sequences[tenant] += 1
        owner = {"tenant": tenant, "member": member, "token": token, "secret": secret}
        call = msgspec.json.encode({**owner, **_call()})
        fields = {"request_id": make_request_id(), "kind": "exact", "sequence": sequences[tenant]}
        fields |= {"generation": generation, "tenant": tenant, "call": call, "result": result}
        pipeline.xadd(keys.usage(keys.shard_of(tenant, settings.SHARDS)), fields)  # type: ignore[arg-type]
        if number % PIPELINED == PIPELINED - 1:
            pipeline.execute()
    for tenant, sequence in sequences.items():
        pipeline.set(keys.sequence(keys.shard_of(tenant, settings.SHARDS), tenant), sequence)
    pipeline.execute()
    return count


def _call() -> dict[str, object]:
    fields = {"v": 1, "model": "instant-1", "size": "512x512", "n": 1, "provider": "bench", "estimate": 1500}
    return {**fields, "day": dt.datetime.now(dt.UTC).date(), "address": "192.0.2.1", "agent": "bench"}


def _result() -> dict[str, object]:
    tokens = {"input": 20, "output": 1480, "reported": 1500, "charged": 1500}
    return {"images": 1, **tokens, "provenance": "reported", "provider_request_id": "req-1", "latency_ms": 8000}


def drain_all(core: str) -> str:
    """Book all that waits, in one process on that core; the events and seconds it took as JSON."""
    cores.pin(os.getpid(), int(core))
    begun, count = time.perf_counter(), 0
    while done := drain():
        count += done
    return json.dumps({"events": count, "seconds": time.perf_counter() - begun})


def ledger(rows: str) -> str:
    """So many rows of one month in the ledger, and the rollups that they sum to; returns the number of rollups."""
    start, end = MONTH
    create_partitions(start)
    with connection.cursor() as cursor:
        tokens = ProxyToken.objects.count()
        cursor.execute(LEDGER.format(tokens=tokens, models=MODELS, start=start, end=end, rows=int(rows)))
        cursor.execute(ROLLUPS)
        made = cursor.rowcount
        cursor.execute("VACUUM ANALYZE usage_record, usage_dailyusage")  # as autovacuum does
    return str(made)


def month_report() -> str:
    """The median time of the month's report by tenant, token and model in milliseconds, its rows and calls as JSON."""
    query = Query(None, *MONTH, ("tenant", "token", "model"))
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        rows = list(report(query))
        times.append(time.perf_counter() - begun)
    calls = sum(row["requests"] for row in rows)
    return json.dumps({"ms": statistics.median(times[1:]) * 1000, "rows": len(rows), "calls": calls})


def session() -> str:
    """An administrator who is signed in: the cookie, and the path of the ledger's download, as JSON."""
    user = User.objects.create_superuser("admin@example.com")
    made = import_module(settings.SESSION_ENGINE).SessionStore()
    made[SESSION_KEY] = str(user.pk)
    made[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    made[HASH_SESSION_KEY] = user.get_session_auth_hash()
    made.create()
    cookie = f"{settings.SESSION_COOKIE_NAME}={made.session_key}"
    return json.dumps({"cookie": cookie, "path": reverse("admin:usage_usagerecord_csv")})

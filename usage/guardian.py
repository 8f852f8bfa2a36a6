"""The guardian of the admission store: only what it has confirmed admits calls.

The store's `generation` reads ``<uuid>:<run id>``. A server that was started again has another run id, and web
processes stop admitting until the guardian has compared the store with the ledger: the uuid must be the one that it was
last opened under, and every tenant's sequence must have reached the highest receipt, otherwise the store lost what it
had acknowledged. Until then no event gets a number, so what calls in flight append meanwhile can't make a store look
whole that isn't. A store that was emptied or rolled back is fenced for one full lease, so that every call in flight has
ended, then rebuilt from PostgreSQL under a new uuid, in which every tenant's sequence begins at 1.
"""

import datetime as dt
import logging
import math
import time
import uuid
from typing import Any, NamedTuple, cast

import redis
from django.conf import settings
from django.db import connection
from django.db.models import Max
from django.utils.timezone import now

from config.redis import store
from tokens import directory
from tokens.admission import keys
from tokens.admission.principal import rate_units
from tokens.models import Installation, Limit, Period, Tenant
from usage import counters, expiry
from usage.alarms import AlarmKind, raise_alarm
from usage.drain import drain, is_for_newer
from usage.models import EventReceipt, UsageRecord

logger = logging.getLogger(__name__)
LOCK = 0x6775617264  # of PostgreSQL, so that it ends with whoever holds it: "guard"
PAUSE_SECONDS = 0.2  # before counters are made once more
FENCED = "The admission store lost data. Nobody is admitted until it is rebuilt from the ledger, for up to one lease."
LEDGER_END = f"""
SELECT (SELECT coalesce(max(id), 0) FROM {UsageRecord._meta.db_table}),
       (SELECT last_value FROM {UsageRecord._meta.db_table}_id_seq)
"""  # noqa: S608 - constants


def confirm(wait: bool = True) -> str:
    """Compare store and ledger once and do what is due; "confirmed", "fenced", "rebuilt" or "busy".

    `wait=False` rebuilds without waiting for a lease: only when no process of this installation runs.
    Raises redis.RedisError and django.db.OperationalError when one of them is out of reach.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
        if not cursor.fetchone()[0]:
            return "busy"
        try:
            return _confirm(store(), wait)
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def start_over() -> None:
    """Rebuild the store whatever it holds, after PostgreSQL was restored; only while no other process runs.

    Raises redis.RedisError and django.db.OperationalError when one of them is out of reach.
    """
    client = store()
    _fence(client, int(time.time()))
    rebuild(client, f"{uuid.uuid4()}:{client.info('server')['run_id']}")


def _confirm(client: redis.Redis, wait: bool) -> str:
    run_id = str(client.info("server")["run_id"])
    metas: list[Any] = [client.hmget(keys.meta(shard), "generation", "rebuild_at") for shard in range(settings.SHARDS)]
    generations = {(meta[0] or b"").decode() for meta in metas}
    name, _, confirmed_run = next(iter(generations)).partition(":")
    if len(generations) == 1 and name:
        if confirmed_run == run_id:  # what a running server was confirmed with it can't lose without starting again
            return "confirmed"
        if _reached(client, name):
            _write(client, f"{name}:{run_id}")
            return "confirmed"
    rebuild_at = int(metas[0][1] or 0)
    if not rebuild_at:
        known = UsageRecord.objects.exists() or EventReceipt.objects.exists()
        rebuild_at = math.ceil(time.time() + settings.LEASE_SECONDS) if known and wait else int(time.time())
        _fence(client, rebuild_at)
    if wait and time.time() < rebuild_at:
        raise_alarm(AlarmKind.STORE_FENCED, "", FENCED)
        return "fenced"
    rebuild(client, f"{uuid.uuid4()}:{run_id}")
    return "rebuilt"


def _reached(client: redis.Redis, name: str) -> bool:
    """Whether the store was last opened as `name`, and every tenant's sequence is at least the highest receipt."""
    last = Installation.objects.filter(pk=1).values_list("store_name", flat=True).first()
    if last and last != name:  # rolled back to before a rebuild: the receipts of that time say nothing of what followed
        return False
    receipts = EventReceipt.objects.filter(generation__startswith=f"{name}:")
    highest = list(receipts.values_list("tenant_id").annotate(highest=Max("sequence")))
    if not highest:
        return True
    names = [keys.sequence(keys.shard_of(tenant, settings.SHARDS), tenant) for tenant, _ in highest]
    sequences = client.mget(names)
    return all(int(raw or 0) >= top for raw, (_, top) in zip(sequences, highest, strict=True))


def _write(client: redis.Redis, generation: str) -> None:
    pipeline = client.pipeline(transaction=True)
    _add_generation(pipeline, generation)
    pipeline.execute()


def _add_generation(pipeline: Any, generation: str) -> None:
    for shard in range(settings.SHARDS):
        pipeline.hset(keys.meta(shard), mapping={"generation": generation, "counted_since": 0})
        pipeline.hdel(keys.meta(shard), "rebuild_at")


def _fence(client: redis.Redis, rebuild_at: int) -> None:
    pipeline = client.pipeline(transaction=True)
    for shard in range(settings.SHARDS):
        pipeline.hdel(keys.meta(shard), "generation")
        pipeline.hset(keys.meta(shard), "rebuild_at", rebuild_at)
    pipeline.execute()


def rebuild(client: redis.Redis, generation: str) -> None:
    """Load directory, counters and rates of a fenced store from PostgreSQL and open it under a new `generation`.

    Calls whose lease is over are ended and the usage events that wait in the store are booked first: the counters are
    made from the ledger. Should an event come in or anybody write to the ledger meanwhile, they are made once more.
    Events of a newer version than this program's can't be booked by it: they count once a newer worker has booked them.
    Raises redis.ConnectionError when the server was started again meanwhile: then all that was loaded may be lost.
    """
    while expiry.expire_overdue():
        pass
    directory.load_all()
    while True:
        while drain(claim_after_ms=0):
            pass
        books = _books(client)
        _delete_counters(client)
        for tenant in counters.counted(time.time()):
            _load_counters(client, tenant)
            _load_rates(client, tenant)
        _note_name(generation.partition(":")[0])
        if _open(client, generation, books):
            return
        time.sleep(PAUSE_SECONDS)


class _Books(NamedTuple):
    """What changes when usage comes in: each stream's last id, the ledger's last row, the last number given to a row.

    A row has its number before it can be seen, so one that is being written shows later in one of the two.
    """

    last: list[bytes]
    waits: bool  # whether an event hasn't been booked that could be
    row: int
    number: int


def _books(client: Any) -> _Books:
    """As they are now; `client` may be a pipeline that watches the streams.

    In this order: an event up to the last id that doesn't wait any more is committed.
    """
    streams = [keys.usage(shard) for shard in range(settings.SHARDS)]
    last = [_last_id(client, stream) for stream in streams]
    waits = any(_waiting(client, stream) for stream in streams)
    with connection.cursor() as cursor:
        cursor.execute(LEDGER_END)
        return _Books(last, waits, *cursor.fetchone())


def _waiting(client: Any, stream: str) -> int:
    """The events of a stream that this program can book."""
    length = int(client.xlen(stream))
    if not length:
        return 0
    try:
        consumers: list[Any] = client.xpending(stream, keys.GROUP)["consumers"]
    except redis.ResponseError as exc:
        if "NOGROUP" not in str(exc):
            raise
        return length
    return length - sum(int(consumer["pending"]) for consumer in consumers if is_for_newer(consumer["name"]))


def _last_id(client: Any, stream: str) -> bytes:
    try:
        return bytes(client.xinfo_stream(stream)["last-generated-id"])
    except redis.ResponseError as exc:
        if "no such key" not in str(exc):
            raise
        return b"0-0"


def _note_name(name: str) -> None:
    """Note under which name the store is about to be opened: no other is vouched for from now on."""
    installation = Installation.objects.filter(pk=1).first()
    if installation is not None:
        installation.store_name = name
        installation.save(update_fields=["store_name"])


def _open(client: redis.Redis, generation: str, books: _Books) -> bool:
    """Write the generation and begin every sequence anew, in the same step in which no event waits.

    False when one does, or when the books aren't those that the counters were made from. While the store is fenced no
    number is given, so none can be given twice.
    """
    sequences = list(client.scan_iter("{s*}:sequence:*", count=1000))
    with client.pipeline(transaction=True) as pipeline:
        try:
            pipeline.watch(*(keys.usage(shard) for shard in range(settings.SHARDS)))  # type: ignore[no-untyped-call]
            server: Any = pipeline.info("server")
            if server["run_id"] != generation.partition(":")[2]:
                raise redis.ConnectionError("The store was started again while it was rebuilt.")
            if books.waits or _books(pipeline) != books:
                return False
            pipeline.multi()
            if sequences:
                pipeline.delete(*sequences)
            _add_generation(pipeline, generation)
            pipeline.execute()
        except redis.WatchError:
            return False
    return True


def _delete_counters(client: redis.Redis) -> None:
    for pattern in ("{s*}:use:*", "{s*}:rate:*"):
        for name in client.scan_iter(pattern, count=1000):
            client.delete(name)


def _load_counters(client: redis.Redis, tenant: Tenant) -> None:
    pipeline = client.pipeline(transaction=False)
    for name, (use, expires) in counters.expected(tenant, time.time()).items():
        pipeline.hset(name, mapping=cast("dict[Any, Any]", use.fields()))
        if expires:
            pipeline.expireat(name, expires)
    pipeline.execute()


def _load_rates(client: redis.Redis, tenant: Tenant) -> None:
    """Hourly rates: an arrival time as far ahead as the last hour's use can have left it. Shorter ones are over."""
    shard = keys.shard_of(tenant.pk, settings.SHARDS)
    recent = UsageRecord.objects.filter(tenant=tenant, at__gte=now() - dt.timedelta(hours=1))
    seconds, microseconds = client.time()
    for limit in Limit.objects.filter(tenant=tenant, period=Period.HOUR):
        scope, number = counters.owner(limit)
        unit, tolerance = rate_units(limit.period, limit.amount, limit.burst or 0)
        for _, use in counters.sums(recent.filter(**{f"{scope}_id": number}), scope):
            ahead = min(getattr(use, limit.metric) * unit, tolerance)
            if ahead > 0:
                name = keys.rate(shard, f"{scope}:{number}", limit.metric, limit.period)
                client.set(name, seconds * 1_000_000 + microseconds + ahead, px=ahead // 1000 + 1000)

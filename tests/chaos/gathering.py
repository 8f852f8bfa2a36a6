"""Reading the accounts once all is over: the ledger, the sandbox's record, and the store's own counters."""

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.db import connection

from config.redis import store
from tests.bookkeeping import ROLLUP_VALUES, ROLLUPS_FROM_LEDGER
from tests.chaos.accounts import Accounts, Breach, Quota, Row, begun_at, read_drawn
from tests.chaos.attempts import Attempt
from tests.chaos.personas import Persona
from tests.chaos.stack import FOLDER
from tokens.admission import keys
from tokens.models import Limit
from usage.models import DailyUsage, EventReceipt, QuarantinedEvent, UsageRecord

FIGURES = ("requests", "images", "tokens")


def gather(attempts: list[Attempt], revoked: dict[int, float], everyone: list[Persona]) -> Accounts:
    """All three accounts. `revoked`: token id -> when its revocation had answered."""
    rows = [
        Row(
            str(row.request_id),
            row.kind,
            row.number,
            row.outcome,
            row.tenant_id,
            row.token_id,
            row.n,
            row.images,
            row.charged_tokens,
            row.reason,
            row.day.isoformat(),
            begun_at(row.request_id),
        )
        for row in UsageRecord.objects.order_by("request_id", "number")
    ]
    accounts = Accounts(
        attempts, read_drawn(FOLDER / "sandbox" / "generations.jsonl"), rows, _limits(), revoked, _states()
    )
    for persona in everyone:
        accounts.found += _rollups(persona)
        accounts.found += _sequences(persona)
        accounts.found += _counters(persona, accounts)
    accounts.found += [("quarantined", str(event)) for event in QuarantinedEvent.objects.all()]
    return accounts


def _limits() -> list[Quota]:
    found = []
    for limit in Limit.objects.all():
        scope = "token" if limit.token_id else "tenant"
        owner = limit.token_id or limit.tenant_id
        if limit.metric == "concurrent":
            found.append(Quota("concurrent", scope, owner, "concurrent", limit.amount, ""))
        else:
            kind = "rate" if limit.period in {"second", "minute", "hour"} else "quota"
            found.append(
                Quota(kind, scope, owner, limit.metric, limit.amount, limit.period, limit.burst or limit.amount)
            )
    return found


def _states() -> dict[str, str]:
    found = {}
    for name in store().scan_iter("{s*}:reservation:*", count=1000):
        state: Any = store().hget(name, "state")
        if state:
            found[name.decode().rpartition(":")[2]] = state.decode()
    return found


def _rollups(persona: Persona) -> Iterator[Breach]:
    """The rollups are what the ledger sums to."""
    with connection.cursor() as cursor:
        cursor.execute(ROLLUPS_FROM_LEDGER, [persona.tenant.pk])
        expected = {row[:5]: tuple(value or 0 for value in row[5:]) for row in cursor.fetchall()}
    found = DailyUsage.objects.filter(tenant=persona.tenant).values_list(*ROLLUP_VALUES)
    if {row[:5]: row[5:] for row in found} != expected:
        yield "rollups", f"those of {persona.name} are not what the ledger sums to"


def _sequences(persona: Persona) -> Iterator[Breach]:
    """Each tenant's numbers are 1, 2, 3 ... as far as the store has counted, in one generation."""
    receipts = EventReceipt.objects.filter(tenant=persona.tenant).values_list("generation", "sequence")
    numbers: dict[str, list[int]] = {}
    for generation, number in receipts:
        numbers.setdefault(generation.partition(":")[0], []).append(number)
    if len(numbers) > 1:
        yield "sequences", f"{persona.name} has {len(numbers)} generations: the store was rebuilt, and had lost nothing"
    for name, found in numbers.items():
        if sorted(found) != list(range(1, len(found) + 1)):
            missing = sorted(set(range(1, max(found) + 1)) - set(found))
            yield (
                "sequences",
                f"{persona.name} {name[:8]}: {len(found)} receipts to {max(found)}, missing {missing[:9]}",
            )
    shard = keys.shard_of(persona.tenant.pk, settings.SHARDS)
    counted = int(store().get(keys.sequence(shard, persona.tenant.pk)) or 0)
    highest = max(map(max, numbers.values()), default=0)
    if counted != highest:
        yield "sequences", f"{persona.name}: the store counted to {counted}, receipts to {highest}"


def _counters(persona: Persona, accounts: Accounts) -> Iterator[Breach]:
    """What the store counts for the tenant's days and months is what the ledger says, and nothing is reserved."""
    shard, scope = keys.shard_of(persona.tenant.pk, settings.SHARDS), f"tenant:{persona.tenant.pk}"
    expected: dict[str, list[int]] = {}
    for call in accounts.by_call.values():
        if call[0].tenant != persona.tenant.pk:
            continue
        never_sent = call[-1].outcome == "void" and call[-1].reason == "not_dispatched"
        use = (0 if never_sent else 1, sum(row.images for row in call), sum(row.charged for row in call))
        for period in (f"day:{call[0].day}", f"month:{call[0].day[:7]}"):
            sums = expected.setdefault(period, [0, 0, 0])
            sums[:] = [before + more for before, more in zip(sums, use, strict=True)]
    for period, sums in expected.items():
        raw: Any = store().hgetall(keys.use(shard, scope, period))
        counted = {name.decode(): int(value) for name, value in raw.items()}
        used = [counted.get(name, 0) for name in FIGURES]
        reserved = [counted.get(f"reserved_{name}", 0) for name in FIGURES]
        if used != sums or any(reserved):
            yield "counters", f"{persona.name} {period}: store {used} reserved {reserved}, ledger {sums}"

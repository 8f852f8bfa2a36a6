"""From a client's call to finance's report: in time, exactly what the provider spent, whoever is killed."""

import datetime as dt
import io
import json
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import transaction

from config.redis import store
from tests import processes
from tests.bookkeeping import request_id
from tests.conftest import Customer, Gateway
from tests.ledgerwatch import check_books, rows
from tests.ownvalkey import OwnValkey, own_valkey
from tokens.admission import keys, scripts
from tokens.admission.settlement import Ending, command
from tokens.models import User
from usage import exportjobs
from usage.models import EventReceipt, ExportJob, UsageRecord

EVENTS = 10_000
# What a prompt's directive makes of a call: status, kind.
MIXED: list[tuple[str, int, str]] = [
    *[("", 200, "exact")] * 7,
    ("[sandbox usage=missing]", 200, "exact"),
    ("[sandbox usage=zero]", 200, "exact"),
    ("[sandbox usage=absurd]", 200, "exact"),
    ("[sandbox usage=parts]", 200, "exact"),
    ("[sandbox status=400]", 400, "void"),
    ("[sandbox status=429]", 503, "void"),
    ("[sandbox status=500]", 500, "void"),
    ("[sandbox status=502]", 500, "unresolved"),
    ("[sandbox drop=unread]", 500, "unresolved"),
    ("[sandbox drop=after_draw]", 500, "unresolved"),
    ("[sandbox drop=midway]", 500, "unresolved"),
    ("[sandbox body=garbage]", 500, "unresolved"),
]


@pytest.mark.alone
def test_a_call_is_in_the_ledger_within_two_seconds(
    gateway: Gateway, customer: Customer, celery_worker_process: processes.Process
) -> None:
    for _ in range(3):
        answer = gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256"})
        answered = time.monotonic()
        booked = UsageRecord.objects.filter(request_id=answer.headers["x-request-id"], kind="exact")
        processes.wait_until(booked.exists, 5, "the call in the ledger")
        assert time.monotonic() - answered < 2


@pytest.mark.alone
def test_a_long_export_takes_one_process_and_holds_up_no_booking(
    gateway: Gateway, customer: Customer, celery_worker_process: processes.Process
) -> None:
    """That worker has two processes, one fewer than those that are deployed."""
    owner = User.objects.create_user(f"{uuid.uuid4().hex}@exports.test", is_superuser=True)
    question = f"tenant={customer.tenant.slug}&period=7d"
    job = ExportJob.objects.create(owner=owner, tenant=customer.tenant, question=question, format="csv")

    def is_being_made() -> bool:
        with exportjobs.alone() as free:
            return not free

    with transaction.atomic():
        ExportJob.objects.select_for_update().get(pk=job.pk)  # the export waits for it, so it takes as long as this
        processes.wait_until(is_being_made, what="the export to begin")
        began = time.monotonic()
        while time.monotonic() - began < 5:  # more ticks of exports: none may take the second process
            answer = gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256"})
            booked = UsageRecord.objects.filter(request_id=answer.headers["x-request-id"], kind="exact")
            processes.wait_until(booked.exists, what="the call in the ledger, beside the export")
        assert is_being_made()
    processes.wait_until(lambda: ExportJob.objects.get(pk=job.pk).status == "done", what="the export")
    job.delete()


def report(customer: Customer) -> dict[str, Any]:
    """What finance sees of a tenant today."""
    today = dt.datetime.now(dt.UTC).date()
    text = io.StringIO()
    period = {"start": today - dt.timedelta(days=1), "end": today + dt.timedelta(days=1)}
    arguments = ["report", "--tenant", customer.tenant.slug, "--group-by", "tenant", "--format", "json"]
    call_command("usage", *arguments, "--from", str(period["start"]), "--to", str(period["end"]), stdout=text)
    (row,) = json.loads(text.getvalue())["rows"]
    return dict(row)


def test_the_report_is_what_the_provider_spent(gateway: Gateway, customer: Customer) -> None:
    chance = random.Random(17)
    asked = [(*mixed, chance.randint(1, 2), chance.choice(["256x256", "512x512"])) for mixed in MIXED * 3]
    chance.shuffle(asked)

    def send(call: tuple[str, int, str, int, str]) -> httpx.Response:
        directive, _, _, n, size = call
        return gateway.post(customer.secret, {"prompt": f"a gem {directive}", "n": n, "size": size})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(send, asked))
    ledger = {str(row.request_id): row for row in rows(customer)}
    assert len(ledger) == len(asked)
    assert sorted(row.sequence or 0 for row in ledger.values()) == list(range(1, len(asked) + 1))
    drawn, spent = gateway.drawn(), {"tokens": 0, "images": 0}
    for (directive, status, kind, n, _), answer in zip(asked, answers, strict=True):
        call = answer.headers["x-request-id"]
        row = ledger[call]
        assert (answer.status_code, row.kind) == (status, kind), directive
        assert call not in drawn or kind != "void"  # what was drawn is never given away as void
        if kind == "exact":
            assert answer.json()["usage"]["total_tokens"] == row.charged_tokens
            if row.provenance == "reported":
                assert row.charged_tokens == drawn[call]["usage"]["total_tokens"]
            else:
                assert any(word in directive for word in ("missing", "zero", "absurd"))
            spent["tokens"] += row.charged_tokens
            spent["images"] += drawn[call]["n"]
            assert drawn[call]["n"] == n
    told = report(customer)
    assert {name: int(told[name]) for name in spent} == spent
    kinds = [kind for _, _, kind, _, _ in asked]
    assert int(told["requests"]) == kinds.count("exact")
    assert int(told["unresolved_requests"]) == kinds.count("unresolved")
    assert int(told["voided_requests"]) == kinds.count("void")
    check_books([customer])


@pytest.fixture
def valkey(provider: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnValkey]:
    with own_valkey(monkeypatch) as made:
        yield made


def finish_calls(customers: list[Customer]) -> dict[uuid.UUID, int]:
    """End EVENTS calls through the script, as if as many had been made; the tokens of each."""
    charges = {request_id(): 1000 + number % 977 for number in range(EVENTS)}
    today = dt.datetime.now(dt.UTC).date().isoformat()
    secrets = {customer.token.pk: customer.token.secrets.get().pk for customer in customers}
    with store().pipeline(transaction=False) as pipeline:
        pipeline.script_load(scripts.finish().text)
        for number, (call_id, charged) in enumerate(charges.items()):
            customer = customers[number % len(customers)]
            tenant = customer.tenant.pk
            call: dict[str, Any] = {"v": 1, "tenant": tenant, "member": customer.member.pk, "token": customer.token.pk}
            call |= {
                "secret": secrets[customer.token.pk],
                "model": "sandbox",
                "size": "256x256",
                "n": 1,
                "provider": "sandbox",
                "day": today,
            }
            result: dict[str, Any] = {
                "images": 1,
                "input": None,
                "output": None,
                "reported": charged,
                "charged": charged,
            }
            result |= {"provenance": "reported", "latency_ms": 5}
            texts = json.dumps(result).encode(), json.dumps(call).encode()
            ending = Ending(
                str(call_id), keys.shard_of(tenant, settings.SHARDS), tenant, "exact", 1, charged, True, *texts
            )
            pipeline.evalsha(scripts.finish().sha, *command(ending))
        assert pipeline.execute().count([b"DONE", 1]) == len(customers)
    return charges


def booked(customers: list[Customer]) -> int:
    return UsageRecord.objects.filter(tenant__in=[customer.tenant for customer in customers]).count()


def kill_in_the_middle(process: processes.Process, customers: list[Customer], later: float = 0) -> None:
    """kill -9 of the whole group, when a part of the events is booked, or so many seconds later."""
    processes.wait_until(lambda: booked(customers) > 0, 20, "the first rows")
    time.sleep(later)
    os.killpg(process.child.pid, signal.SIGKILL)
    process.child.wait(5)
    assert booked(customers) < EVENTS


def test_kill_9_of_the_worker_loses_and_doubles_nothing(
    valkey: OwnValkey, provider: Path, make_customer: Callable[..., Customer]
) -> None:
    customers = [make_customer(), make_customer()]
    charges = finish_calls(customers)
    with processes.worker(provider) as process:
        kill_in_the_middle(process, customers)
    with processes.worker(provider):
        processes.wait_until(lambda: booked(customers) == EVENTS, 40, "all rows")
    written = [row for customer in customers for row in rows(customer)]
    assert {row.request_id: row.charged_tokens for row in written} == charges
    assert len(written) == EVENTS
    for customer in customers:
        sequences = EventReceipt.objects.filter(tenant=customer.tenant).values_list("sequence", flat=True)
        assert sorted(sequences) == list(range(1, EVENTS // 2 + 1))
    check_books(customers)


def test_control_acknowledging_first_loses_what_was_in_hand(
    valkey: OwnValkey, provider: Path, make_customer: Callable[..., Customer]
) -> None:
    customers = [make_customer(), make_customer()]
    finish_calls(customers)
    command_line = [sys.executable, "-m", "tests.controls.acknowledge_first"]
    kill_in_the_middle(processes.Process("control", command_line, provider), customers, later=0.2)
    assert sum(len(rows(customer)) for customer in customers) < EVENTS

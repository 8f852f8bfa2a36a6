"""One run: load and faults for a while, then healing, then the accounts."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, connection

from tests.chaos.accounts import Accounts
from tests.chaos.faults import Faults
from tests.chaos.gathering import gather
from tests.chaos.healing import heal
from tests.chaos.load import Load
from tests.chaos.personas import Persona, make, personas, point_at
from tests.chaos.report import LEAST, Result, sum_up
from tests.chaos.schedule import Fault
from tests.chaos.stack import FOLDER, Stack, until
from tokens.installation import ensure_installation
from usage import guardian
from usage.models import Kind, UsageRecord

CLIENTS = 32
HEALING_SECONDS = 60.0
EXTRA_SECONDS = 60.0
STALL_SECONDS = 10.0


def prepare(provider_url: str, everyone: list[Persona]) -> None:
    """An empty database becomes an installation with these tenants and this provider."""
    call_command("migrate", verbosity=0)
    ensure_installation()
    assert guardian.confirm(wait=False) == "rebuilt"
    make(everyone)
    point_at(provider_url)


def run(seed: int, seconds: float, schedule: list[Fault], say: Callable[[str], None]) -> tuple[Accounts, Result]:
    """Make the stack, break it for `seconds`, and return its accounts and the figures."""
    everyone = personas(seconds / 60)
    stack = Stack()
    begun = time.monotonic()
    try:
        prepare(stack.provider_url, everyone)
        stack.start()
        say(f"ready after {time.monotonic() - begun:.0f} s; logs in {FOLDER / 'logs'}")
        load = Load(stack.urls, everyone, seed, CLIENTS)
        faults = Faults(stack, load, everyone, seed)
        load.start()
        faults.run(schedule)
        _prove_enough(load, faults)
        load.stop()
        faults.end()
        say(f"faults and load over after {time.monotonic() - begun:.0f} s; healing")
        time.sleep(settings.LEASE_SECONDS)  # calls under way when the clients left have ended
        stuck = heal(stack, HEALING_SECONDS)
        accounts = gather(load.attempts, load.revoked, everyone)
        if stuck:
            accounts.found.append(("does not heal", stuck))
        say(f"healed after {time.monotonic() - begun:.0f} s")
        return accounts, sum_up(accounts, seed, faults.kills, faults.others)
    finally:
        stack.close()


def _prove_enough(load: Load, faults: Faults) -> None:
    """Go on for a while when a slow machine has answered too few, or no stall came to a late settle."""
    end = time.monotonic() + EXTRA_SECONDS
    while time.monotonic() < end:
        answered, late = load.answered() >= LEAST["answered"], _late_settles()
        if answered and late:
            return
        if not late:
            faults.run([Fault(0.0, "stall", "before_settle")])
        until(lambda: load.answered() >= LEAST["answered"] and _late_settles(), STALL_SECONDS)


def _late_settles() -> bool:
    try:
        return UsageRecord.objects.filter(kind=Kind.CORRECTION).exists()
    except DatabaseError:
        connection.close()  # it was made before PostgreSQL was killed
        return False


def save(folder: Path, accounts: Accounts, result: Result, schedule: list[Fault]) -> None:
    """The accounts, the figures and the schedule that repeats the run, as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    accounts.save(folder / "accounts.json")
    (folder / "result.json").write_text(json.dumps({**asdict(result), "status": result.status, "lacks": result.lacks}))
    (folder / "schedule.json").write_text(json.dumps([asdict(fault) for fault in schedule], indent=0))

"""Every point of a call's life x every kind of process killed there, enumerated: what becomes of the call."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.schedule import POINTS, WORKER_POINTS
from tests.processes import ROOT

pytestmark = pytest.mark.timeout(180)  # the first test waits for all kills and for leases to end

# Told, what the ledger holds (its rows' kinds), drawn, and what the same idempotency key gets once all has healed.
Fate = tuple[str, str, bool, str]
SERVED: Fate = ("200", "exact", True, "200 replayed")
NEVER_SENT: Fate = ("500 upstream_failed", "void", False, "200")
NOT_ADMITTED: Fate = ("503 unavailable", "", False, "200")
SENT_AND_LOST: Fate = ("500 outcome_unknown", "unresolved", False, "500 outcome_unknown replayed")
LATE: Fate = ("broken", "unresolved correction", True, "200 replayed")  # the client gave up, the call went on

# A dead process can't say that it had not sent the call: whoever was admitted and not settled is unresolved.
WEB_DIES: dict[str, Fate] = {
    "before_admit": ("broken", "", False, "200"),
    "after_admit": ("broken", "unresolved", False, "500 outcome_unknown replayed"),
    "before_dispatch": ("broken", "unresolved", False, "500 outcome_unknown replayed"),
    **dict.fromkeys(
        ("at_provider", "after_answer", "after_keep", "before_settle"),
        ("broken", "unresolved", True, "500 outcome_unknown replayed"),
    ),
    **dict.fromkeys(("after_settle", "before_reply", "half_reply"), ("broken", "exact", True, "200 replayed")),
}
EXPECTED: dict[tuple[str, str], Fate] = {
    **{(victim, point): SERVED for victim in ("postgres", "worker-main", "valkey back") for point in POINTS},
    **{("valkey", point): SERVED for point in POINTS},
    ("valkey", "before_admit"): NOT_ADMITTED,
    **{("sandbox", point): SERVED for point in POINTS},
    **{("sandbox", point): NEVER_SENT for point in ("before_admit", "after_admit", "before_dispatch")},
    ("sandbox", "at_provider"): SENT_AND_LOST,
    **{(victim, point): WEB_DIES[point] for victim in ("web-worker", "web-main") for point in POINTS},
    **{("worker-child", point): LATE if point.endswith("expire") else SERVED for point in WORKER_POINTS},
}


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """All kills, once, on a stack of their own."""
    path: Path = tmp_path_factory.mktemp("points") / "points.json"
    command = [sys.executable, "-m", "tests.chaos.points", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    yield json.loads(path.read_text())


def test_every_point_was_reached_with_every_victim(kills: dict[str, Any]) -> None:
    assert {(call["victim"], call["point"]) for call in kills["tolds"]} == set(EXPECTED)


@pytest.mark.parametrize("victim", sorted({victim for victim, _ in EXPECTED}))
def test_what_becomes_of_a_call_when_a_process_is_killed_at(victim: str, kills: dict[str, Any]) -> None:
    calls = {call["point"]: call for call in kills["tolds"] if call["victim"] == victim}
    fates = {point: (call["told"], call["kinds"], call["drawn"], call["again"]) for point, call in calls.items()}
    assert fates == {point: fate for (of, point), fate in EXPECTED.items() if of == victim}


def test_no_call_was_lost_doubled_or_left_open(kills: dict[str, Any]) -> None:
    assert kills["breaches"] == []

"""The figures of a benchmark: medians of the rounds, as a table for people and as JSON, kept by commit."""

import datetime as dt
import json
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
QUIET = 0.05  # share of the server's core that other programs may take before the figures carry a warning
SATURATED = 0.9


@dataclass(frozen=True, slots=True)
class Figures:
    """One round of one target. CPU in milliseconds a request; shares are of the wall time of the round.

    `web_cpu_ms` and `memory_mb` are None where there is no web server in between, `valkey_cpu_ms` where no store is.
    """

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    web_cpu_ms: float | None
    valkey_cpu_ms: float | None
    memory_mb: float | None
    server_core_ours: float  # share of the server's core that the measured server took
    server_core_others: float  # and that everybody else took
    load_core_busy: float  # share of the other core that anybody took


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def medians(rounds: Sequence[Figures]) -> Figures:
    """Each figure's median over the rounds."""
    values: dict[str, Any] = {}
    for field in fields(Figures):
        column = [getattr(figures, field.name) for figures in rounds]
        values[field.name] = None if None in column else statistics.median(column)
    return Figures(**values)


def with_rounds(targets: Mapping[str, Sequence[Figures]]) -> dict[str, Any]:
    """The medians by target as JSON, and under `rounds` what they are the medians of."""
    return {
        name: {**asdict(medians(rounds)), "rounds": [asdict(figures) for figures in rounds]}
        for name, rounds in targets.items()
    }


def save(kind: str, result: Mapping[str, Any], output: Path | None = None) -> Path:
    """Write a result with the machine and the commit it was measured on; returns the file.

    Without `output` it is ``bench/results/<kind>-<commit>.json``, ``-changed`` after the commit where the tree isn't
    as committed; a later result of the same commit takes its place.
    """
    at, commit = dt.datetime.now(dt.UTC), commit_name()
    machine = {"cpu": _cpu(), "kernel": platform.release(), "python": platform.python_version()}
    output = output or RESULTS / f"{kind}-{commit}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"kind": kind, "at": at.isoformat(timespec="seconds"), "commit": commit, "machine": machine}
    output.write_text(json.dumps({**facts, **result}, indent=1) + "\n", encoding="utf-8")
    return output


def commit_name() -> str:
    """The commit's first twelve digits, such as ``60828b4c01d2`` or ``60828b4c01d2-changed``; "unknown" without git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}-changed" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def table(targets: Mapping[str, Sequence[Figures]], title: str = "") -> str:
    """The medians, a line a target, and under them what keeps them from being the whole truth."""
    lines = [
        f"{title:<18} {'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'web CPU ms':>11} {'Valkey CPU ms':>14}"
        f" {'memory MB':>10} {'server core':>12} {'load core':>10}"
    ]
    remarks = []
    for name, rounds in targets.items():
        median = medians(rounds)
        lines.append(
            f"{name:<18} {median.requests_per_second:>10,.0f} {median.p50_ms:>8.2f} {median.p99_ms:>8.2f}"
            f" {_number(median.web_cpu_ms, 3):>11} {_number(median.valkey_cpu_ms, 3):>14}"
            f" {_number(median.memory_mb, 0):>10} {median.server_core_ours:>12.0%} {median.load_core_busy:>10.0%}"
        )
        remarks += _remarks(name, median)
    return "\n".join(lines + remarks)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _remarks(name: str, median: Figures) -> list[str]:
    remarks = []
    if median.web_cpu_ms is not None and median.server_core_others > QUIET:
        share = f"other programs took {median.server_core_others:.0%} of the server's core"
        remarks.append(f"{name}: {share}: requests/s are too low, CPU ms up to a fifth too high.")
    if median.web_cpu_ms is not None and median.load_core_busy > SATURATED > median.server_core_ours:
        most = f"{1000 / median.web_cpu_ms:,.0f} requests/s"
        remarks.append(
            f"{name}: the core of load, provider and store was full; the server's own core has {most} in it."
        )
    return remarks

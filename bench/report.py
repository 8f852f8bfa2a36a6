"""The figures of a benchmark: medians of the rounds, as a table for people and as JSON."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

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


def medians(rounds: Sequence[Figures]) -> Figures:
    """Each figure's median over the rounds."""
    values: dict[str, Any] = {}
    for field in fields(Figures):
        column = [getattr(figures, field.name) for figures in rounds]
        values[field.name] = None if None in column else statistics.median(column)
    return Figures(**values)


def as_json(targets: dict[str, list[Figures]], facts: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, rounds included."""
    return {
        **facts,
        "machine": {"cpu": _cpu(), "kernel": platform.release(), "python": platform.python_version()},
        "targets": {
            name: {**asdict(medians(rounds)), "rounds": [asdict(figures) for figures in rounds]}
            for name, rounds in targets.items()
        },
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def table(targets: dict[str, list[Figures]]) -> str:
    """The medians, a line a target, and under them what keeps them from being the whole truth."""
    lines = [
        f"{'':<18} {'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'web CPU ms':>11} {'Valkey CPU ms':>14}"
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
        remarks.append(f"{name}: load, provider and store filled their core; the server's own core has {most} in it.")
    return remarks

"""``python -m bench``: measure the gateway, a bare pass-through and the provider alone, and say what each costs.

One worker pinned to one core with the options of ``make run``; load, instant provider and stores on another. The
rounds take turns, so that a machine that grows slower or faster touches all alike.
"""

import argparse
import datetime as dt
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cores, load, report
from bench.provider import TOKENS
from bench.report import Figures
from bench.servers import Running, running
from config.supervisor.errors import StartError

RESULTS = Path(__file__).resolve().parent / "results"
CONNECTIONS = 64
BODY = b'{"prompt": "a lighthouse at dusk, oil on canvas", "size": "512x512", "n": 1}'


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes, the sessions that serve it, and how many calls make a round long enough to measure."""

    name: str
    url: str
    headers: dict[str, str]
    web: int | None
    valkey: int | None
    calls: int


def targets(stack: Running, calls: int) -> list[Target]:
    """The three that are compared. The quick ones get more calls: CPU is counted in ticks of 10 ms."""
    return [
        Target("direct", stack.direct_url, {}, None, None, calls * 10),
        Target("bare pass-through", stack.passthrough_url, {}, stack.passthrough, None, calls * 5),
        Target("gateway", stack.gateway_url, {"X-Proxy-Token": stack.token}, stack.gateway, stack.valkey, calls),
    ]


def measure(target: Target, server_core: int, load_core: int) -> Figures:
    """One round. Raises StartError when an answer was no 200."""
    request = load.make_request(target.url, BODY, target.headers)
    web_before, rest_before = cores.measure(target.web, server_core), cores.measure(target.valkey, load_core)
    sample = load.run(target.url, request, target.calls, CONNECTIONS)
    web, rest = cores.measure(target.web, server_core), cores.measure(target.valkey, load_core)
    if set(sample.statuses) != {200}:
        text = sample.failed[:500].decode(errors="replace")
        raise StartError(f"{target.name} answered {dict(sample.statuses)}, such as {text}")
    wall, spent = web.at - web_before.at, web.program - web_before.program
    stored = rest.program - rest_before.program
    return Figures(
        requests_per_second=sample.per_second,
        p50_ms=sample.latency_ms(0.5),
        p99_ms=sample.latency_ms(0.99),
        web_cpu_ms=spent / target.calls * 1000 if target.web else None,
        valkey_cpu_ms=stored / target.calls * 1000 if target.valkey else None,
        memory_mb=cores.memory_mb(target.web) if target.web else None,
        server_core_ours=spent / wall,
        server_core_others=max(web.core - web_before.core - spent, 0.0) / wall,
        load_core_busy=(rest.core - rest_before.core) / (rest.at - rest_before.at),
    )


def run(calls: int, rounds: int) -> tuple[dict[str, list[Figures]], dict[str, Any]]:
    """Start everything, warm up, measure; the figures by target, and what else is worth writing down.

    Raises StartError when something doesn't start, a call isn't answered with 200, or the ledger lacks one.
    """
    server_core, load_core = cores.choose()
    cores.pin(os.getpid(), load_core)
    with running(server_core) as stack:
        chosen = targets(stack, calls)
        for target in chosen:  # so that every connection, cache and compiled script is there before the clock runs
            load.run(target.url, load.make_request(target.url, BODY, target.headers), target.calls // 3, CONNECTIONS)
        figures: dict[str, list[Figures]] = {target.name: [] for target in chosen}
        for _ in range(rounds):
            for target in chosen:
                figures[target.name].append(measure(target, server_core, load_core))
        made = calls // 3 + calls * rounds
        recorded = json.loads(stack.count_books())
    if recorded != {"exact": made, "other": 0, "tokens": made * TOKENS}:
        raise StartError(f"{made} calls were answered with 200, yet the ledger has {recorded}.")
    return figures, {"calls": calls, "rounds": rounds, "connections": CONNECTIONS, "recorded": recorded["exact"]}


def main() -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what a request costs.")
    parser.add_argument("--calls", type=int, default=6000, help="calls of the gateway in a round (default: 6000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, whose median counts (default: 3)")
    parser.add_argument("--output", type=Path, help="the JSON file (default: a new one in bench/results)")
    options = parser.parse_args()
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("The benchmark needs Linux: it pins programs to cores and reads /proc.")
    os.environ.pop("WEB_WORKERS", None)  # what is measured is one worker on one core
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    now = dt.datetime.now(dt.UTC)
    try:
        figures, facts = run(max(options.calls, 2 * CONNECTIONS), options.rounds)
    except (StartError, OSError) as exc:
        sys.exit(str(exc))
    output = options.output or RESULTS / f"{now:%Y-%m-%dT%H%M%SZ}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    result = report.as_json(figures, {"at": now.isoformat(timespec="seconds"), **facts})
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(report.table(figures))
    print(f"Every call was answered with 200, and the ledger has each of the gateway's {facts['recorded']:,}.")
    print(f"Medians of {facts['rounds']} rounds, {CONNECTIONS} connections. All figures: {output}")


if __name__ == "__main__":
    main()

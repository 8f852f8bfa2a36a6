"""One round of load on one server, and what it cost."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench import cores, load
from bench.report import Figures
from config.supervisor.errors import StartError


@dataclass(slots=True)
class Target:
    """Where the load goes and what it sends; the leaders of the sessions that serve it, None: no such program."""

    name: str
    url: str
    requests: Iterator[bytes]  # never ends
    web: int | None = None
    valkey: int | None = None
    answered: int = field(default=0)  # calls so far, warming up included


def send(target: Target, connections: int, seconds: float) -> load.Sample:
    """Load a target. Raises StartError when an answer was no 200."""
    sample = load.run(target.url, target.requests, connections, seconds=seconds)
    target.answered += sample.calls
    if set(sample.statuses) != {200}:
        text = sample.failed[:500].decode(errors="replace")
        raise StartError(f"{target.name} answered {dict(sample.statuses)}, such as {text}")
    return sample


def measure(target: Target, connections: int, seconds: float, server_core: int, load_core: int) -> Figures:
    """One round. Raises StartError when an answer was no 200."""
    web_before, rest_before = cores.measure(target.web, server_core), cores.measure(target.valkey, load_core)
    sample = send(target, connections, seconds)
    web, rest = cores.measure(target.web, server_core), cores.measure(target.valkey, load_core)
    wall, spent = web.at - web_before.at, web.program - web_before.program
    stored = rest.program - rest_before.program
    return Figures(
        requests_per_second=sample.per_second,
        p50_ms=sample.latency_ms(0.5),
        p99_ms=sample.latency_ms(0.99),
        web_cpu_ms=spent / sample.calls * 1000 if target.web else None,
        valkey_cpu_ms=stored / sample.calls * 1000 if target.valkey else None,
        memory_mb=cores.memory_mb(target.web) if target.web else None,
        server_core_ours=spent / wall,
        server_core_others=max(web.core - web_before.core - spent, 0.0) / wall,
        load_core_busy=(rest.core - rest_before.core) / (rest.at - rest_before.at),
    )


@contextmanager
def peak_memory(leader: int, every: float = 0.5) -> Iterator[list[float]]:
    """Looks at a program's memory as long as the block runs; the list's one element is the most it held, in MB."""
    most = [cores.memory_mb(leader)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every):
            most[0] = max(most[0], cores.memory_mb(leader))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()

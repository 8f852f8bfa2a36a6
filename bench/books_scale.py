"""Scale tests of the books: draining the streams, a month's report, the ledger's download."""

import http.client
import json
import os
import time
from urllib.parse import urlsplit

from bench import cores
from bench.bars import Bar
from bench.measuring import peak_memory
from bench.servers import Bench, running
from config.supervisor.errors import StartError

EVENTS, CALLS, RECORDS = 200_000, 10_000_000, 1_000_000
TENANTS, TOKENS_EACH = 100, 10
PIECE = 1 << 16


def drain(size: float) -> list[Bar | str]:
    """Usage events from the streams into ledger and rollups, in one process; PostgreSQL on the other core."""
    count = int(EVENTS * size)
    server_core, load_core = cores.choose()
    cores.pin(os.getpid(), load_core)
    with running(server_core, durable=True) as bench:
        _directory(bench)
        bench.books("events", str(count))
        done = json.loads(bench.books("drain", str(server_core)))
    if done["events"] != count:
        raise StartError(f"Of {count} events {done['events']} were drained.")
    per_second = count / done["seconds"]
    return [
        Bar(f"{count:,} events into ledger and rollups, by one worker", per_second, "/s", 15_000, 30_000, least=True)
    ]


def month(size: float) -> list[Bar | str]:
    """A month's report by tenant, token and model, over a ledger of ten million calls."""
    server_core, load_core = cores.choose()
    cores.pin(os.getpid(), load_core)
    with running(server_core) as bench:
        _directory(bench)
        rollups = int(bench.books("ledger", str(int(CALLS * size))))
        done = json.loads(bench.books("month"))
    name = f"month report of {done['calls']:,} calls in the ledger: {done['rows']:,} rows of {rollups:,} rollups"
    return [Bar(name, done["ms"], " ms", 200, 50)]


def export(size: float) -> list[Bar | str]:
    """The ledger's download in the admin, through the web server; its memory beside."""
    rows = int(RECORDS * size)
    server_core, load_core = cores.choose()
    cores.pin(os.getpid(), load_core)
    with running(server_core) as bench:
        _directory(bench)
        bench.books("ledger", str(rows))
        signed_in = json.loads(bench.books("session"))
        gateway = bench.gateway()
        before = cores.memory_mb(gateway.pid)
        with peak_memory(gateway.pid, 0.2) as most:
            seconds = _download(gateway.url, signed_in, rows)
    return [
        Bar(f"{rows:,} ledger rows as CSV", rows / seconds, " rows/s", 100_000, 200_000, least=True),
        Bar(f"memory of the web server meanwhile (before: {before:.0f} MB)", most[0], " MB", 150, 150),
    ]


def _directory(bench: Bench) -> None:
    bench.books("directory", "books", str(TENANTS), str(TOKENS_EACH), str(bench.data / "issued"))


def _download(url: str, signed_in: dict[str, str], rows: int) -> float:
    """The seconds it took. Raises StartError when the file doesn't have a line for each row and the heading."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    connection.request("GET", signed_in["path"], headers={"Cookie": signed_in["cookie"]})
    answer = connection.getresponse()
    lines = 0
    while piece := answer.read(PIECE):
        lines += piece.count(b"\n")
    connection.close()
    if answer.status != 200 or lines != rows + 1:
        raise StartError(f"The download answered {answer.status} with {lines:,} lines for {rows:,} rows.")
    return time.perf_counter() - begun

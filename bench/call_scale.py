"""Scale tests of calls: many held at once, many limits, many tokens, large images."""

import os
import random
from collections.abc import Iterator

from bench import cores, load
from bench.bars import Bar
from bench.ladder import calling
from bench.measuring import Target, measure, peak_memory, send
from bench.report import Figures, medians
from bench.servers import Bench, Server, running
from config.supervisor.errors import StartError

HELD, PROVIDER_SECONDS = 5_000, 10.0
ROUNDS, SECONDS, CONNECTIONS = 3, 3.0, 64
TENANTS, TOKENS_EACH = 1_000, 100
REMEMBERED = 10_000  # tokens of a middling installation: a process remembers them all
IMAGE_BYTES = 2_000_000
IMAGE_CONNECTIONS = 8  # an answer of four images in base64 is 11 MB
PLENTY = "30000000"
ONE_LIMIT = (f"token=requests:{PLENTY}/minute",)
NINE_LIMITS = tuple(
    f"{scope}={metric}"
    for scope in ("tenant", "member", "token")
    for metric in (f"requests:{PLENTY}/minute", f"images:{PLENTY}/day", "tokens:90000000000/month")
)


def _image_body(n: int) -> bytes:
    return b'{"prompt": "a lighthouse at dusk, oil on canvas", "size": "512x512", "n": %d}' % n


def held(size: float) -> list[Bar | str]:
    """5,000 calls in flight on one worker against a provider that takes ten seconds."""
    count = int(HELD * size)
    server_core, load_core = cores.choose()
    cores.pin(os.getpid(), load_core)
    with running(server_core, ["--delay", str(PROVIDER_SECONDS)]) as bench:
        gateway = bench.gateway()
        target = calling(bench, gateway, "gateway", bench.books("tenant", "held"))
        load.run(target.url, target.requests, 1, calls=1)
        before = cores.memory_mb(gateway.pid)
        with peak_memory(gateway.pid) as most:
            sample = load.run(target.url, target.requests, count, calls=count)
    failed = sample.calls - sample.statuses[200]
    if sample.latency_ms(1) >= 2000 * PROVIDER_SECONDS:
        raise StartError("The calls weren't all in flight at once: the machine was too slow to send them in time.")
    each = (most[0] - before) * 1024 / count
    return [
        Bar(f"{count:,} calls in flight at once, failed", failed, "", 0, 0),
        Bar(f"memory of each ({before:.0f} -> {most[0]:.0f} MB)", each, " KB", 80, 50),
        f"slowest answer {sample.latency_ms(1) / 1000:.1f} s",
    ]


def limits(size: float) -> list[Bar | str]:
    """Nine limits on a token against one."""
    server_core, load_core = cores.choose()
    cores.pin(os.getpid(), load_core)
    with running(server_core) as bench:
        gateway = bench.gateway()
        targets = [
            calling(bench, gateway, name, bench.books("tenant", f"{name}-limits", *texts))
            for name, texts in (("one", ONE_LIMIT), ("nine", NINE_LIMITS))
        ]
        one, nine = _in_turns(targets, size, server_core, load_core)
    return [_cpu_bar("CPU with nine limits against one", nine, one, 1.15, 1.05)]


def directory(size: float) -> list[Bar | str]:
    """Calls spread over 100,000 tokens of 1,000 tenants against calls with ten, of which the store knows all."""
    server_core, load_core = cores.choose()
    cores.pin(os.getpid(), load_core)
    tenants = max(1, int(TENANTS * size))
    with running(server_core) as bench:
        bench.books("no-rewrites")
        file = bench.data / "issued"
        bench.books("directory", "many", str(tenants), str(TOKENS_EACH), str(file))
        tokens = file.read_text(encoding="ascii").split()
        gateway = bench.gateway()
        count = min(REMEMBERED, len(tokens))
        ten, ten_thousand = (_spread(bench, gateway, tokens[:: len(tokens) // n][:n]) for n in (10, count))
        few, some = _in_turns([ten, ten_thousand], size, server_core, load_core)
        fewer, many = _in_turns([ten, _spread(bench, gateway, tokens)], size, server_core, load_core)
    return [
        _cpu_bar(f"CPU of calls over {len(tokens):,} tokens, {tenants:,} tenants, against 10", many, fewer, 1.05, 1.0),
        _cpu_bar(f"CPU of calls over {count:,} of them against 10", some, few, 1.05, 1.0),
    ]


def _spread(bench: Bench, gateway: Server, tokens: list[str]) -> Target:
    chosen = random.Random(7)
    requests = [next(calling(bench, gateway, "", token).requests) for token in tokens]

    def endless() -> Iterator[bytes]:
        while True:
            yield chosen.choice(requests)

    target = Target(f"{len(tokens)} tokens", gateway.url, endless(), gateway.pid, bench.valkey)
    in_turn = iter([*requests, *requests[:CONNECTIONS]])  # each once, so that what can be remembered is
    load.run(gateway.url, in_turn, CONNECTIONS, calls=len(requests))
    return target


def images(size: float) -> list[Bar | str]:
    """Images of 2 MB that the provider sends as base64, and that the gateway keeps and answers with a URL for."""
    server_core, load_core = cores.choose()
    cores.pin(os.getpid(), load_core)
    with running(server_core, ["--image-bytes", str(IMAGE_BYTES)]) as bench:
        gateway, token = bench.gateway(), bench.books("tenant", "images")
        targets = [calling(bench, gateway, f"n={n}", token, _image_body(n)) for n in (1, 4)]
        found = _in_turns(targets, size / 2, server_core, load_core, IMAGE_CONNECTIONS)
    return [
        f"{(figures.web_cpu_ms or 0) / n:.2f} ms of CPU for an image of 2 MB, n = {n}"
        f" ({figures.requests_per_second * n:,.0f} images/s, {figures.memory_mb:,.0f} MB)"
        for n, figures in zip((1, 4), found, strict=True)
    ]


def _in_turns(
    targets: list[Target], size: float, server_core: int, load_core: int, connections: int = CONNECTIONS
) -> list[Figures]:
    rounds: list[list[Figures]] = [[] for _ in targets]
    for target in targets:
        send(target, connections, SECONDS * size / 3)
    for _ in range(ROUNDS):
        for target, figures in zip(targets, rounds, strict=True):
            figures.append(measure(target, connections, SECONDS * size, server_core, load_core))
    return [medians(figures) for figures in rounds]


def _cpu_bar(name: str, more: Figures, less: Figures, bar: float, reach: float) -> Bar:
    web, web_less = more.web_cpu_ms or 0.0, less.web_cpu_ms or 0.0
    valkey, valkey_less = more.valkey_cpu_ms or 0.0, less.valkey_cpu_ms or 0.0
    parts = f"web {web_less:.3f} -> {web:.3f} ms, Valkey {valkey_less:.3f} -> {valkey:.3f} ms"
    return Bar(f"{name} ({parts})", (web + valkey) / (web_less + valkey_less), "x", bar, reach)

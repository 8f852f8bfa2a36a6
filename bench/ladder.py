"""The ladder: direct, bare pass-through, nginx and the gateway at 1, 16, 64 and 256 connections, in turns."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat

from bench import cores
from bench.bars import Bar
from bench.load import make_request
from bench.measuring import Target, measure, send
from bench.provider import TOKENS
from bench.report import Figures, medians, middle
from bench.servers import Bench, Server, running
from config.supervisor.errors import StartError

CONNECTIONS = (1, 16, 64, 256)
WARM_SHARE = 0.25  # of a round's length, before the first round
SLUG = "bench"
BODY = b'{"prompt": "a lighthouse at dusk, oil on canvas", "size": "512x512", "n": 1}'
DIRECT, BARE, NGINX, GATEWAY = "direct", "bare pass-through", "nginx proxy_pass", "gateway"

# One of each kind (rate, quota, concurrency), spread over the scopes, far above what a benchmark can take.
LIMITS = (
    *("tenant=images:50000000/day", "tenant=tokens:90000000000/month", "tenant=concurrent:4000"),
    *("member=images:40000000/day", "member=tokens:80000000000/month"),
    *("token=requests:30000000/minute", "token=concurrent:3000"),
)

Level = dict[str, list[Figures]]


@dataclass
class Ladder:
    """What was measured: the rounds by connections and target, two script round trips by round, calls in the ledger."""

    rounds: int
    seconds: float
    levels: dict[int, Level]
    roundtrips_ms: list[float] = field(default_factory=list)
    recorded: int = 0
    without: str = ""  # what could not be measured here

    def bars(self) -> list[Bar]:
        """What the figures must reach, where the ladder has the rungs for it."""
        made = []
        if 64 in self.levels:
            gateway, bare = medians(self.levels[64][GATEWAY]), medians(self.levels[64][BARE])
            web, valkey, least = gateway.web_cpu_ms or 0.0, gateway.valkey_cpu_ms or 0.0, bare.web_cpu_ms or 1.0
            made += [
                Bar("web CPU a request against the bare pass-through", web / least, "x", 8, 5),
                Bar("web and Valkey CPU against the bare pass-through", (web + valkey) / least, "x", 8, 5),
                Bar("Valkey CPU a request", valkey, " ms", 0.12, 0.06),
                Bar("p99 / p50 at 64 connections", gateway.p99_ms / gateway.p50_ms, "", 4, 2.5),
            ]
        if 1 in self.levels:
            added = medians(self.levels[1][GATEWAY]).p50_ms - medians(self.levels[1][DIRECT]).p50_ms
            name = (
                f"p50 added at 1 connection ({added:.2f} ms) less two script round trips ({self.roundtrip_ms:.2f} ms)"
            )
            made.append(Bar(name, added - self.roundtrip_ms, " ms", 1.0, 0.5))
        return made

    @property
    def roundtrip_ms(self) -> float:
        """The median of two script round trips."""
        return middle(self.roundtrips_ms)


def targets(bench: Bench) -> list[Target]:
    """The web servers, started; nginx only where it is installed."""
    bare, proxy = bench.passthrough(), bench.nginx()
    gateway = gateway_target(bench, bench.books("tenant", SLUG, *LIMITS))
    made = [
        Target(DIRECT, bench.direct_url, repeat(make_request(bench.direct_url, BODY, {}))),
        Target(BARE, bare.url, repeat(make_request(bare.url, BODY, {})), bare.pid),
        gateway,
    ]
    if proxy is not None:
        made.insert(2, Target(NGINX, proxy.url, repeat(make_request(proxy.url, BODY, {})), proxy.pid))
    return made


def gateway_target(bench: Bench, token: str, body: bytes = BODY) -> Target:
    """The gateway, started."""
    return calling(bench, bench.gateway(), GATEWAY, token, body)


def calling(bench: Bench, gateway: Server, name: str, token: str, body: bytes = BODY) -> Target:
    """Calls of a running gateway with a token."""
    request = make_request(gateway.url, body, {"X-Proxy-Token": token})
    return Target(name, gateway.url, repeat(request), gateway.pid, bench.valkey)


def check_books(bench: Bench, target: Target, slug: str) -> int:
    """The calls of a target that are in the ledger: all that were answered, or StartError is raised."""
    recorded = json.loads(bench.books("count", slug))
    if recorded != {"exact": target.answered, "other": 0, "tokens": target.answered * TOKENS}:
        raise StartError(f"{target.answered} calls were answered with 200, yet the ledger has {recorded}.")
    return target.answered


def run(connections: Sequence[int], rounds: int, seconds: float) -> Ladder:
    """Start everything, warm up, measure. A round lasts `seconds` for each target at each number of connections.

    Raises StartError when something doesn't start, a call isn't answered with 200, or the ledger lacks one.
    """
    server_core, load_core = cores.choose()
    cores.pin(os.getpid(), load_core)
    with running(server_core) as bench:
        chosen = targets(bench)
        ladder = Ladder(rounds, seconds, {level: {target.name: [] for target in chosen} for level in connections})
        ladder.without = "" if any(target.name == NGINX for target in chosen) else "nginx isn't installed here."
        for target in chosen:  # so that every connection, cache and compiled script is there before the clock runs
            for level in connections:
                send(target, level, seconds * WARM_SHARE)
        for _ in range(rounds):
            for level in connections:
                for target in chosen:
                    ladder.levels[level][target.name].append(measure(target, level, seconds, server_core, load_core))
            if 1 in connections:
                timed = bench.books("roundtrips", str(server_core), str(seconds / 2), *LIMITS)
                ladder.roundtrips_ms.append(float(timed))
        gateway = next(target for target in chosen if target.name == GATEWAY)
        ladder.recorded = check_books(bench, gateway, SLUG)
    return ladder

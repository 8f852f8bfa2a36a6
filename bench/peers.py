"""``python -m bench.peers``: LiteLLM's proxy and Portkey's gateway beside ours, on the same load and provider.

Each does as much of the job as it can without further services: LiteLLM checks a master key and routes an image model;
Portkey takes the provider's address and key from the headers, and checks, limits and records nothing. They are
installed into ``BENCH_PEERS``, ``~/.cache/gem-heaven-bench`` by default.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from itertools import repeat

from bench import cores, ladder, report
from bench.bars import Bar
from bench.call_scale import IMAGE_BYTES, IMAGE_CONNECTIONS
from bench.load import make_request
from bench.measuring import Target, measure, send
from bench.peer_programs import MissingPeer, litellm, portkey
from bench.report import Figures, medians
from bench.servers import Bench, running
from bench.starting import begin
from config.supervisor.errors import StartError
from config.supervisor.stack import free_port

CONNECTIONS = 64
LITELLM, PORTKEY = "LiteLLM", "Portkey"
KEY = "sk-bench-1234567890"
BODY = json.dumps({**json.loads(ladder.BODY), "model": "dall-e-2"}).encode()


def _litellm(bench: Bench) -> Target:
    port = free_port()
    command, environment = litellm(bench.data, port, bench.provider_url, KEY)
    url = f"http://127.0.0.1:{port}/v1/images/generations"
    pid = bench.start("litellm", command, port, environment)
    return Target(LITELLM, url, repeat(make_request(url, BODY, {"Authorization": f"Bearer {KEY}"})), pid)


def _portkey(bench: Bench) -> Target:
    port = free_port()
    command, environment = portkey(port)
    url = f"http://127.0.0.1:{port}/v1/images/generations"
    headers = {"Authorization": f"Bearer {KEY}", "x-portkey-provider": "openai"}
    headers["x-portkey-custom-host"] = bench.provider_url
    pid = bench.start("portkey", command, port, environment)
    return Target(PORTKEY, url, repeat(make_request(url, BODY, headers)), pid)


PEERS: dict[str, Callable[[Bench], Target]] = {LITELLM: _litellm, PORTKEY: _portkey}


def _run(provider: list[str], connections: int, rounds: int, seconds: float) -> dict[str, list[Figures]]:
    """The rounds by server, in turns; a peer that can't be had is left out, and said so."""
    server_core, load_core = cores.choose()
    cores.pin(os.getpid(), load_core)
    with running(server_core, provider) as bench:
        targets = [ladder.gateway_target(bench, bench.books("tenant", ladder.SLUG, *ladder.LIMITS))]
        for name, start in PEERS.items():
            try:
                targets.append(start(bench))
            except MissingPeer as exc:
                print(f"{name} is left out: {exc}", flush=True)
        for target in targets:
            send(target, connections, 2 * seconds)  # Node compiles what runs often
        found: dict[str, list[Figures]] = {target.name: [] for target in targets}
        for _ in range(rounds):
            for target in targets:
                found[target.name].append(measure(target, connections, seconds, server_core, load_core))
        ladder.check_books(bench, targets[0], ladder.SLUG)
    return found


def _bars(calls: dict[str, list[Figures]], images: dict[str, list[Figures]]) -> list[Bar]:
    """Ours against each peer that there was."""
    made = []
    ours = medians(calls[ladder.GATEWAY])
    for name, bar, reach in ((PORTKEY, 2.5, 4), (LITELLM, 20, 30)):
        if name in calls:
            ratio = ours.requests_per_second / medians(calls[name]).requests_per_second
            made.append(Bar(f"requests a second of one core against {name}", ratio, "x", bar, reach, least=True))
    if LITELLM in images:
        kept, passed = (medians(images[name]).web_cpu_ms or 0.0 for name in (ladder.GATEWAY, LITELLM))
        name = "CPU of an image of 2 MB from base64 to a URL, against LiteLLM passing it through"
        made.append(Bar(name, kept / passed, "x", 0.3, 0.15))
    return made


def main() -> None:
    """Install what is missing, measure, print the tables and keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Other gateways on the same load.")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round of one server (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, whose median counts (default: 3)")
    options = parser.parse_args()
    begin()
    try:
        calls = _run([], CONNECTIONS, options.rounds, options.seconds)
        images = _run(["--image-bytes", str(IMAGE_BYTES)], IMAGE_CONNECTIONS, options.rounds, options.seconds)
    except (StartError, OSError) as exc:
        sys.exit(str(exc))
    bars = _bars(calls, images)
    print(report.table(calls, f"{CONNECTIONS} connections") + "\n")
    print(report.table(images, "images of 2 MB") + "\n")
    print(*[bar.line() for bar in bars], sep="\n")
    kept = {"calls": report.with_rounds(calls), "images": report.with_rounds(images)}
    print(f"All figures: {report.save('peers', {**kept, 'bars': [bar.as_json() for bar in bars]})}")


if __name__ == "__main__":
    main()

"""``python -m bench.compare OLD NEW``: what changed between two saved results, as ratios.

OLD and NEW are JSON files, or the beginnings of commits whose results are in ``bench/results``. Only figures that
stand in both are compared. Ratios to the bare pass-through of the same run are what holds from one day, or machine, to
another.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.ladder import BARE
from bench.report import RESULTS

COMPARED = ("requests_per_second", "p50_ms", "p99_ms", "web_cpu_ms", "valkey_cpu_ms", "memory_mb")
HEADINGS = ("requests/s", "p50", "p99", "web CPU", "Valkey CPU", "memory", "CPU to bare")


def find(name: str, folder: Path = RESULTS) -> Path:
    """The file of that name, or the newest result of the ladder whose commit begins so. Raises FileNotFoundError."""
    if Path(name).is_file():
        return Path(name)
    found = sorted(folder.glob(f"ladder-{name}*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"There is no result {name}: give a file, or a commit with one in {folder}.")
    return found[-1]


def lines(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """New to old for each number of connections and each server, then what had to be reached, old -> new."""
    yield f"{old['commit']} ({old['at']}) -> {new['commit']} ({new['at']}): new / old"
    if old["machine"] != new["machine"]:
        yield "Measured on different machines: compare only the ratios to the bare pass-through."
    for level, targets in new["levels"].items():
        before = old["levels"].get(level, {})
        yield f"{level + ' connections':<18}" + "".join(f"{heading:>13}" for heading in HEADINGS)
        for name in [name for name in targets if name in before]:
            ratios = [_ratio(before[name][figure], targets[name][figure]) for figure in COMPARED]
            ratios.append(_ratio(_to_bare(before, name), _to_bare(targets, name)))
            yield f"{name:<18}" + "".join(f"{ratio:>13}" for ratio in ratios)
    values = {bar["name"].partition(" (")[0]: bar for bar in old["bars"]}
    for bar in new["bars"]:
        name = bar["name"].partition(" (")[0]
        if name in values:
            yield f"{name}: {values[name]['value']:.3g} -> {bar['value']:.3g}{bar['unit']}"


def _to_bare(targets: dict[str, Any], name: str) -> float | None:
    cost, bare = targets[name]["web_cpu_ms"], targets.get(BARE, {}).get("web_cpu_ms")
    return cost / bare if cost and bare else None


def _ratio(before: float | None, after: float | None) -> str:
    return f"{after / before:.2f}x" if before and after else "-"


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description="Compare two saved results.")
    parser.add_argument("old", help="a JSON file, or the beginning of a commit")
    parser.add_argument("new", help="the same of the other")
    options = parser.parse_args()
    try:
        results = [json.loads(find(name).read_text(encoding="utf-8")) for name in (options.old, options.new)]
    except (OSError, ValueError) as exc:
        sys.exit(str(exc))
    print(*lines(*results), sep="\n")


if __name__ == "__main__":
    main()

"""``python -m bench``: measure the gateway, a bare pass-through, nginx and the provider alone, and say what each costs.

One worker pinned to one core with the options of ``make run``; load, instant provider and stores on another. The
rounds take turns, so that a machine that grows slower or faster touches all alike.
"""

import argparse
import sys
from pathlib import Path

from bench import ladder, report
from bench.starting import begin
from config.supervisor.errors import StartError


def main() -> None:
    """Measure, print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what a request costs.")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round of one server (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, whose median counts (default: 3)")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=ladder.CONNECTIONS, help="the rungs (default: 1 16 64 256)"
    )
    parser.add_argument("--output", type=Path, help="the JSON file (default: one for the commit in bench/results)")
    options = parser.parse_args()
    begin()
    try:
        measured = ladder.run(options.connections, options.rounds, options.seconds)
    except (StartError, OSError) as exc:
        sys.exit(str(exc))
    bars = measured.bars()
    result = {
        "rounds": measured.rounds,
        "seconds": measured.seconds,
        "recorded": measured.recorded,
        "roundtrips_ms": measured.roundtrips_ms,
        "levels": {str(level): report.with_rounds(targets) for level, targets in measured.levels.items()},
        "bars": [bar.as_json() for bar in bars],
    }
    output = report.save("ladder", result, options.output)
    for level, targets in measured.levels.items():
        print(report.table(targets, f"{level} connection{'s' if level > 1 else ''}") + "\n")
    print(*[bar.line() for bar in bars], sep="\n")
    print(f"Every call was answered with 200, and the ledger has each of the gateway's {measured.recorded:,}.")
    print(f"Medians of {measured.rounds} rounds. {measured.without}".strip())
    print(f"All figures: {output}")


if __name__ == "__main__":
    main()

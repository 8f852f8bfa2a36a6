"""`python -m tests.chaos --seed 7 --minutes 2`: exit status 0 all kept, 1 a breach, 2 the run proves too little."""

import argparse
import json
import sys
import time
from pathlib import Path

import django

from tests.chaos import environment

django.setup()

from tests.chaos.run import run, save  # noqa: E402
from tests.chaos.schedule import Fault, make  # noqa: E402


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the faults and the load follow from it")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long faults are dealt (default %(default)s)")
    parser.add_argument("--schedule", type=Path, help="deal the faults of this file instead")
    parser.add_argument("--output", type=Path, help="a folder for the accounts, the figures and the schedule")
    return parser.parse_args()


def main() -> int:
    """Run, print, and leave the folder where a breach can be looked into."""
    arguments = _arguments()
    seconds = arguments.minutes * 60
    if arguments.schedule:
        schedule = [Fault(**line) for line in json.loads(arguments.schedule.read_text())]
    else:
        schedule = make(arguments.seed, seconds)
    _say(f"seed {arguments.seed}, {arguments.minutes:g} minutes, {len(schedule)} faults")
    environment.KEEP.append("not ended")
    accounts, result = run(arguments.seed, seconds, schedule, _say)
    save(arguments.output or environment.FOLDER, accounts, result, schedule)
    for line in result.lines():
        _say(line)
    environment.KEEP.clear()
    if result.status == 1:
        environment.KEEP.append("breach")
        _say(f"logs, accounts and schedule are in {environment.FOLDER}")
    return result.status


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

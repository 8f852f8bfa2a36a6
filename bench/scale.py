"""``python -m bench.scale NAME...``: what grows, and whether its cost stays.

held, limits, directory, images, drain, month, export, start; all of them without a name. ``--size 0.1`` takes a tenth
of every number, to try it out.
"""

import argparse
import sys
from collections.abc import Callable

from bench import books_scale, call_scale, report, start_scale
from bench.bars import Bar
from bench.starting import begin
from config.supervisor.errors import StartError

TESTS: dict[str, Callable[[float], list[Bar | str]]] = {
    "held": call_scale.held,
    "limits": call_scale.limits,
    "directory": call_scale.directory,
    "images": call_scale.images,
    "drain": books_scale.drain,
    "month": books_scale.month,
    "export": books_scale.export,
    "start": start_scale.start,
}


def main() -> None:
    """Run the tests, print a line for each figure, and keep them."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale", description="What grows, and whether its cost stays."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(TESTS)} (default: all)")
    parser.add_argument("--size", type=float, default=1.0, help="share of the full numbers (default: 1)")
    options = parser.parse_args()
    if unknown := set(options.names) - TESTS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(TESTS)}")
    begin()
    for name in options.names or TESTS:
        try:
            figures = TESTS[name](options.size)
        except (StartError, OSError) as exc:
            sys.exit(f"{name}: {exc}")
        for figure in figures:
            print(f"{name}: {figure.line() if isinstance(figure, Bar) else figure}", flush=True)
        kept = [figure.as_json() if isinstance(figure, Bar) else figure for figure in figures]
        report.save(f"scale-{name}", {"size": options.size, "figures": kept})
    print(f"Kept in {report.RESULTS}")


if __name__ == "__main__":
    main()

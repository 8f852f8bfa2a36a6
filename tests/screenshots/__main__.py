"""`python -m tests.screenshots [folder] [--only name …]`: pictures of the main pages, into docs/images."""

import argparse
import datetime as dt
import random
import sys
import time
from pathlib import Path

import django

from tests.processes import ROOT
from tests.screenshots import environment

django.setup()

from django.utils.timezone import now  # noqa: E402

from tests.browsing import Chromium  # noqa: E402
from tests.screenshots import deeds, houses, ledger, pages  # noqa: E402
from tests.screenshots.pictures import Album  # noqa: E402

SEED = 20
MONTHS = 2  # past ones, before this


def _fill() -> pages.Scene:
    """The demo stack's books as of weeks of work; the same for the same day."""
    random.seed(SEED)
    chance = random.Random(SEED)
    first = now().date().replace(day=1)
    for _ in range(MONTHS):
        first = (first - dt.timedelta(days=1)).replace(day=1)
    everybody = houses.make_houses()
    ledger.make_prices(first, everybody[0])
    ledger.fill(everybody, first, SEED)
    deeds.leave_exceptions(everybody, chance)
    deeds.close_months(everybody, but=2)
    deeds.administer(everybody, chance)
    deeds.plan_ahead()
    deeds.count_in_the_store()
    refused, token = deeds.be_refused(environment.STACK.demo["endpoint"], everybody[0])
    deeds.tell_of_quotas(everybody)
    deeds.make_exports()
    return pages.Scene(everybody, refused, token)


def main() -> int:
    """Fill, take, and tell how large each file is; 1 when a page complained."""
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="of the pictures")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    scene = _fill()
    _say(f"filled in {time.monotonic() - began:.0f} s")
    chromium = Chromium()
    try:
        album = Album(chromium, environment.STACK.url, arguments.folder)
        for picture, email in pages.pictures(scene):
            if not arguments.only or picture.name in arguments.only:
                size = album.take(picture, email)
                _say(f"{picture.name}.png {size / 1000:.0f} kB")
    finally:
        chromium.close()
    for complaint in album.complaints:
        _say(complaint)
    return 1 if album.complaints else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""A Celery worker whose pool process kills itself at the point whose name a file `CRASH_FOLDER`/worker-<point> bears.

Once: whoever takes the file. A line in the file `reached` tells. `celery -A tests.controls.crashing_worker worker`.
"""

import os
import signal
from pathlib import Path

import django

django.setup()

from config.celery import app  # noqa: E402
from usage import drain, expiry, statements  # noqa: E402

FOLDER = Path(os.environ["CRASH_FOLDER"])


def reach(point):
    try:
        (FOLDER / f"worker-{point}").rename(FOLDER / f"taken-{point}")  # only one process can
    except FileNotFoundError:
        return
    with (FOLDER / "reached").open("a") as file:
        file.write(f"{point} kill {os.getpid()} - -\n")
    os.kill(os.getpid(), signal.SIGKILL)


def around(module, name, before="", after="", when=bool):
    inner = getattr(module, name)

    def wrapped(*arguments, **keywords):
        if when(arguments[0]):  # an empty batch is no event
            reach(before)
        result = inner(*arguments, **keywords)
        if when(arguments[0]):
            reach(after)
        return result

    setattr(module, name, wrapped)


around(drain, "record", "before_commit", "after_commit")
around(drain, "_book", after="after_acknowledge")
around(statements, "add_to_rollups", "inside_transaction")
around(expiry, "expire", "before_expire", "after_expire")

__all__ = ["app"]

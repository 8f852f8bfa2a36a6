"""A drain that a marked event kills, as one does that makes the process crash or outgrow its memory.

Starts itself anew for as long as it dies, at most as often as the first argument says, and prints how often it died. A
second argument takes the place of `GIVE_UP_AFTER`.
"""

import os
import signal
import sys

import django

django.setup()

from django.db import connection  # noqa: E402

from config.redis import store  # noqa: E402
from usage import drain  # noqa: E402

MARK = "kills"
_record = drain.record


def record(events):
    if any(event.agent == MARK for event in events):
        os.kill(os.getpid(), signal.SIGKILL)
    _record(events)


def dies():
    connection.close()
    store().close()
    child = os.fork()
    if not child:
        while drain.drain(claim_after_ms=0):
            pass
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


if __name__ == "__main__":
    drain.record = record
    drain.GIVE_UP_AFTER = int(sys.argv[2]) if len(sys.argv) > 2 else drain.GIVE_UP_AFTER
    deaths = 0
    while deaths < int(sys.argv[1]) and dies():
        deaths += 1
    sys.stdout.write(str(deaths))

"""The gateway in a process that is held up for half a second between admitting a call and sending it."""

import time

from config.asgi import application
from gateway import lifecycle

_admit = lifecycle.admit


async def admit(*arguments, **keywords):
    decision = await _admit(*arguments, **keywords)
    held_from = time.monotonic()
    lifecycle.time = _Clock(held_from)
    return decision


class _Clock:
    """The time module as it is once the process goes on: `admitted_at` was taken before the hold."""

    def __init__(self, held_from):
        self.held_from, self.readings = held_from, 0

    def monotonic(self):
        self.readings += 1
        if self.readings == 1:
            return self.held_from
        return time.monotonic() + 0.5

    def __getattr__(self, name):
        return getattr(time, name)


lifecycle.admit = admit

__all__ = ["application"]

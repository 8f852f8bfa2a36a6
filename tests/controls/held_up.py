"""The gateway in a process that is held up for half a second between admitting a call and sending it."""

import time

from config.asgi import application
from gateway import views

_carry_out = views.carry_out


async def carry_out(runtime, call):
    time.sleep(0.5)
    return await _carry_out(runtime, call)


views.carry_out = carry_out

__all__ = ["application"]

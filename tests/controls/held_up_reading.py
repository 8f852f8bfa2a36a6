"""The gateway in a process that is held up for half a second between asking for admission and reading the answer."""

import asyncio
import time

from config.asgi import application
from gateway import lifecycle

_admit = lifecycle.admit


async def admit(*arguments):
    task = asyncio.ensure_future(_admit(*arguments))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    time.sleep(0.5)
    return await task


lifecycle.admit = admit

__all__ = ["application"]

"""The gateway as it must not be: limits are read in one step and taken in another."""

import asyncio
from dataclasses import replace

from config.asgi import application
from gateway import lifecycle
from tokens.admission.admission import Decision, standing

_admit = lifecycle.admit


async def admit(store, principal, claim, now, generation, backlog_limit):
    costs = {"requests": 1, "images": claim.images, "tokens": claim.tokens, "concurrent": 1}
    standings = await standing(store, principal, now)
    for left in standings:
        if costs[left.scoped.limit.metric] > left.remaining:
            return Decision("REFUSED", standings, left.scoped, 1)
    await asyncio.sleep(0.005)  # as other work between the two steps takes
    unlimited = replace(principal, limits=(), _plan=None)
    return await _admit(store, unlimited, claim, now, generation, backlog_limit)


lifecycle.admit = admit

__all__ = ["application"]

"""A gateway that logs what it asks its provider for, as one does while looking for a fault."""

import logging

from config.asgi import application
from gateway.upstream import Upstream

__all__ = ["application"]
generate = Upstream.generate


async def talkative(self, model, asked, *args, **kwargs):
    logging.getLogger("gateway.upstream").info("asking", extra={"prompt": asked.prompt})
    return await generate(self, model, asked, *args, **kwargs)


Upstream.generate = talkative

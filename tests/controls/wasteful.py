"""The counting gateway with everything on its path that doesn't belong there, once a request each."""

import asyncio

import msgspec
from django.db import connection

from config.asgi import application as gateway
from gateway import lifecycle
from gateway.upstream import Upstream
from tests.controls.counting import application

__all__ = ["application", "gateway"]
generate, keep_and_settle = Upstream.generate, lifecycle._keep_and_settle


def ask_database():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def wasteful(self, *arguments):
    answer = await generate(self, *arguments)
    msgspec.json.decode(answer.body)
    await asyncio.to_thread(ask_database)
    return answer


async def settle(runtime, call, delivered):
    await runtime.store.call("PING")
    return await keep_and_settle(runtime, call, delivered)


Upstream.generate = wasteful
lifecycle._keep_and_settle = settle

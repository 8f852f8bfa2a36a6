"""The gateway in a process that counts what a request may hardly do, and tells it under `/counts`.

Counted without a clock, over everything that the process does, its background loops left out: commands to the store,
work handed to threads, SQL statements, and passes of a JSON reader or writer over anything as long as an image.
"""

import concurrent.futures
import json
import threading
from collections import Counter

import msgspec
import redis
from django.db.backends.utils import CursorWrapper

from config.asgi import application as gateway
from gateway import judging, replies
from tokens.admission.connection import StoreConnection

LONG = 10_000  # bytes or characters: every drawn image is longer, nothing else is
counts = Counter(store=0, threads=0, sql=0, json=0)


def counted(kind, function):
    def call(*arguments, **named):
        counts[kind] += 1
        return function(*arguments, **named)

    return call


def watching(function):
    """`function` reads or writes JSON; it counts when either side of it is long."""

    def call(*arguments, **named):
        made = function(*arguments, **named)
        sides = [side for side in (*arguments, made) if isinstance(side, str | bytes | bytearray | memoryview)]
        counts["json"] += any(len(side) >= LONG for side in sides)
        return made

    return call


class Watching:
    """A coder of msgspec's; `reads_around` is the one that must see the whole answer, and step over the image."""

    def __init__(self, coder, reads_around=False):
        self.coder, self.reads_around = coder, reads_around
        if hasattr(coder, "encode"):
            self.encode = watching(coder.encode)

    def decode(self, content):
        if not self.reads_around:
            return watching(self.coder.decode)(content)
        answer = self.coder.decode(content)
        counts["json"] += any(type(image.b64_json) is not msgspec.Raw for image in answer.data)
        return answer


StoreConnection.call = counted("store", StoreConnection.call)  # `setup_call` is the background's
redis.Connection.send_command = counted("store", redis.Connection.send_command)
concurrent.futures.ThreadPoolExecutor.submit = counted("threads", concurrent.futures.ThreadPoolExecutor.submit)
CursorWrapper.execute = counted("sql", CursorWrapper.execute)
CursorWrapper.executemany = counted("sql", CursorWrapper.executemany)
for module, names in ((json, ("loads", "dumps")), (msgspec.json, ("decode", "encode"))):
    for name in names:
        setattr(module, name, watching(getattr(module, name)))
json.JSONDecoder.decode = watching(json.JSONDecoder.decode)
judging._decoder = Watching(judging._decoder, reads_around=True)
replies._encoder = Watching(replies._encoder)


async def application(scope, receive, send):
    if scope.get("path") != "/counts":
        await gateway(scope, receive, send)
        return
    told = json.dumps({**counts, "running": threading.active_count()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": told})

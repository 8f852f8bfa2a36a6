"""The gateway with points in the life of a call at which the call can be made to kill, stop or hold.

A request's header names one: `X-Crash: <point>:<action>[:<group>]`. `kill` and `stop` send SIGKILL or SIGSTOP to the
process itself; `hold` keeps this one call waiting until the file <group> exists in the folder `CRASH_FOLDER`. Whoever
reaches its point first adds a line `<point> <action> <pid> <request id> <group>` to the file `reached` there.
"""

import asyncio
import os
import signal
import time
from contextvars import ContextVar
from pathlib import Path

from config.asgi import application as product
from gateway import lifecycle, upstream
from gateway.images import ImageStore
from gateway.runtime import Runtime

FOLDER = Path(os.environ["CRASH_FOLDER"])
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Plan:
    """What one request asked for, and its request id once it is known."""

    def __init__(self, header):
        self.point, self.action, self.group = [*header.split(":"), ""][:3]
        self.request_id = "-"
        self.reached = False
        self.sent = asyncio.Event()

    def note(self):
        line = f"{self.point} {self.action} {os.getpid()} {self.request_id} {self.group or '-'}\n"
        file = os.open(FOLDER / "reached", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, line.encode())
        os.close(file)


_plan = ContextVar("plan", default=None)


async def reach(point):
    plan = _plan.get()
    if plan is None or plan.reached or plan.point != point:
        return
    plan.reached = True
    plan.note()
    if plan.action == "hold":
        while not (FOLDER / plan.group).exists():
            await asyncio.sleep(0.01)
    else:
        os.kill(os.getpid(), SIGNALS[plan.action])
        time.sleep(0.001)  # a signal of one's own is delivered with the next system call


def around(holder, name, before="", after=""):
    inner = getattr(holder, name)

    async def wrapped(*arguments, **keywords):
        await reach(before)
        result = await inner(*arguments, **keywords)
        await reach(after)
        return result

    setattr(holder, name, wrapped)


_admit = lifecycle.admit


async def admit(store, principal, claim, *rest):
    if _plan.get() is not None:
        _plan.get().request_id = claim.request_id
    await reach("before_admit")
    decision = await _admit(store, principal, claim, *rest)
    await reach("after_admit")
    return decision


class Body(upstream._Body):
    """Tells the call's plan when the transport takes it, from a thread of its own."""

    def __init__(self, content):
        super().__init__(content)
        if _plan.get() is not None:
            self.stream = _told(self.stream, _plan.get().sent, asyncio.get_running_loop())


def _told(stream, sent, loop):
    for chunk in stream:
        loop.call_soon_threadsafe(sent.set)
        yield chunk


_generate = upstream.Upstream.generate


async def generate(*arguments):
    await reach("before_dispatch")
    plan = _plan.get()
    answer = asyncio.ensure_future(_generate(*arguments))
    if plan is not None and plan.point == "at_provider":
        await plan.sent.wait()
        await asyncio.sleep(0.2)  # for the bytes to arrive there
        await reach("at_provider")
    result = await answer
    await reach("after_answer")
    return result


async def application(scope, receive, send):
    header = dict(scope.get("headers") or ()).get(b"x-crash")
    if header is None:
        await product(scope, receive, send)
        return
    _plan.set(Plan(header.decode()))

    async def breaking(message):
        if message["type"] == "http.response.start":
            await reach("before_reply")
            await send(message)
        elif message.get("body") and _plan.get().point == "half_reply":
            middle = len(message["body"]) // 2
            await send({**message, "body": message["body"][:middle], "more_body": True})
            await asyncio.sleep(0.05)  # for the half to be on its way
            await reach("half_reply")
            await send({**message, "body": message["body"][middle:]})
        else:
            await send(message)

    await product(scope, receive, breaking)


lifecycle.admit = admit
upstream._Body = Body
upstream.Upstream.generate = generate
around(ImageStore, "keep_all", after="after_keep")
around(Runtime, "settle", "before_settle", "after_settle")

__all__ = ["application"]

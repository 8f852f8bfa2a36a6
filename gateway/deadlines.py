"""A deadline for what a task awaits: `asyncio.timeout` without its coroutines and look-ups."""

import asyncio
from types import TracebackType


class Deadline:
    """``with Deadline(loop, seconds):`` raises TimeoutError when its body, in a task, takes longer.

    Like `asyncio.timeout` it cancels the task and turns just its own cancellation into the error; one that comes from
    elsewhere goes on as it is.
    """

    __slots__ = ("_cancelling", "_expired", "_loop", "_seconds", "_task", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop, self._seconds = loop, seconds

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a deadline needs a task that it can cancel")
        self._task, self._expired, self._cancelling = task, False, task.cancelling()
        self._timer = self._loop.call_later(self._seconds, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from exc

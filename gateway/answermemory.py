"""A budget for the providers' answers that a process holds, so that many large ones at once can't exhaust its memory.

An answer counts from its first byte, one that declares its length as a whole from its head, until its images are kept.
Beyond the budget reading waits, and the provider with it. One answer's worth of the budget is set apart and lent to one
answer at a time: whoever has it can read to the end whatever the others hold. Otherwise many half-read answers could
wait for one another until their deadlines.
"""

import asyncio
from collections import deque


class AnswerMemory:
    """`budget` bytes in all, of which one answer may take `most`; the budget is at least that."""

    def __init__(self, budget: int, most: int) -> None:
        self.shared = budget - most
        self.taken = 0  # of the shared part
        self.finisher: Held | None = None  # who has the part that is set apart
        self.waiting: deque[asyncio.Future[None]] = deque()


class Held:
    """What one answer holds. `release` it, however the call ends."""

    __slots__ = ("_memory", "_size")

    def __init__(self, memory: AnswerMemory) -> None:
        self._memory, self._size = memory, 0

    def take(self, size: int) -> bool:
        """Take `size` bytes more if there is room; else False, and one has to `wait`."""
        memory = self._memory
        if memory.finisher is self:
            return True
        if memory.taken + size > memory.shared:
            return False
        memory.taken += size
        self._size += size
        return True

    async def wait(self, size: int) -> None:
        """Take `size` bytes more as soon as there is room, first come, first served."""
        memory = self._memory
        while not self.take(size):
            if memory.finisher is None:
                memory.finisher = self
                return
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            memory.waiting.append(future)
            await future

    def release(self) -> None:
        """Give everything back; doing it again changes nothing."""
        memory = self._memory
        memory.taken -= self._size
        self._size = 0
        if memory.finisher is self:
            memory.finisher = None
        waiting, memory.waiting = memory.waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_result(None)

"""The deadline of what a task awaits, beside the one of the standard library whose behaviour it has."""

import asyncio
from typing import Any

import pytest

from gateway.deadlines import Deadline

SHORT, LONG = 0.02, 30.0


class Standard:
    """`asyncio.timeout`, spelt as ours."""

    def __init__(self, _: Any, seconds: float) -> None:
        self.timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self.timeout.__aenter__()

    async def __aexit__(self, *reason: Any) -> None:
        await self.timeout.__aexit__(*reason)


class Ours:
    """Ours, entered as the standard one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.deadline = Deadline(loop, seconds)

    async def __aenter__(self) -> None:
        self.deadline.__enter__()

    async def __aexit__(self, *reason: Any) -> None:
        self.deadline.__exit__(*reason)


KINDS = pytest.mark.parametrize("kind", [Standard, Ours])


@KINDS
async def test_what_takes_too_long_ends_in_a_time_out_and_leaves_nothing_behind(kind: Any) -> None:
    with pytest.raises(TimeoutError):
        async with kind(asyncio.get_running_loop(), SHORT):
            await asyncio.sleep(LONG)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(2 * SHORT)  # would raise if a cancellation were left


@KINDS
async def test_what_is_done_in_time_is_left_alone(kind: Any) -> None:
    async with kind(asyncio.get_running_loop(), SHORT):
        await asyncio.sleep(0)
    await asyncio.sleep(2 * SHORT)


@KINDS
async def test_its_own_errors_go_on(kind: Any) -> None:
    with pytest.raises(KeyError):
        async with kind(asyncio.get_running_loop(), LONG):
            raise KeyError("ours")


@KINDS
async def test_a_cancellation_from_elsewhere_stays_one(kind: Any) -> None:
    async def wait() -> None:
        async with kind(asyncio.get_running_loop(), LONG):
            await asyncio.sleep(LONG)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@KINDS
async def test_a_cancellation_from_elsewhere_wins_over_a_time_out_at_once_with_it(kind: Any) -> None:
    async def wait() -> None:
        async with kind(asyncio.get_running_loop(), 0):
            await asyncio.sleep(LONG)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises((asyncio.CancelledError, TimeoutError)) as raised:
        await task
    assert raised.type is asyncio.CancelledError or task.cancelling()


@KINDS
async def test_the_inner_of_two_deadlines_is_the_inner_ones(kind: Any) -> None:
    async with kind(asyncio.get_running_loop(), LONG):
        with pytest.raises(TimeoutError):
            async with kind(asyncio.get_running_loop(), SHORT):
                await asyncio.sleep(LONG)
        await asyncio.sleep(0)


def test_without_a_task_there_is_nothing_to_cancel() -> None:
    loop = asyncio.new_event_loop()
    with pytest.raises(RuntimeError), Deadline(loop, LONG):
        pass
    loop.close()

"""Tests that need the machine for themselves, where several processes run tests: those marked ``alone``.

Every test holds a lock while it runs, shared; one that is marked holds it alone. Whoever waits for it holds the
turnstile meanwhile, so that nobody overtakes. Both are locks on files of this folder that nobody writes.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TURNSTILE, MACHINE = Path(__file__).with_name("__init__.py"), Path(__file__)


@contextlib.contextmanager
def _held(path: Path, operation: int) -> Iterator[None]:
    with path.open("rb") as file:
        fcntl.flock(file, operation)
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before a test's time is taken
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hold the lock around a test and its fixtures; nothing to do where one process runs them all."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with contextlib.ExitStack() as held:
        with _held(TURNSTILE, fcntl.LOCK_EX):
            held.enter_context(_held(MACHINE, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH))
        return (yield)

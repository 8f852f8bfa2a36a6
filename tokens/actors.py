"""Who is acting, from where and by which way: known to whatever notes a change, without being handed on by each call.

The admin's middleware says it for a request, `manage.py` for a command. Where nobody has said it, as in a Celery task,
the gateway itself is acting.
"""

import datetime as dt
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import msgspec
from django.db import models


class Way(models.TextChoices):
    """By which way somebody acts."""

    ADMIN = "admin", "Admin"
    COMMAND = "command", "Command line"
    API = "api", "API"
    SYSTEM = "system", "System task"


class Actor(msgspec.Struct, frozen=True):
    """Whoever acts. `user` is the id of a person who has signed in, `address` and `agent` are their client's.

    `platform`: it is one of the platform's own people, or what they run; who that is, and from where, is no business of
    a tenant's people.
    """

    name: str
    way: str
    user: int | None = None
    address: str = ""
    agent: str = ""
    platform: bool = False


class Circumstances(NamedTuple):
    """What goes with a change: why it is made, and when it was asked for (None: now)."""

    reason: str = ""
    at: dt.datetime | None = None


SYSTEM = Actor("system", Way.SYSTEM.value)
USUAL = Circumstances()

_actor: ContextVar[Callable[[], Actor] | None] = ContextVar("actor", default=None)
_circumstances: ContextVar[Circumstances] = ContextVar("circumstances", default=USUAL)


def current() -> Actor:
    """Who is acting now."""
    find = _actor.get()
    return SYSTEM if find is None else find()


def circumstances() -> Circumstances:
    """Why, and when it was asked for."""
    return _circumstances.get()


@contextmanager
def found_by(find: Callable[[], Actor]) -> Iterator[None]:
    """Within this, whoever `find` tells is acting. It is asked when something is noted, and not before."""
    before = _actor.set(find)
    try:
        yield
    finally:
        _actor.reset(before)


@contextmanager
def acting_as(actor: Actor, reason: str = "", at: dt.datetime | None = None) -> Iterator[None]:
    """Within this, `actor` is acting, for a reason, as asked for at that moment (None: now)."""
    before = _circumstances.set(Circumstances(reason, at))
    try:
        with found_by(lambda: actor):
            yield
    finally:
        _circumstances.reset(before)


def operator() -> str:
    """Who runs a command, for what it changes: the command line and, in brackets, the operating system's user."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:  # as in a container that runs under any number
        name = f"uid {number}"
    return f"command line ({name})"


def of_command() -> Actor:
    """Whoever runs this process from the command line."""
    return Actor(operator(), Way.COMMAND.value, platform=True)

"""The installation: its number of shards, and the switch that stops all calls at once."""

import datetime as dt

import msgspec
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils.timezone import now
from redis.client import Pipeline

from config.redis import store
from tokens import actors
from tokens.actors import Actor
from tokens.admission import keys
from tokens.errors import DATABASE_DOWN
from tokens.models import Installation
from tokens.scripts import answered, script

# In the first shard's control hash: whether all calls are stopped (JSON of Switch), until the database has it.
SWITCH = "installation"


class Switch(msgspec.Struct, frozen=True):
    """Whether all calls are stopped, since when (epoch seconds), and by whom."""

    stopped: bool
    at: float
    actor: Actor


def ensure_installation() -> Installation:
    """The installation's row, made with the setting SHARDS at the first start.

    Raises ImproperlyConfigured when SHARDS has another value than it was made with: every tenant's counters would be
    looked for where they aren't.
    """
    installation, _ = Installation.objects.get_or_create(pk=1, defaults={"shards": settings.SHARDS})
    if installation.shards != settings.SHARDS:
        raise ImproperlyConfigured(
            f"SHARDS is {settings.SHARDS} but this installation was made with {installation.shards}. "
            f"Set SHARDS={installation.shards}; it can't be changed later."
        )
    return installation


def stop_all() -> bool:
    """Admit nobody from now on. True when the database knows, too; False when it will once it is back.

    Raises StoreUnavailable, and then nothing has changed.
    """
    return _switch(stopped=True)


def start_all() -> bool:
    """Admit calls again. As stop_all."""
    return _switch(stopped=False)


def _switch(*, stopped: bool) -> bool:
    order = msgspec.json.encode(Switch(stopped, now().timestamp(), actors.current()))
    with answered():
        together = store().pipeline(transaction=True)
        for shard in range(settings.SHARDS):
            if stopped:
                together.hset(keys.meta(shard), "stopped", "1")
            else:
                together.hdel(keys.meta(shard), "stopped")
        together.hset(keys.control(0), SWITCH, order)
        together.execute()
    try:
        apply_switch()
    except DATABASE_DOWN:
        return False
    return True


def apply_switch() -> bool:
    """Tell the database what the switch was set to last, if it has yet to learn of it; whether it had.

    Raises StoreUnavailable, or OperationalError when the database is down.
    """
    with transaction.atomic():
        # Under the row's lock, so that of two that run at once the later one has the later order.
        installation = Installation.objects.select_for_update().filter(pk=1).first()
        with answered():
            raw = store().hget(keys.control(0), SWITCH)
        if installation is None or not isinstance(raw, bytes):
            return False
        switch = msgspec.json.decode(raw, type=Switch)
        if switch.stopped != (installation.stopped_at is not None):
            at = dt.datetime.fromtimestamp(switch.at, dt.UTC)
            installation.stopped_at = at if switch.stopped else None
            with actors.acting_as(switch.actor, at=at):
                installation.save(update_fields=["stopped_at"])
    with answered():
        script("forget")([keys.control(0)], [SWITCH, raw], client=store())
    return True


def restore_switch() -> None:
    """Stop all calls in a store that was made anew, if the database says that they are stopped.

    Raises StoreUnavailable, or OperationalError when the database is down.
    """
    with transaction.atomic():
        installation = Installation.objects.select_for_update().filter(pk=1).first()
        stopped = installation is not None and installation.stopped_at is not None
        with answered():
            # An order that the database has yet to learn of is newer; WATCH notices one that arrives meanwhile.
            store().transaction(lambda pipeline: _stop_unless_ordered(pipeline, stopped), keys.control(0))


def _stop_unless_ordered(pipeline: Pipeline, stopped: bool) -> None:
    ordered = pipeline.hexists(keys.control(0), SWITCH)
    pipeline.multi()
    if stopped and not ordered:
        for shard in range(settings.SHARDS):
            pipeline.hset(keys.meta(shard), "stopped", "1")

"""The Celery tasks of the books. Each may run twice or at the same time as itself; a lost one costs a tick."""

import datetime as dt
import logging

import redis
from django.db import OperationalError

from config.celery import app
from tokens.admission.connection import StoreUnavailable
from usage import drain, expiry, guardian, partitions

logger = logging.getLogger(__name__)


@app.task(name="usage.drain")
def drain_streams() -> None:
    """Book the usage events that wait in the streams. With a server out of reach they wait for the next tick."""
    try:
        drain.drain()
    except (OperationalError, redis.ConnectionError, redis.TimeoutError) as exc:
        logger.warning("Usage events wait: a server is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.expire")
def expire_overdue() -> None:
    """End the calls whose lease is over as unresolved."""
    try:
        expiry.expire_overdue()
    except redis.RedisError as exc:
        logger.warning("Overdue calls wait: the store is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.guard")
def guard() -> None:
    """Confirm the admission store, or fence and rebuild it."""
    try:
        guardian.confirm()
    except (OperationalError, redis.RedisError, StoreUnavailable) as exc:
        logger.warning("The store can't be confirmed: a server is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.create_partitions")
def create_partitions() -> None:
    """Create the ledger's partitions for this month and the next three."""
    for name in partitions.create_partitions(dt.datetime.now(dt.UTC).date()):
        logger.info("Created the partition %s", name)

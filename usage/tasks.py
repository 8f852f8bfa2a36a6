"""The Celery tasks of the books. Each may run twice or at the same time as itself; a lost one costs a tick."""

import datetime as dt
import logging

import redis
from django.conf import settings
from django.db import OperationalError

from config.celery import app
from config.workerhealth import part
from tokens.admission.connection import StoreUnavailable
from usage import (
    alarmchecks,
    alarms,
    drain,
    expiry,
    exportjobs,
    gaps,
    guardian,
    keeping,
    partitions,
    reconciliation,
    reportmails,
    unsettled,
)
from usage.alerting import delivering, quotas

logger = logging.getLogger(__name__)


@part("ledger")
def why_late() -> str:
    """What readiness says of the streams: "" while every event is in the ledger within ``LAG_LIMIT_SECONDS``."""
    seconds = drain.oldest_seconds()
    return f"the oldest usage event has waited for {seconds:.0f} s" if seconds > settings.LAG_LIMIT_SECONDS else ""


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


@app.task(name="usage.replay_unsettled")
def replay_unsettled() -> None:
    """Tell the store of calls that were booked without it. With a server out of reach they wait for the next tick."""
    try:
        unsettled.replay()
    except (OperationalError, redis.ConnectionError, redis.TimeoutError) as exc:
        logger.warning("Booked calls wait for the store: a server is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.guard")
def guard() -> None:
    """Confirm the admission store, or fence and rebuild it."""
    try:
        guardian.confirm()
    except (OperationalError, redis.RedisError, StoreUnavailable) as exc:
        logger.warning("The store can't be confirmed: a server is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.check_sequences")
def check_sequences() -> None:
    """Look for usage events that were lost on their way to the ledger."""
    try:
        gaps.check_sequences()
    except (OperationalError, redis.RedisError) as exc:
        logger.warning("The sequences can't be checked: a server is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.check_alarms")
def check_alarms() -> None:
    """Open and close alarms, and mail those that nobody has been told of."""
    try:
        try:
            alarmchecks.check()
        finally:
            alarms.send_mails()
    except OperationalError as exc:
        logger.error("Alarms can't be kept or mailed: PostgreSQL is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.compare_counters")
def compare_counters() -> None:
    """Compare the store's counters with the ledger."""
    try:
        reconciliation.check_counters()
    except (OperationalError, redis.RedisError) as exc:
        logger.warning("The counters can't be compared: a server is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.create_partitions")
def create_partitions() -> None:
    """Create the ledger's partitions for this month and the next three."""
    for name in partitions.create_partitions(dt.datetime.now(dt.UTC).date()):
        logger.info("Created the partition %s", name)


@app.task(name="usage.check_quotas")
def check_quotas() -> None:
    """Find the quotas that have reached a threshold, for whoever wants to be told."""
    try:
        quotas.check()
        quotas.forget_old()
    except (OperationalError, redis.RedisError) as exc:
        logger.warning("Quotas can't be checked: a server is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.send_alerts")
def send_alerts() -> None:
    """Send the quota alerts that are due."""
    try:
        delivering.send_due()
    except OperationalError as exc:
        logger.warning("Quota alerts wait: PostgreSQL is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.make_exports")
def make_exports() -> None:
    """Make the large export that has waited the longest; with none waiting, the files of a large statement."""
    try:
        if not exportjobs.run_one():
            with exportjobs.alone() as mine:
                if mine:
                    keeping.keep_one()
    except OperationalError as exc:
        logger.warning("Exports wait: PostgreSQL is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.send_reports")
def send_reports() -> None:
    """Mail the saved reports that are due; while an export is being made they wait, so that one worker stays free."""
    try:
        reportmails.note_due()
        with exportjobs.alone() as mine:
            while mine and reportmails.send_one():
                pass
    except OperationalError as exc:
        logger.warning("Saved reports wait: PostgreSQL is out of reach (%s)", type(exc).__name__)


@app.task(name="usage.delete_old_exports")
def delete_old_exports() -> None:
    """Delete files of exports after a week, and what is known of old exports and sendings."""
    exportjobs.delete_old()
    reportmails.delete_old()

"""The background tasks that keep the admission store and PostgreSQL at one."""

import logging

from config.celery import app
from tokens import comparison, directory, installation, plans, stopping
from tokens.admission.connection import StoreUnavailable
from tokens.errors import DATABASE_DOWN

logger = logging.getLogger(__name__)


@app.task(name="tokens.publish")
def publish() -> None:
    """Publish the changes that the store has yet to learn of; save the orders that the database has yet to learn of.

    Tenants whose plan has changed follow it here, so many at a time that what waits next time doesn't wait long.
    """
    try:
        installation.apply_switch()
        stopping.apply_orders()
        directory.publish_outbox()
        plans.follow_all(plans.IN_BACKGROUND)
    except (StoreUnavailable, *DATABASE_DOWN) as exc:
        logger.warning("Changes wait to be published (%s).", type(exc).__name__)


@app.task(name="tokens.compare")
def compare() -> None:
    """Compare the directory with the database and repair what differs, which nothing but an accident should make."""
    try:
        stopping.apply_orders()
        found = comparison.compare()
        if found:
            logger.warning("The token directory differed from the database: repairing.", extra=found.counts())
            comparison.repair(found)
    except (StoreUnavailable, *DATABASE_DOWN) as exc:
        logger.warning("The token directory can't be compared now (%s).", type(exc).__name__)

"""The gateway's periodic tasks; each may run twice at once without harm."""

import logging

from django.conf import settings

from config.celery import app
from gateway import catalog
from gateway.images import image_store

logger = logging.getLogger(__name__)


@app.task(name="gateway.publish_catalog")
def publish_catalog() -> None:
    """Repair the published catalog: after a store that was away, or a change that sent no signal."""
    if catalog.publish():
        logger.info("The catalog was out of date and is published.")


@app.task(name="gateway.delete_old_images")
def delete_old_images() -> None:
    """Delete the images that are older than ``IMAGE_RETENTION_DAYS``."""
    deleted = image_store().delete_older_than(settings.IMAGE_RETENTION_DAYS)
    if deleted:
        logger.info("Deleted %d images after %d days.", deleted, settings.IMAGE_RETENTION_DAYS)

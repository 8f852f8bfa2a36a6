"""Publishes the catalog when something that it is made of has been changed and committed."""

import logging
from typing import Any

import redis
from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

from gateway import catalog
from gateway.models import Model, ModelSize, Provider, ProviderKey
from tokens.models import Tenant

logger = logging.getLogger(__name__)


@receiver([post_save, post_delete], sender=Provider)
@receiver([post_save, post_delete], sender=ProviderKey)
@receiver([post_save, post_delete], sender=Model)
@receiver([post_save, post_delete], sender=ModelSize)
@receiver([post_save, post_delete], sender=Tenant)
def publish_on_commit(using: str, **_kwargs: Any) -> None:
    """Publish once the change is committed; it stands even if that fails, and a task publishes it later.

    Once for all the rows of a transaction. Django takes out what a savepoint that is rolled back has added, so what
    is found here will be run.
    """
    if not any(function is _publish for _, function, _ in transaction.get_connection(using).run_on_commit):
        transaction.on_commit(_publish, using=using, robust=True)


def _publish() -> None:
    try:
        catalog.publish()
    except redis.RedisError as exc:
        logger.warning("The catalog isn't published yet, a task will do it: %s.", type(exc).__name__)

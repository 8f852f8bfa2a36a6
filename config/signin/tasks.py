"""The mail to who forgot their password, sent by a worker: a page that sent it itself would take longer for people who
exist than for others, and so tell who does.
"""

from typing import Any

from django.db import OperationalError

from config.celery import app
from config.signin import passwords

EXPIRES = 600  # seconds; who has waited longer has asked again
IMPATIENT = {"max_retries": 1, "interval_start": 0}  # somebody waits for the page


def have_link_mailed(address: str, asked_from: str) -> None:
    """Hand it to a worker. Raises kombu's OperationalError when the broker is away."""
    with app.connection_for_write(transport_options=IMPATIENT) as broker:
        told: Any = {"connection": broker}  # which Celery's stubs don't know of
        mail_link.apply_async((address, asked_from), expires=EXPIRES, retry=False, **told)


@app.task(name="signin.mail_link")
def mail_link(address: str, asked_from: str) -> None:
    """Mail a link to choose a password by to that address, if somebody signs in with it."""
    try:
        passwords.help_who_forgot(address, asked_from)
    except OperationalError as exc:
        passwords.logger.warning("a link for a new password was not mailed", extra={"reason": type(exc).__name__})

"""Deliveries of alerts: taken when they are due, tried again with longer and longer pauses for about a day.

A delivery is claimed in a short transaction, sent without one, and what came of it is noted. A worker that dies in
between leaves it to be taken again, with the same message id: so each is told at least once, and hardly ever twice.
"""

import datetime as dt
import logging
import smtplib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from django.conf import settings
from django.core.mail import send_mail
from django.db import transaction
from django.db.models import F
from django.utils.timezone import now

from config.encryption import WrongKey, decrypt
from tokens import audit
from tokens.audit import Verb
from usage.alerting import messages, sending, signing
from usage.alerting.addresses import Forbidden
from usage.alertrows import ANSWER_CHARACTERS, Channel, DeliveryStatus
from usage.models import AlertDelivery, Webhook

# Seconds after each failed attempt: eight attempts within 23 hours and 36 minutes.
PAUSES = (60, 300, 1_800, 7_200, 18_000, 28_800, 28_800)
AT_ONCE = 8
CLAIMED_FOR = dt.timedelta(seconds=120)  # longer than any attempt takes
BUSY_SECONDS = 30  # then the next tick goes on, well within the task's time limit
GONE = 410  # "should not be called any more", says Standard Webhooks

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What came of one attempt. `final`: it would fail again, whatever the time."""

    sent: bool
    error: str = ""
    status: int | None = None
    answer: str = ""
    final: bool = False


def send_due() -> int:
    """Send what is due; returns the number of attempts. Each attempt is on its own: one that hangs holds up seven."""
    ends, attempts = time.monotonic() + BUSY_SECONDS, 0
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="alerts") as threads:
        while time.monotonic() < ends:
            claimed = _claim(now())
            if not claimed:
                break
            # What needs the database is read here; the threads only talk to mail servers and webhooks.
            running = [(delivery, threads.submit(_prepare(delivery))) for delivery in claimed]
            for delivery, outcome in running:
                _note(delivery, outcome.result())
            attempts += len(claimed)
    return attempts


def _claim(at: dt.datetime) -> list[AlertDelivery]:
    due = AlertDelivery.objects.filter(status=DeliveryStatus.WAITING, next_attempt_at__lte=at)
    due = due.select_related("tenant", "alert", "webhook").order_by("next_attempt_at", "id")
    with transaction.atomic():
        claimed = list(due.select_for_update(skip_locked=True, of=("self",))[:AT_ONCE])
        AlertDelivery.objects.filter(pk__in=[delivery.pk for delivery in claimed]).update(
            attempts=F("attempts") + 1, next_attempt_at=at + CLAIMED_FOR
        )
    for delivery in claimed:
        delivery.attempts += 1
    return claimed


def _prepare(delivery: AlertDelivery) -> Callable[[], Outcome]:
    if delivery.channel == Channel.EMAIL:
        return partial(_mail, messages.subject(delivery), messages.text(delivery), delivery.target)
    hook = delivery.webhook
    if hook is None or not hook.active:
        return partial(Outcome, False, "The webhook was removed or switched off.", final=True)
    try:
        secret = decrypt(bytes(hook.encrypted))
    except WrongKey:
        return partial(Outcome, False, "Its secret can't be opened with the gateway's ENCRYPTION_KEYS.")
    return partial(_call, hook.url, secret, f"msg_{delivery.message_id.hex}", messages.payload(delivery))


def _mail(subject: str, text: str, address: str) -> Outcome:
    if not settings.EMAIL_URL:
        return Outcome(False, "The gateway has no mail server: its operator sets EMAIL_URL.")
    try:
        send_mail(subject, text, settings.DEFAULT_FROM_EMAIL, [address])
    except (OSError, smtplib.SMTPException) as exc:  # their text may repeat what the server said
        return Outcome(False, f"The mail server did not take it ({type(exc).__name__}).")
    except Exception as exc:  # as below
        logger.exception("a mail's delivery failed")
        return Outcome(False, f"The gateway could not send it ({type(exc).__name__}).")
    return Outcome(True)


def _call(url: str, secret: str, message_id: str, body: bytes) -> Outcome:
    try:
        answer = sending.post(url, body, signing.headers(secret, message_id, int(time.time()), body))
    except Forbidden as exc:
        return Outcome(False, str(exc))
    except sending.NoAnswer as exc:
        return Outcome(False, str(exc))
    except Exception as exc:  # otherwise one surprise would leave the other deliveries unnoted
        logger.exception("a webhook's delivery failed")
        return Outcome(False, f"The gateway could not send it ({type(exc).__name__}).")
    sent = 200 <= answer.status < 300
    error = "" if sent else _refusal(answer.status)
    return Outcome(sent, error, answer.status, _storable(answer.text), final=answer.status == GONE)


def _refusal(status: int) -> str:
    if status == GONE:
        return "It answered 410: it wants no more messages, and was switched off."
    if 300 <= status < 400:
        return f"It answered {status}, a redirect, which is not followed: enter the address that it leads to."
    return f"It answered {status}; only 200 to 299 count as delivered."


def _storable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)[:ANSWER_CHARACTERS].strip()


def _note(delivery: AlertDelivery, outcome: Outcome) -> None:
    """Keep what came of an attempt, unless somebody has claimed it again meanwhile."""
    at = now()
    changes: dict[str, object] = {
        "error": outcome.error[:ANSWER_CHARACTERS],
        "last_status": outcome.status,
        "answer": outcome.answer,
    }
    if outcome.sent:
        changes |= {"status": DeliveryStatus.SENT, "finished_at": at}
    elif outcome.final or delivery.attempts > len(PAUSES):
        changes |= {"status": DeliveryStatus.FAILED, "finished_at": at}
    else:
        changes |= {"next_attempt_at": at + dt.timedelta(seconds=PAUSES[delivery.attempts - 1])}
    AlertDelivery.objects.filter(pk=delivery.pk, attempts=delivery.attempts).update(**changes)
    if outcome.status == GONE and delivery.webhook is not None:
        _switch_off(delivery.webhook)
    if not outcome.sent:
        told = {"delivery": delivery.pk, "attempts": delivery.attempts, "reason": outcome.error}
        logger.warning("A quota alert was not delivered", extra=told)


def _switch_off(hook: Webhook) -> None:
    with transaction.atomic():
        current = Webhook.objects.select_for_update().filter(pk=hook.pk, active=True).first()
        if current is not None:
            current.active = False
            current.save(update_fields=["active"])


def try_again(delivery: AlertDelivery) -> bool:
    """Let a delivery that was given up be tried once more, at once and then as from the beginning; False if it goes on.

    Call it within the transaction of the request.
    """
    again = {"status": DeliveryStatus.WAITING, "attempts": 0, "next_attempt_at": now(), "finished_at": None}
    changed = AlertDelivery.objects.filter(pk=delivery.pk, status=DeliveryStatus.FAILED).update(**again)
    if changed:
        audit.note(Verb.CHANGED, delivery, changes=[("status", "Given up", "Waiting")])
    return bool(changed)

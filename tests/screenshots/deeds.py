"""What people have done, and what waits for them: closed months, decisions, exceptions, alerts, calls just now."""

import datetime as dt
import random
import uuid
from typing import Any

import httpx
from django.utils.timezone import now

from tests.processes import wait_until
from tests.screenshots.houses import ADMINISTRATOR, FINANCE, House, acting
from tests.screenshots.ledger import call
from tokens import issuing, stopping
from tokens.models import ProxyToken, Secret, Tenant, User
from usage import alarmchecks, alarms, closing, exportjobs, reconciliation, schedules
from usage.alarms import AlarmKind
from usage.alerting import quotas
from usage.alertrows import DeliveryStatus
from usage.ledger import record
from usage.models import (
    AlertDelivery,
    AlertSetting,
    DailyUsage,
    ExportJob,
    Price,
    QuarantinedEvent,
    SavedReport,
    Webhook,
)
from usage.months import State, look
from usage.questions import Question
from usage.reportrows import JobStatus, Schedule, Sharing

PROMPT = "a lighthouse at dusk, oil on canvas"


def leave_exceptions(houses: list[House], chance: random.Random) -> None:
    """What finance must look at: usage that nobody reported, or nobody priced, and outcomes that nobody knows."""
    odd: list[dict[str, Any]] = [
        {"provenance": "missing", "reported": None},
        {"provenance": "estimated", "reported": 41_000_000},
        {"model": "gem-sketch"},
        {"model": "gem-sketch"},
    ]
    earlier = dt.datetime.combine(_last_month() + dt.timedelta(days=21), dt.time(14, 5), dt.UTC)
    some = [*houses[:4], *houses[-2:]]
    for place, (house, back) in enumerate(zip(some, (0.1, 0.4, 1.2, 2.6, 5.1, 7.3), strict=True)):
        at = _local(house, now() - dt.timedelta(days=back))
        shapes = [call(house, _local(house, earlier), chance, "unresolved", reason="lease_ended")]
        shapes += [call(house, at, chance, "unresolved", reason="lease_ended")]
        record([*shapes, *(call(house, at, chance, **shape) for shape in (odd[place % 4], odd[(place + 3) % 4]))])
    fields = houses[3].fields(day=f"{now():%Y-%m-%d}", charged=4_146)
    raw = {name.decode(): value.decode() for name, value in fields.items()}
    words = "new row violates check constraint of partition usage_record_2026_11"
    QuarantinedEvent.objects.create(raw=raw, digest=uuid.uuid4().hex * 2, error="CheckViolation", message=words)


def _local(house: House, at: dt.datetime) -> dt.datetime:
    return at.astimezone(house.tenant.zone(at))


def close_months(houses: list[House], but: int) -> None:
    """Close the past months of every tenant; of the last few, that is left for the pictures to do."""
    for place, house in enumerate(houses):
        with acting(FINANCE):
            tenant = Tenant.objects.get(pk=house.tenant.pk)
            while (standing := look([tenant])[0]).state is State.READY:
                if place >= len(houses) - but and standing.month == _last_month():
                    break
                closing.close(standing, User.objects.get(email=FINANCE))


def _last_month() -> dt.date:
    return (now().date().replace(day=1) - dt.timedelta(days=1)).replace(day=1)


def administer(houses: list[House], chance: random.Random) -> None:
    """What the audit trail tells of: limits, a rotation, a revocation, a price to come, and a report by mail."""
    aurora, bluebird, *_, harbor, _ = houses
    with acting(ADMINISTRATOR):
        _limit_nearly(aurora.tenant, 1.06)
        _limit_nearly(houses[4].tenant, 1.22)
        old = bluebird.tokens[1].secrets.all()[0]
        issuing.rotate(ProxyToken.objects.get(pk=bluebird.tokens[1].pk), dt.timedelta(days=7))
        stopping.revoke(harbor.tokens[1].pk, ADMINISTRATOR, "The old shop was switched off")
    new = Secret.objects.filter(token=old.token_id).latest("id")
    for secret, agent, calls in ((old, "legacy-cron/2.1", 3), (old, "okhttp/4.9.3", 1), (new, "okhttp/4.12.0", 9)):
        shape: dict[str, Any] = {"token": old.token_id, "secret": secret.pk, "agent": agent}
        record([call(bluebird, _local(bluebird, now()), chance, **shape) for _ in range(calls)])
    with acting(aurora.member.user.email):
        issuing.issue_token(aurora.member, "spring-campaign", expires_at=now() + dt.timedelta(days=90))
        issuing.set_limits(aurora.member, ["images:700/day"])


def _limit_nearly(tenant: Tenant, times: float) -> None:
    """A quota of images a month, so many times what was used of it."""
    month = now().date().replace(day=1)
    used = sum(DailyUsage.objects.filter(tenant=tenant, booked_day__gte=month).values_list("images", flat=True))
    issuing.set_limits(tenant, [f"images:{max(10, int(used * times) // 10 * 10)}/month"])


def plan_ahead() -> None:
    """What finance has prepared: a price to come, and a report by mail."""
    with acting(FINANCE):
        coming = (now().date().replace(day=1) + dt.timedelta(days=32)).replace(day=1)
        price = Price(model="gem-1", per_image="0.042", currency="USD", valid_from=coming)
        price.provider_per_image, price.provider_per_million_input, price.provider_per_million_output = "0.025", 0, 0
        price.save()
        report = SavedReport(name="What each tenant used", owner=User.objects.get(email=FINANCE))
        report.question = Question(period="last-month", by=("tenant", "model")).address
        report.sharing, report.schedule, report.recipients = Sharing.FINANCE, Schedule.MONTHLY, [FINANCE]
        report.next_due_at = schedules.next_due(report, now())
        report.save()


def count_in_the_store() -> None:
    """Let the store's counters say what is in the books, as they would if the calls had come over HTTP."""
    for compared in reconciliation.compare_counters():
        reconciliation.repair(compared)


def tell_of_quotas(houses: list[House]) -> None:
    """Who wants to know learns what is nearly used up; and somebody must look after events that never came."""
    for house in (houses[0], houses[4]):
        with acting(house.member.user.email):
            emails = [house.member.user.email]
            AlertSetting.objects.create(tenant=house.tenant, thresholds=[50, 80, 100], emails=emails)
    hook = Webhook(tenant=houses[0].tenant, url="https://hooks.aurora.example/quotas")
    hook.new_secret()
    with acting(houses[0].member.user.email):
        hook.save()
    quotas.check()
    for delivery in AlertDelivery.objects.all():
        delivery.status, delivery.attempts, delivery.finished_at = DeliveryStatus.SENT, 1, now()
        delivery.last_status = 204 if delivery.webhook_id else None
        delivery.save()
    slug = houses[5].tenant.slug
    told = f"2 events of {slug} with the numbers 1871 to 1872 never came."
    alarms.raise_alarm(AlarmKind.SEQUENCE_GAP, f"{slug} {uuid.UUID(int=7)} 1871-1872", told)
    alarmchecks.check()  # as the worker does once a minute


def be_refused(endpoint: str, house: House) -> tuple[str, ProxyToken]:
    """Call until a limit of its token says no; the request id of that refusal, and the token."""
    with acting(house.member.user.email):
        token, secret = issuing.issue_token(house.member, "poster-generator", limit_texts=["images:6/day"])
    headers, body = {"X-Proxy-Token": secret}, {"prompt": PROMPT, "size": "512x512", "n": 2}
    answers = [httpx.post(endpoint, json=body, headers=headers, timeout=60) for _ in range(6)]
    refused = [answer for answer in answers if answer.status_code == 429]
    return refused[-1].headers["X-Request-Id"], token


def make_exports() -> None:
    """Exports that finance has asked for; the worker makes them."""
    finance = User.objects.get(email=FINANCE)
    for period, name in (("this-month", "csv"), ("this-month", "focus"), ("last-month", "xlsx")):
        question = Question(period=period, by=("tenant", "model"))
        query = question.query(finance)
        exportjobs.create(finance, question, query, name, exportjobs.rows_to_read(query, name))
    wait_until(lambda: not ExportJob.objects.exclude(status=JobStatus.DONE).exists(), 120, "the exports")

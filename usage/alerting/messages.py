"""What an alert says: as a mail, and as the body of a webhook."""

import datetime as dt

import msgspec
from django.conf import settings

from usage.models import Alert, AlertDelivery

TEST_TEXT = "This is a test: alerts about quotas will reach you here. Nothing has to be done."
WEBHOOK_TYPES = {"alert": "quota.threshold_reached", "test": "quota.test"}


def payload(delivery: AlertDelivery) -> bytes:
    """The body of a webhook, JSON: `type`, `timestamp` and `data`; the same bytes in every attempt."""
    alert = delivery.alert
    if alert is None:
        data: dict[str, object] = {"tenant": delivery.tenant.slug, "message": TEST_TEXT}
        return _json(WEBHOOK_TYPES["test"], delivery.created_at, data)
    return _json(
        WEBHOOK_TYPES["alert"],
        alert.at,
        {
            "tenant": delivery.tenant.slug,
            "scope": alert.scope,
            "scope_id": alert.scope_id,
            "scope_name": alert.scope_name,
            "metric": alert.metric,
            "period": alert.period,
            "period_name": alert.period_name,
            "threshold": alert.threshold,
            "used": alert.used,
            "amount": alert.amount,
        },
    )


def subject(delivery: AlertDelivery) -> str:
    """The mail's subject, in one line."""
    alert = delivery.alert
    what = "a test of the quota alerts" if alert is None else f"{alert.threshold} % of {alert.quota} used"
    return f"[Gem Heaven Gateway] {delivery.tenant.slug}: {what}"


def text(delivery: AlertDelivery) -> str:
    """The mail's text."""
    alert = delivery.alert
    if alert is None:
        return f"{TEST_TEXT}\n\nIt was asked for on {_page('usage/alertdelivery/')}\n"
    lines = [
        f"{alert.scope_name} has used {alert.used:,} of {alert.amount:,} {alert.quota}: {_share(alert)} %.",
        "",
        _what_follows(alert),
        "",
        f"Found on {alert.at.astimezone(dt.UTC):%Y-%m-%d at %H:%M} UTC. Figures and limits:",
        _page(f"usage/alert/{alert.pk}/change/"),
        "",
        "Each share is told once in a quota's period. Who is told, and at which shares, is chosen here:",
        _page("usage/alertsetting/"),
    ]
    return "\n".join(lines) + "\n"


def _what_follows(alert: Alert) -> str:
    until = {"day": "until the day ends", "month": "until the month ends"}.get(alert.period, "for good")
    if alert.used >= alert.amount:
        return f"Its calls are now refused (429, quota_exceeded) {until}, unless the limit is raised."
    return f"Calls that no longer fit into what is left are refused {until}, unless the limit is raised."


def _share(alert: Alert) -> int:
    return alert.used * 100 // alert.amount


def _page(path: str) -> str:
    return f"{settings.PUBLIC_URL}/admin/{path}"


def _json(kind: str, at: dt.datetime, data: dict[str, object]) -> bytes:
    moment = at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return msgspec.json.encode({"type": kind, "timestamp": moment, "data": data})

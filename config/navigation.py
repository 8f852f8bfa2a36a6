"""The admin's sidebar: every page that people go to by themselves. Each person finds there what they may open."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.urls import reverse_lazy

Item = dict[str, Any]


def page(title: str, icon: str, name: str) -> Item:
    """The entry of a page of the admin, of a model's list for those who may see the model."""
    item: Item = {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{name}")}
    app, _, rest = name.partition("_")
    return {**item, "permission": _may(f"{app}.view_{rest.removesuffix('_changelist')}")} if rest else item


def view(title: str, icon: str, name: str, permission: str) -> Item:
    """The entry of a page that is no model's, for those who have a permission."""
    return {"title": title, "icon": icon, "link": reverse_lazy(name), "permission": _may(permission)}


def group(title: str, *items: Item) -> Item:
    """Entries under a heading, which is shown when one of them is."""
    return {"title": title, "separator": True, "items": list(items)}


def _may(permission: str) -> Callable[[HttpRequest], bool]:
    return lambda request: request.user.has_perm(permission)


NAVIGATION = [
    {"items": [page("Dashboard", "monitoring", "index")]},
    group(
        "Tenants & tokens",
        page("Tenants", "apartment", "tokens_tenant_changelist"),
        page("Plans", "inventory_2", "tokens_plan_changelist"),
        page("Members", "badge", "tokens_membership_changelist"),
        page("Proxy tokens", "key", "tokens_proxytoken_changelist"),
        page("API keys", "api", "tokens_apikey_changelist"),
    ),
    group(
        "Usage",
        page("Daily usage", "calendar_month", "usage_dailyusage_changelist"),
        page("Usage records", "receipt_long", "usage_usagerecord_changelist"),
        view("Why refused?", "block", "refusals", "usage.view_usagerecord"),
        page("Unresolved calls", "help", "usage_unresolvedcall_changelist"),
        page("Quarantined events", "report", "usage_quarantinedevent_changelist"),
        page("Prices", "sell", "usage_price_changelist"),
        view("Months", "event_available", "months", "usage.add_statement"),
        page("Statements", "description", "usage_statement_changelist"),
    ),
    group(
        "Reports",
        view("Reports", "bar_chart", "reports", "usage.view_dailyusage"),
        page("Saved reports", "bookmark", "usage_savedreport_changelist"),
        view("Exceptions", "rule", "exceptions", "usage.view_dailyusage"),
        view("Exports", "download", "exports", "usage.view_dailyusage"),
    ),
    group(
        "Quota alerts",
        page("Alerts", "notifications", "usage_alert_changelist"),
        page("Deliveries", "outbox", "usage_alertdelivery_changelist"),
        page("Alert settings", "contact_mail", "usage_alertsetting_changelist"),
        page("Webhooks", "webhook", "usage_webhook_changelist"),
    ),
    group(
        "Operations",
        page("Alarms", "notifications_active", "usage_alarm_changelist"),
        page("Audit trail", "history", "tokens_auditentry_changelist"),
    ),
    group(
        "Providers",
        page("Providers", "cloud", "gateway_provider_changelist"),
        page("Models", "palette", "gateway_model_changelist"),
    ),
    group("People", page("Users", "person", "tokens_user_changelist")),
]

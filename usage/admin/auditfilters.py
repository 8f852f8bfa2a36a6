"""The filters of the audit trail's page."""

import datetime as dt
from typing import Any

from django.apps import apps
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import DropdownFilter, RangeDateFilter, TextFilter

from tokens.audit import AuditEntry, Verb
from tokens.audited import Audited
from usage.admin.ledgerpages import parse_day
from usage.models import Alarm, QuarantinedEvent, UsageRecord

TOLD_BY_NOTE = (UsageRecord, QuarantinedEvent, Alarm)  # of which the trail tells, besides all that is Audited
A_DAY = dt.timedelta(days=1)


class WhoFilter(TextFilter):
    """By the beginning of a name: a person's address, or "command line (root)"."""

    title = "who"
    parameter_name = "who"

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Narrow the list."""
        name = (self.value() or "").strip()
        return queryset.filter(Q(shown_actor__istartswith=name)) if name else queryset


class VerbFilter(DropdownFilter):
    """By what was done."""

    title = "what was done"
    parameter_name = "verb"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """All that are known."""
        return [(verb.value, verb.value.capitalize()) for verb in Verb]

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Narrow the list."""
        return queryset.filter(verb=self.value()) if self.value() else queryset


class ObjectFilter(DropdownFilter):
    """By what it was done to."""

    title = "object"
    parameter_name = "object_type"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Every kind that stands on its own; a limit, say, is told of with what it limits."""
        told = [model for model in apps.get_models() if issubclass(model, (Audited, *TOLD_BY_NOTE))]
        own = [m._meta for m in told if not m._meta.proxy and not (issubclass(m, Audited) and is_part(m))]
        return sorted(((one.label_lower, str(one.verbose_name).capitalize()) for one in own), key=lambda kind: kind[1])

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Narrow the list."""
        return queryset.filter(object_type=self.value()) if self.value() else queryset


def is_part(model: type[Audited]) -> bool:
    """Whether the trail tells of such rows with the row that they are a part of."""
    return model.audit_parent is not Audited.audit_parent


class TimeFilter(RangeDateFilter):
    """From the beginning of a day to the end of one, in UTC."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        """Narrow the list."""
        first, last = (parse_day(self.used_parameters.get(f"{self.parameter_name}_{end}")) for end in ("from", "to"))
        if first is not None:
            queryset = queryset.filter(at__gte=midnight(first))
        if last is not None and last < dt.date.max:
            queryset = queryset.filter(at__lt=midnight(last + A_DAY))
        return queryset


def midnight(day: dt.date) -> dt.datetime:
    """When a day begins, in UTC."""
    return dt.datetime.combine(day, dt.time(), dt.UTC)

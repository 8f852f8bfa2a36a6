"""One truth about who did what: the audit trail. Django's own log, which told of the admin only, isn't written."""

from typing import Any
from urllib.parse import urlencode

from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from unfold.admin import ModelAdmin

from tokens import audit
from tokens.audit import Subject, Verb, subject_of
from tokens.roles import rights_of

ID_DIGITS = 18  # a bigint has at least these


class Trailed(ModelAdmin):
    """A page whose history is the audit trail of its object."""

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> None:
        """Nothing: the row tells the trail itself."""

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> None:
        """Nothing: the row tells the trail itself."""

    def log_deletions(self, request: HttpRequest, queryset: Any) -> None:
        """Nothing: the rows tell the trail themselves."""

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """On to what the trail tells of this object."""
        obj = self.get_object(request, object_id)
        if obj is None:
            raise Http404
        if not self.has_view_or_change_permission(request, obj):
            raise PermissionDenied
        return HttpResponseRedirect(trail_url(self.trailed(obj)))

    def trailed(self, obj: Any) -> Subject:
        """Under which name the trail knows an object of this page."""
        return subject_of(obj)


def trail_url(subject: Subject) -> str:
    """The address of the list of all that was done to an object."""
    query = urlencode({"object_type": subject.type, "object_id": subject.id})
    return f"{reverse('admin:tokens_auditentry_changelist')}?{query}"


def note_download(request: HttpRequest, model: type[Model], rows: str) -> None:
    """Tell the trail that somebody takes rows away as a file; `rows` says which, such as the filters in force.

    The entry belongs to the one tenant whose rows these are, by the filter or by what the person may see.
    """
    options = model._meta
    asked, tenant = request.GET.get("tenant__id__exact", ""), None
    tenants = rights_of(request.user).tenants(f"{options.app_label}.view_{options.model_name}")
    if tenants is not None and len(tenants) == 1:
        tenant = next(iter(tenants))
    elif asked.isascii() and asked.isdigit() and len(asked) <= ID_DIGITS and (tenants is None or int(asked) in tenants):
        tenant = int(asked)
    subject = Subject(options.label_lower, "", str(options.verbose_name_plural), tenant)
    audit.note(Verb.EXPORTED, subject, changes=[("filter", "", rows)])

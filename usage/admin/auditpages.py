"""The audit trail in the admin: who did what to which object, when, from where, and by which way."""

import datetime as dt
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.db.models import Case, F, Func, Q, QuerySet, TextField, Value, When
from django.db.models.functions import Cast, Replace
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display

from tokens.admin.history import trail_url
from tokens.admin.scoping import TenantFilter
from tokens.audit import HIDDEN, STAFF, AuditEntry, Subject, moment
from tokens.roles import sees_staff
from usage.admin.auditfilters import ObjectFilter, TimeFilter, VerbFilter, WhoFilter
from usage.admin.readonly import ReadOnlyAdmin, in_one_line
from usage.models import UsageRecord


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    """What was done, newest first. Nobody can change it, which the database enforces."""

    tenant_field = "tenant_id"
    linked_fields = frozenset({"object_id"})
    list_before_template = "admin/trail.html"
    list_display = ("when", "who", "done", "tenant_slug", "origin")
    list_display_links = ("when",)
    list_filter = (
        ("tenant", TenantFilter),
        WhoFilter,
        VerbFilter,
        ObjectFilter,
        ("way", ChoicesDropdownFilter),
        ("at", TimeFilter),
    )
    search_fields = ("object_name",)
    search_help_text = "The beginning of an object's name, its id, or a request id"
    ordering = ("-id",)
    sortable_by = ()
    csv_name = "audit"
    csv_columns = {
        "id": "id",
        "at": "at",
        "recorded_at": "recorded_at",
        "who": "shown_actor",
        "way": "way",
        "address": "shown_address",
        "client": "shown_agent",
        "verb": "verb",
        "object_type": "object_type",
        "object_id": "object_id",
        "object_name": "object_name",
        "part": "part",
        "tenant": "tenant__slug",
        "changes": "changes_text",
        "reason": "reason",
    }
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "summary",
                    ("shown_at", "who"),
                    ("way", "address_or_none"),
                    "client",
                    ("thing", "shown_tenant"),
                    "why",
                    "before_and_after",
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[AuditEntry]:
        """With the tenant, which may be gone, and with who, from where and what as the person may see it."""
        queryset: QuerySet[AuditEntry] = super().get_queryset(request)
        told: dict[str, Any] = {
            "shown_actor": F("actor"),
            "shown_address": Func("address", function="host", output_field=TextField()),
            "shown_agent": F("agent"),
            "changes_text": Cast("changes", TextField()),
        }
        if not sees_staff(request.user):
            instead: dict[str, Any] = {
                "shown_actor": Value(STAFF),
                "shown_address": Value(""),
                "shown_agent": Value(""),
            }
            actor: Any = F("actor")
            instead["changes_text"] = Replace(told["changes_text"], actor, Value(STAFF))
            told = {
                name: Case(When(of_platform=True, then=value), default=told[name], output_field=TextField())
                for name, value in instead.items()
            }
        return queryset.select_related("tenant").annotate(**told)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[AuditEntry], search_term: str
    ) -> tuple[QuerySet[AuditEntry], bool]:
        """By an id, or by how a name begins; both have an index."""
        term = search_term.strip()
        if not term:
            return queryset, False
        return queryset.filter(Q(object_id=term) | Q(object_name__istartswith=term)), False

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list; of one object, its title names it."""
        listed = super().get_changelist_instance(request)
        if request.GET.get("object_id"):
            first = next(iter(listed.result_list), None)
            listed.title = f"History of {first.kind} {first.object_name}" if first else "History"
            listed.nothing = "Nothing was done to it since the trail began."
            listed.about = True
        return listed

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """All that was done to the object of an entry."""
        answer = super().history_view(request, object_id, extra_context)  # asks for the right to see it
        entry = self.get_object(request, object_id)
        return HttpResponseRedirect(trail_url(_subject(entry))) if entry is not None else answer

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponseBase:
        """The list, under a title that says what it is."""
        response = super().changelist_view(request, extra_context)
        context = getattr(response, "context_data", None)
        if context is not None and "cl" in context:
            context["title"] = context["cl"].title if request.GET.get("object_id") else "Audit trail"
        return response

    @display(description="when (UTC)")
    def when(self, entry: AuditEntry) -> SafeString:
        """When it was done."""
        return in_one_line(f"{entry.at.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}")

    @display(description="who")
    def who(self, entry: AuditEntry) -> str:
        """A person's address, the command line's user, or the system."""
        return entry.shown_actor  # type: ignore[attr-defined,no-any-return]

    @display(description="what")
    def done(self, entry: AuditEntry) -> SafeString:
        """One sentence, and the reason if one was given."""
        text = format_html("{}", _short(_capital(_discreet(entry).sentence)))
        return (
            format_html('{}<br><span class="gw-quiet">{}</span>', text, _short(entry.reason)) if entry.reason else text
        )

    @display(description="tenant")
    def tenant_slug(self, entry: AuditEntry) -> str:
        """Its short name; its id if it is gone."""
        return _tenant(entry)

    @display(description="from")
    def origin(self, entry: AuditEntry) -> SafeString:
        """By which way, and from which address."""
        way = in_one_line(entry.get_way_display())
        address = entry.shown_address  # type: ignore[attr-defined]
        return format_html('{}<br><span class="gw-quiet">{}</span>', way, address) if address else way

    @display(description="address")
    def address_or_none(self, entry: AuditEntry) -> str:
        """Of the client; a dash without one."""
        return entry.shown_address or "–"  # type: ignore[attr-defined]

    @display(description="what happened")
    def summary(self, entry: AuditEntry) -> str:
        """The whole sentence."""
        return f"{self.who(entry)} {_discreet(entry).sentence}."

    @display(description="when")
    def shown_at(self, entry: AuditEntry) -> str:
        """When it was done; and when it was written, if the database was down meanwhile."""
        later = entry.recorded_at - entry.at > dt.timedelta(seconds=5)
        return f"{moment(entry.at)}, written at {moment(entry.recorded_at)}" if later else moment(entry.at)

    @display(description="client")
    def client(self, entry: AuditEntry) -> str:
        """What the browser calls itself."""
        return entry.shown_agent or "–"  # type: ignore[attr-defined]

    @display(description="object")
    def thing(self, entry: AuditEntry) -> SafeString:
        """The object, with a link to its page, if there is one still, and to its history."""
        what = entry.what or "–"
        if not entry.object_id:
            return format_html("{}", what)
        page = page_of(entry)
        there = format_html('<a class="gw-link" href="{}">{}</a>', page, what) if page else format_html("{}", what)
        history = format_html('<a class="gw-link" href="{}">All that was done to it</a>', trail_url(_subject(entry)))
        return format_html('{}<br><span class="gw-quiet">id {}</span> · {}', there, entry.object_id, history)

    @display(description="tenant")
    def shown_tenant(self, entry: AuditEntry) -> str:
        """As in the list."""
        return _tenant(entry)

    @display(description="reason")
    def why(self, entry: AuditEntry) -> str:
        """As it was given."""
        return entry.reason or "–"

    @display(description="changes")
    def before_and_after(self, entry: AuditEntry) -> SafeString:
        """A table: field, before, after."""
        if not entry.changes:
            return format_html("{}", "–")
        rows = format_html_join(
            "",
            '<tr><td>{}</td><td class="gw-wrap">{}</td><td class="gw-wrap">{}</td></tr>',
            ((_capital(name), *_both(before, after)) for name, before, after in _discreet(entry).changes),
        )
        return format_html(
            '<div class="gw-scroll"><table class="gw-table gw-changes"><thead><tr><th>Field</th><th>Before</th>'
            "<th>After</th></tr></thead><tbody>{}</tbody></table></div>",
            rows,
        )


def _discreet(entry: Any) -> AuditEntry:
    """The entry, with its actor's name in the values as in the list."""
    if entry.shown_actor != entry.actor:
        entry.changes = [[text.replace(entry.actor, entry.shown_actor) for text in change] for change in entry.changes]
    return entry  # type: ignore[no-any-return]


def page_of(entry: AuditEntry) -> str:
    """The address of an object's page; "" without one."""
    if entry.object_type == UsageRecord._meta.label_lower:
        return f"{reverse('admin:usage_usagerecord_changelist')}?q={entry.object_id}"
    try:
        model = apps.get_model(entry.object_type)
        if not model._default_manager.filter(pk=entry.object_id).exists():
            return ""
        return reverse(f"admin:{entry.object_type.replace('.', '_')}_change", args=(entry.object_id,))
    except (LookupError, ValueError, NoReverseMatch):
        return ""


def _subject(entry: AuditEntry) -> Subject:
    return Subject(entry.object_type, entry.object_id, entry.object_name, entry.tenant_id)


def _tenant(entry: AuditEntry) -> str:
    tenant = entry.tenant if entry.tenant_id is not None else None
    return "–" if entry.tenant_id is None else tenant.slug if tenant is not None else f"tenant {entry.tenant_id}"


def _both(before: str, after: str) -> tuple[str, str]:
    shown = {HIDDEN: "not shown", "": "–"}
    return shown.get(before, before), shown.get(after, after)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:199]}…"

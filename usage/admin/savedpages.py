"""Saved reports in the admin: questions with a name, and to whom their answers are sent when."""

import datetime as dt
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.postgres.forms import SimpleArrayField
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.timezone import now
from unfold.decorators import display
from unfold.paginator import InfinitePaginator
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from tokens.admin.scoping import OwnRows, TenantFilter
from tokens.roles import rights_of
from usage.admin.readonly import in_one_line
from usage.exporting.formats import FORMATS, refusal
from usage.models import SavedReport
from usage.questions import SEES, Question, Wrong, read
from usage.reportrows import Schedule, SendingStatus, Sharing
from usage.reports import Query
from usage.schedules import next_due

MOST_ADDRESSES = 20
SENDINGS_SHOWN = 30
NO_MAIL = "The gateway has no mail server yet, so nothing is sent until its operator sets EMAIL_URL."
STATUS_COLOURS = {SendingStatus.SENT: "success", SendingStatus.FAILED: "danger", SendingStatus.WAITING: "info"}


class SavedReportForm(forms.ModelForm):  # type: ignore[type-arg]
    """A name, who finds it, and when it is sent to whom."""

    format = forms.ChoiceField(
        label="Attached as", choices=[(name, one.name) for name, one in FORMATS.items()], widget=UnfoldAdminSelectWidget
    )
    recipients = SimpleArrayField(
        forms.EmailField(max_length=254),
        label="E-mail addresses",
        required=False,
        max_length=MOST_ADDRESSES,
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "books@example.com, lead@example.com"}),
        help_text=SavedReport._meta.get_field("recipients").help_text,
    )

    class Meta:
        model = SavedReport
        fields = ("name", "sharing", "schedule", "weekday", "month_day", "hour", "format", "recipients")

    query: Query | None = None  # what is asked, as its owner may ask it now; set by the page
    wrong = ""

    def clean_recipients(self) -> list[str]:
        """Each once, without blanks around it."""
        return list(dict.fromkeys(str(email).strip().lower() for email in self.cleaned_data["recipients"]))

    def clean(self) -> dict[str, Any] | None:
        """What is sent goes to somebody, in a format that this usage has."""
        cleaned = super().clean()
        if self.query is None:
            raise forms.ValidationError(self.wrong)
        data = self.cleaned_data
        if data.get("schedule") and not data.get("recipients") and "recipients" not in self.errors:
            self.add_error("recipients", "Say to whom it is sent, or choose never to send it.")
        if data.get("format") in FORMATS and (refused := refusal(FORMATS[data["format"]], self.query)):
            self.add_error("format", refused)
        if data.get("sharing") == Sharing.TENANT and self.query.tenant is None:
            self.add_error("sharing", "It is about all tenants: only finance and platform administrators may find it.")
        return cleaned


@admin.register(SavedReport)
class SavedReportAdmin(OwnRows):
    """One's own, and those that others share. Only its owner, or a platform administrator, changes one."""

    tenant_field = "tenant_id"
    form = SavedReportForm
    list_display = ("shown_name", "asks", "owner", "sent", "next_time")
    list_display_links = None
    list_filter = (("tenant", TenantFilter),)
    list_filter_submit = True
    list_select_related = ("owner", "tenant")
    list_per_page = 50
    paginator = InfinitePaginator
    show_full_result_count = False
    search_fields = ("name",)
    sortable_by = ()
    readonly_fields = ("what_it_asks", "sendings")
    fieldsets = (
        (None, {"fields": ("what_it_asks", "name", "sharing")}),
        (
            "Sent by e-mail",
            {"fields": ("schedule", ("weekday", "month_day"), "hour", "format", "recipients", "sendings")},
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[SavedReport]:
        """What the person may find."""
        rows: QuerySet[SavedReport] = super().get_queryset(request)
        every = rights_of(request.user).tenants(SEES) is None
        shared = [Sharing.FINANCE, Sharing.TENANT] if every else [Sharing.TENANT]
        return rows.filter(Q(owner=request.user) | Q(sharing__in=shared))

    def limited(self, request: HttpRequest, queryset: QuerySet[Any], verb: str) -> QuerySet[Any]:
        """Of these those that the person may view; change or delete only one's own."""
        rows = super().limited(request, queryset, verb)
        return rows if verb == "view" or request.user.is_superuser else rows.filter(owner=request.user)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """One's own."""
        return super().has_change_permission(request, obj) and self._is_own(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """One's own."""
        return super().has_delete_permission(request, obj) and self._is_own(request, obj)

    def _is_own(self, request: HttpRequest, obj: Any) -> bool:
        return obj is None or request.user.is_superuser or getattr(obj, "owner_id", None) == request.user.pk

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list; an empty one says how one comes into it."""
        listed = super().get_changelist_instance(request)
        listed.nothing = "" if request.GET else "No saved reports. Ask for a report, and save it from there."
        return listed

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """The form; without a mail server it says so."""
        if request.method == "GET" and not settings.EMAIL_URL:
            messages.warning(request, NO_MAIL)
        return super().changeform_view(request, *args, **kwargs)

    def add_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """The form for a question that stands in the address."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        return super().add_view(request, *args, **kwargs)  # type: ignore[no-any-return]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The form knows what is asked."""
        form = super().get_form(request, obj, change, **kwargs)
        form.query, form.wrong = None, ""
        try:
            _, form.query = self._asked(request, obj)
        except Wrong as exc:
            form.wrong = f"Ask for a report first, and save it from there: {exc}"
        return form

    def _asked(self, request: HttpRequest, obj: SavedReport | None) -> tuple[Question, Query]:
        question = read(obj.question if obj is not None else request.GET.get("question", ""))
        return question, question.query(obj.owner if obj is not None else request.user)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """A name to begin with."""
        try:
            return {"name": self._asked(request, None)[0].in_words[:100]}
        except Wrong:
            return {}

    def save_model(self, request: HttpRequest, obj: SavedReport, form: Any, change: bool) -> None:
        """Whose it is and what it asks is said once; when it is due follows from the form."""
        if not change:
            question, query = self._asked(request, None)
            obj.owner, obj.tenant = request.user, query.tenant  # type: ignore[assignment]
            obj.question = question.of(query.tenant).address
        obj.next_due_at = next_due(obj, now())
        super().save_model(request, obj, form, change)

    @display(description="report")
    def shown_name(self, report: SavedReport) -> SafeString:
        """Its name leads to the report itself, and beside it to what was saved."""
        change = reverse("admin:usage_savedreport_change", args=(report.pk,))
        return format_html(
            '<a class="gw-link" href="{}?{}">{}</a> <a class="gw-quiet gw-near-name" href="{}">settings</a>',
            *(reverse("reports"), report.question, report.name, change),
        )

    @display(description="asks")
    def asks(self, report: SavedReport) -> str:
        """In words."""
        return read(report.question).of(report.tenant).in_words

    @display(description="sent")
    def sent(self, report: SavedReport) -> str:
        """How often, and to how many."""
        if not report.schedule:
            return "–"
        count = len(report.recipients)
        return f"{Schedule(report.schedule).label}, to {count} address{'' if count == 1 else 'es'}"

    @display(description="next (UTC)")
    def next_time(self, report: SavedReport) -> SafeString:
        """When it is due."""
        return in_one_line(f"{report.next_due_at.astimezone(dt.UTC):%Y-%m-%d %H:%M}" if report.next_due_at else "–")

    @display(description="asks")
    def what_it_asks(self, report: SavedReport) -> SafeString:
        """The question, and a link to its answer as of now."""
        if report._state.adding:
            return mark_safe(
                "What the report that you came from asks, with its periods: “last month” stays last month."
            )
        words = read(report.question).of(report.tenant).in_words
        return format_html('<a class="gw-link" href="{}?{}">{}</a>', reverse("reports"), report.question, words)

    @display(description="sent lately")
    def sendings(self, report: SavedReport) -> SafeString:
        """When it was sent, to whom, and what went wrong."""
        if report._state.adding:
            return mark_safe("Not yet.")
        rows = [(one, STATUS_COLOURS[SendingStatus(one.status)]) for one in report.sendings.all()[:SENDINGS_SHOWN]]
        return mark_safe(render_to_string("admin/reports/sendings.html", {"rows": rows}))  # noqa: S308 - escaped there

"""Exports from the admin: small ones at once, large ones as a job with a page that tells how far it is."""

import io
from collections.abc import Generator
from pathlib import Path
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template.response import TemplateResponse
from django.urls import reverse

from tokens.roles import rights_of
from usage import exportjobs
from usage.admin.readonly import Pieces
from usage.exporting.formats import FORMATS, export, refusal
from usage.exporting.noting import note_export
from usage.exporting.spreadsheet import TooManyRows
from usage.models import ExportJob
from usage.questions import SEES, Question, Wrong, read
from usage.reportmails import file_name
from usage.reportrows import JobStatus
from usage.reports import Query

SHOWN = 50
PIECE = 128 * 1024  # bytes
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
WORDS = {
    JobStatus.WAITING: "It waits for a worker, which makes one export at a time.",
    JobStatus.RUNNING: "It is being made. You can leave this page: it stays in the list of exports.",
    JobStatus.DONE: "It is ready. The file is kept for a week.",
    JobStatus.CANCELLED: "It was cancelled, and nothing is kept of it.",
}


def exports(request: HttpRequest) -> HttpResponse:
    """GET: the exports that are kept, one's own; of everybody for finance. POST: another one."""
    if not request.user.has_perm(SEES):
        raise PermissionDenied
    if request.method == "POST":
        return _order(request)
    jobs = _mine(request).select_related("owner", "tenant").order_by("-created_at")[:SHOWN]
    context = {
        **admin.site.each_context(request),
        "title": "Exports",
        "jobs": [_told(job) for job in jobs],
        "everybodys": _sees_all(request),
        "shown": SHOWN,
    }
    return TemplateResponse(request, "admin/reports/exports.html", context)


def export_page(request: HttpRequest, job_id: Any) -> HttpResponse:
    """How far an export is, and its file when it is ready."""
    job = _job(request, job_id)
    context = {**admin.site.each_context(request), "title": "Export", **_told(job)}
    return TemplateResponse(request, "admin/reports/export.html", context)


def state(request: HttpRequest, job_id: Any) -> HttpResponse:
    """The same for the page's script: percent, whether it is over, and a sentence."""
    told = _told(_job(request, job_id))
    answer = {"percent": told["job"].percent, "over": not told["open"], "text": told["text"], "rows": told["rows"]}
    return JsonResponse(answer, headers=HEADERS)


def cancel(request: HttpRequest, job_id: Any) -> HttpResponse:
    """Cancel an export."""
    job = _job(request, job_id)
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    if exportjobs.cancel(job):
        messages.success(request, "The export is cancelled.")
    else:
        messages.info(request, "It was over already.")
    return HttpResponseRedirect(reverse("exports"))


def file(request: HttpRequest, job_id: Any) -> HttpResponseBase:
    """The file, for who asked for it, or finance, and only while they may see all that is in it."""
    job = _job(request, job_id)
    query = _query(request, job)
    if job.status != JobStatus.DONE or not job.file or query is None:
        raise Http404
    path = exportjobs.path_of(job)
    if not path.is_file():
        raise Http404
    chosen = FORMATS[job.format]
    note_export(query, job.format, f"export {job.pk}")
    headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{file_name(query, chosen)}"'}
    headers["Content-Length"] = str(job.size)
    return StreamingHttpResponse(Pieces(_read(path)), content_type=chosen.content_type, headers=headers)


def _read(path: Path) -> Generator[bytes]:
    with path.open("rb") as opened:
        while piece := opened.read(PIECE):
            yield piece


def _order(request: HttpRequest) -> HttpResponse:
    """Make an export at once, or have it made."""
    asked, name = request.POST.get("question", ""), request.POST.get("format", "")
    try:
        question = read(asked)
        query = question.query(request.user)
        if name not in FORMATS:
            raise Wrong("format", "Choose one of the formats.")
        if refused := refusal(FORMATS[name], query):
            raise Wrong("format", refused)
        expected = exportjobs.rows_to_read(query, name)
        if expected > exportjobs.AT_ONCE:
            return _have_made(request, question, query, name, expected)
        return _at_once(query, name, asked)
    except (Wrong, TooManyRows) as exc:
        messages.error(request, str(exc))
        return HttpResponseRedirect(f"{reverse('reports')}?{asked}")


def _have_made(request: HttpRequest, question: Question, query: Query, name: str, expected: int) -> HttpResponse:
    with transaction.atomic():
        job = exportjobs.create(request.user, question, query, name, expected)  # type: ignore[arg-type]
        note_export(query, name, f"export {job.pk}")
    return HttpResponseRedirect(reverse("export", args=(job.pk,)))


def _at_once(query: Query, name: str, asked: str) -> HttpResponse:
    chosen, out = FORMATS[name], io.BytesIO()
    export(query, name, out)
    note_export(query, name, asked)
    headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{file_name(query, chosen)}"'}
    return HttpResponse(out.getvalue(), content_type=chosen.content_type, headers=headers)


def _sees_all(request: HttpRequest) -> bool:
    return rights_of(request.user).tenants(SEES) is None


def _mine(request: HttpRequest) -> Any:
    if _sees_all(request):
        return ExportJob.objects.all()
    mine = rights_of(request.user).tenants(SEES) or frozenset()
    return ExportJob.objects.filter(Q(owner=request.user, tenant__in=mine))


def _job(request: HttpRequest, job_id: Any) -> ExportJob:
    """One of the person's; others aren't there for them."""
    if not request.user.has_perm(SEES):
        raise PermissionDenied
    job: ExportJob | None = _mine(request).select_related("owner", "tenant").filter(pk=job_id).first()
    if job is None:
        raise Http404
    return job


def _query(request: HttpRequest, job: ExportJob) -> Query | None:
    try:
        return exportjobs.query_of(job, request.user)  # type: ignore[arg-type]
    except Wrong:
        return None


def _told(job: ExportJob) -> dict[str, Any]:
    """A job for people."""
    open_one = job.status in (JobStatus.WAITING, JobStatus.RUNNING)
    gone = job.status == JobStatus.DONE and not (job.file and exportjobs.path_of(job).exists())
    text = job.error or WORDS.get(JobStatus(job.status), "")
    return {
        "job": job,
        "open": open_one,
        "ready": job.status == JobStatus.DONE and not gone,
        "state": "Expired" if gone else job.get_status_display(),
        "text": "The file was kept for a week, and is deleted. Ask for the report once more: it is made anew."
        if gone
        else text,
        "rows": f"{job.read:,} of about {job.expected:,} rows" if job.status == JobStatus.RUNNING else "",
        "format": FORMATS[job.format].name,
        "about": read(job.question).in_words,
        "report": f"{reverse('reports')}?{job.question}",
    }

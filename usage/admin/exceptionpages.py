"""The page Exceptions: what a person should look at before usage is invoiced, and where each of it is mended."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import urlencode

from tokens import audit
from tokens.audit import Subject, Verb
from tokens.roles import rights_of
from usage import exceptions as found
from usage.admin.questionfields import Field, choice, fields
from usage.admin.readonly import Pieces
from usage.admin.reportpages import ask
from usage.admin.reporttable import money
from usage.exceptions import WHAT, Exceptional, ExceptionKind
from usage.exports import signed, write_csv
from usage.providerusage import FIGURES, BadUsageError, Difference, ProviderUsage, differences, read
from usage.questions import SEES
from usage.reports import Query

SHOWN = 100
COUNTED = 10_000  # the summary is of so many at most
MOST_BYTES = 10 * 1024 * 1024  # of a provider's file
MOST_DAYS = 366  # that it is about; each is summed from the ledger
MOST_KEPT = 1_000_000  # characters of it that the result's page keeps for its download
PIECE = 64 * 1024  # characters
OF_CALLS = tuple(WHAT)  # what the people of a tenant see, too
EVERY = (*OF_CALLS, ExceptionKind.GAP, ExceptionKind.QUARANTINED)
MENDED = {  # what is done there, and the permission to open it
    ExceptionKind.UNRESOLVED: ("Resolve", "usage.change_unresolvedcall"),
    ExceptionKind.UNPRICED: ("Prices", "usage.view_price"),
    ExceptionKind.GAP: ("Its alarm", "usage.view_alarm"),
    ExceptionKind.QUARANTINED: ("The event", "usage.view_quarantinedevent"),
}
COLUMNS = ("day", "model", "requests", "images", "tokens", "charged", "unresolved", "what")


def exceptions(request: HttpRequest) -> HttpResponseBase:
    """The rows, by kind, tenant and period; each person sees those of their own tenants."""
    if not request.user.has_perm(SEES):
        raise PermissionDenied
    question, query, wrong = ask(request)
    kinds = _kinds(request)
    if query is not None and request.GET.get("format") == "csv":
        return _csv(query, kinds)
    kept = replace(question, by=(), measure="", largest=False, margins=False)
    context: dict[str, Any] = {
        **admin.site.each_context(request),
        "title": "Exceptions",
        "fields": [*fields(kept, request.user, wrong, grouped=False), _kind_field(request, kinds)],
        "kept": [(name, value) for name, value in _narrower(kept) if value],
        "compares": _sees_all(request),
    }
    if query is not None:
        address = [(name, value) for name, value in request.GET.lists() if name != "format"]
        context |= _answer(request, query, kinds)
        context["csv"] = f"?{urlencode([*address, ('format', 'csv')], doseq=True)}"
    return TemplateResponse(request, "admin/reports/exceptions.html", context)


def provider(request: HttpRequest) -> HttpResponseBase:
    """A provider's usage, uploaded, beside the ledger: the days and models on which they differ."""
    if not request.user.has_perm(SEES) or not _sees_all(request):
        raise PermissionDenied
    if request.method != "POST":
        return HttpResponseRedirect(reverse("exceptions"))
    error, usage = "", list[ProviderUsage]()
    try:
        usage = list(read(io.StringIO(_uploaded(request), newline="")))
        if not usage:
            raise BadUsageError("The file has no lines after its first.")
        start, end = min(one.day for one in usage), max(one.day for one in usage)
        if (end - start).days > MOST_DAYS:
            raise BadUsageError(f"The file is about {start} to {end}: a year is compared at most.")
    except (BadUsageError, UnicodeDecodeError) as exc:
        error = str(exc) if isinstance(exc, BadUsageError) else "The file must be CSV, in UTF-8."
    rows: list[Difference] = []
    if not error:
        rows = list(differences(Query(None, start, end.fromordinal(end.toordinal() + 1), ()), usage))
        if "csv" in request.POST:
            return _differences_csv(rows)
    context = {
        **admin.site.each_context(request),
        "title": "The provider's usage and the ledger",
        "error": error,
        "differences": [_difference(row) for row in rows[:SHOWN]],
        "more": max(0, len(rows) - SHOWN),
        "days": f"{start} to {end}" if not error else "",
        "read": len(usage),
        "again": _as_text(usage),
    }
    return TemplateResponse(request, "admin/reports/provider.html", context, status=400 if error else 200)


def _difference(row: Difference) -> dict[str, Any]:
    """A difference for people; "–" for a figure that the provider didn't name."""
    figures = {name: getattr(row, name) for name in FIGURES}
    told = {name: "–" if figure is None else signed(figure) for name, figure in figures.items()}
    return {**row._asdict(), **told, "words": row.in_words()}


def _all(request: HttpRequest) -> Sequence[ExceptionKind]:
    return EVERY if _sees_all(request) else OF_CALLS


def _kinds(request: HttpRequest) -> Sequence[ExceptionKind]:
    """Those that are asked for, of those that the person may see."""
    asked = [kind for kind in _all(request) if kind.value == request.GET.get("kind")]
    return asked or _all(request)


def _kind_field(request: HttpRequest, kinds: Sequence[ExceptionKind]) -> Field:
    choices = [("", "Every kind"), *((kind.value, kind.value.capitalize()) for kind in _all(request))]
    return choice("kind", "Kind", choices, kinds[0].value if len(kinds) == 1 else "", {})


def _narrower(question: Any) -> list[tuple[str, Any]]:
    return [("user", question.user), ("token", question.token), ("model", question.model)]


def _sees_all(request: HttpRequest) -> bool:
    return rights_of(request.user).tenants(SEES) is None


def _answer(request: HttpRequest, query: Query, kinds: Sequence[ExceptionKind]) -> dict[str, Any]:
    """The first rows, and how many there are of each kind with what is at stake, up to COUNTED of all."""
    shown: list[dict[str, Any]] = []
    counts: Counter[ExceptionKind] = Counter()
    tokens: Counter[ExceptionKind] = Counter()
    unknown: Counter[ExceptionKind] = Counter()
    amounts: dict[ExceptionKind, dict[str, Decimal]] = defaultdict(dict)
    for one in islice(found.exceptions(query, kinds=kinds), COUNTED):
        counts[one.kind] += 1
        tokens[one.kind] += one.tokens or 0
        if one.amount is not None and one.currency:
            held = amounts[one.kind]
            held[one.currency] = held.get(one.currency, Decimal(0)) + one.amount
        else:
            unknown[one.kind] += 1
        if len(shown) < SHOWN:
            shown.append(_row(request, one))
    summary = [
        {
            "kind": kind.value,
            "name": kind.value.capitalize(),
            "count": counts[kind],
            "tokens": tokens[kind],
            "unknown": unknown[kind],
            "amounts": [money(amount, currency) for currency, amount in sorted(amounts[kind].items())],
        }
        for kind in EVERY
        if counts[kind]
    ]
    total = counts.total()
    last = query.end.fromordinal(query.end.toordinal() - 1)
    limits = {"capped": total >= COUNTED, "counted": COUNTED, "more": max(0, total - SHOWN), "total": total}
    return {"query": query, "last": last, "rows": shown, "summary": summary, **limits}


def _row(request: HttpRequest, one: Exceptional) -> dict[str, Any]:
    amount = money(one.amount, one.currency)._replace(label="Amount")
    link, label = one.link, "The call"
    if one.kind in MENDED:
        label, permission = MENDED[one.kind]
        if not request.user.has_perm(permission):
            link, label = ("", "") if one.kind not in OF_CALLS else (link, "The call")
        elif one.kind is ExceptionKind.UNRESOLVED:
            link = f"{reverse('admin:usage_unresolvedcall_changelist')}?q={one.reference}"
        elif one.kind is ExceptionKind.UNPRICED:
            link = f"{reverse('admin:usage_price_changelist')}?{urlencode({'q': one.model or ''})}"
    return {"one": one, "kind": one.kind.value.capitalize(), "amount": amount, "link": link, "label": label}


def _csv(query: Query, kinds: Sequence[ExceptionKind]) -> HttpResponseBase:
    """All of them, streamed."""
    rows = ([*one._replace(kind=one.kind.value)] for one in found.exceptions(query, kinds=kinds))  # type: ignore[arg-type]
    _note(query.tenant.pk if query.tenant else None, f"exceptions from {query.start} to before {query.end}")
    name = f"exceptions-{query.tenant.slug if query.tenant else 'all'}-{query.start}.csv"
    return _streamed([Exceptional._fields], rows, name)


def _differences_csv(rows: Iterable[Difference]) -> HttpResponseBase:
    _note(None, "differences to a provider's usage")
    lines = ([*row, row.in_words()] for row in rows)
    return _streamed([COLUMNS], lines, "provider-differences.csv")


def _streamed(header: Sequence[Sequence[str]], rows: Iterable[Sequence[Any]], name: str) -> HttpResponseBase:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    headers["X-Content-Type-Options"] = "nosniff"
    return StreamingHttpResponse(Pieces(_pieces(header, rows)), content_type="text/csv; charset=utf-8", headers=headers)


def _pieces(header: Sequence[Sequence[str]], rows: Iterable[Sequence[Any]]) -> Generator[bytes]:
    out = io.StringIO(newline="")
    write_csv(header, out)
    for row in rows:
        write_csv([row], out)
        if out.tell() >= PIECE:
            yield out.getvalue().encode()
            out.seek(0)
            out.truncate()
    yield out.getvalue().encode()


def _note(tenant: int | None, what: str) -> None:
    audit.note(Verb.EXPORTED, Subject("usage.dailyusage", "", what, tenant))


def _uploaded(request: HttpRequest) -> str:
    """The file, or what the result's page had kept of it."""
    upload = request.FILES.get("file")
    if upload is None:
        return str(request.POST.get("again", ""))
    if (upload.size or 0) > MOST_BYTES:
        raise BadUsageError("The file is larger than 10 MB: leave out columns, or days.")
    return str(upload.read(), "utf-8-sig")


def _as_text(usage: Iterable[ProviderUsage]) -> str:
    """The same for a field of the page, to be read again as it is; nothing when it is too long for that."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows([ProviderUsage._fields, *usage])
    return out.getvalue() if out.tell() <= MOST_KEPT else ""

"""Why was this refused? Paste a request id and read what was decided; below, the calls that were refused last."""

import datetime as dt
import uuid
from typing import Any

import msgspec
import redis
from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.timezone import now

from config.redis import PAGE_SECONDS, store
from gateway import decisions
from gateway.admin.explaining import TITLES, Explanation, Link, explain, in_words
from gateway.telemetry import Refusal
from tokens.admin.scoping import row_id
from tokens.admission import keys
from tokens.admission.connection import StoreUnavailable
from tokens.models import ProxyToken
from tokens.roles import narrow, rights_of, visible_tenants
from usage.admin.ledgerpages import rows_url
from usage.models import Kind, UsageRecord

SEES = "usage.view_usagerecord"
ROWS = 50
MOST_EVENTS = 1_000  # on their way to the books, that are looked at
JUST_NOW = dt.timedelta(seconds=5)  # a decision is on its way for so long
ENDED = {Kind.EXACT: "ended well", Kind.VOID: "was given up, and nothing is charged for it"}


def refusals(request: HttpRequest) -> HttpResponse:
    """The page, for everybody who may see usage records; each person sees what happened in their own tenants."""
    if not request.user.has_perm(SEES):
        raise PermissionDenied
    asked = request.GET.get("request_id", "").strip()
    context = {
        **admin.site.each_context(request),
        "title": "Why was this refused?",
        "asked": asked[:100],
        **(_answer(request, asked) if asked else _latest(request)),
    }
    return TemplateResponse(request, "admin/refusals.html", context)


def _answer(request: HttpRequest, asked: str) -> dict[str, Any]:
    """What is known of a call by its request id."""
    try:
        request_id = uuid.UUID(asked)
    except ValueError:
        return {"told": Explanation("That is not a request id", [_what_an_id_is()])}
    at = decisions.moment_of(request_id)
    if at is None:
        return {"told": Explanation("No gateway made this request id", [_what_an_id_is()])}
    told = _in_the_books(request, request_id)
    if told is not None:
        return {"told": told}
    try:
        refusal = decisions.find(request_id, at)
        if refusal is not None and rights_of(request.user).may(SEES, refusal.tenant):
            token = ProxyToken.objects.select_related("tenant", "member__user").filter(pk=refusal.token).first()
            if token is not None:
                told = explain(refusal, token, request.user)  # type: ignore[arg-type]
                return {"told": told, "refusal": refusal, "token": token}
        told = _under_way(request, request_id) or _unknown(at)
    except (StoreUnavailable, redis.RedisError):
        told = Explanation("It isn't known right now", ["It isn't in the books."], store_away=True)
    return {"told": told}


def _what_an_id_is() -> str:
    return (
        "A request id looks like 019abc12-3456-7def-8abc-0123456789ab. Every answer of the gateway has one, "
        "in its header X-Request-Id and in the body of an error."
    )


def _in_the_books(request: HttpRequest, request_id: uuid.UUID) -> Explanation | None:
    """A call that was admitted and has ended, as the ledger has it."""
    rows = narrow(UsageRecord.objects.filter(request_id=request_id), request.user, SEES, "tenant_id")
    row = rows.select_related("tenant", "token").order_by("-number").first()
    if row is None:
        return None
    told = Explanation("Not refused: it was admitted")
    told.advice.append(Link("See it in the books", rows_url(request_id)))
    what = f"The call of the token “{row.token.name}” ({row.tenant.slug}) passed every limit"
    reason = f" ({row.reason.replace('_', ' ')})" if row.reason else ""
    if row.outcome in ENDED:
        told.sentences.append(f"{what} and {ENDED[Kind(row.outcome)]}{reason}.")
        if row.outcome == Kind.VOID:
            told.sentences.append("The provider refused it or was never reached: the limits had nothing to do with it.")
        return told
    told.title = "Admitted, but its outcome isn't known"
    told.sentences.append(f"{what}, but nobody knows how it ended{reason}. It holds its quota until that is decided.")
    listed = reverse("admin:usage_unresolvedcall_changelist")
    told.advice.insert(0, Link("Decide what it counts as", f"{listed}?q={request_id}"))
    return told


def _under_way(request: HttpRequest, request_id: uuid.UUID) -> Explanation | None:
    """A call whose reservation the store has: it is being answered, or on its way to the books."""
    pipeline = store(PAGE_SECONDS).pipeline(transaction=False)
    for shard in range(settings.SHARDS):
        pipeline.hmget(keys.reservation(shard, str(request_id)), "state", "call")
    for shard, (state, call) in enumerate(pipeline.execute()):
        if state is None:
            continue
        tenant = msgspec.json.decode(call)["tenant"] if call else _tenant_of_event(shard, request_id)
        if not rights_of(request.user).may(SEES, tenant):
            return None
        if state == b"RESERVED":
            sentence = "The provider is still drawing, or the process that asked it has ended and its lease still runs."
            return Explanation("Not refused: it is under way", [sentence])
        sentence = "It has ended and is on its way to the books: look again in a few seconds."
        return Explanation("Not refused: it was admitted", [sentence])
    return None


def _tenant_of_event(shard: int, request_id: uuid.UUID) -> int | None:
    """Whose call has ended, by its event if that is among the newest in the shard's stream."""
    wanted = str(request_id).encode()
    entries: Any = store(PAGE_SECONDS).xrevrange(keys.usage(shard), count=MOST_EVENTS)
    return next((int(fields[b"tenant"]) for _, fields in entries if fields.get(b"request_id") == wanted), None)


def _unknown(at: dt.datetime) -> Explanation:
    """Nothing is kept of it, or nothing that this person may see; both read the same."""
    when = f"{at.day} {at:%b %Y at %H:%M:%S} UTC"
    oldest = decisions.oldest()
    if at > now() + JUST_NOW:
        return Explanation("No gateway made this request id", [f"It would be of {when}, which is to come."])
    if at > now() - JUST_NOW:
        return Explanation("It isn't known yet", ["Decisions are kept once a second: look again in a moment."])
    told = Explanation("Nothing is known of this call", [f"By its id it came in on {when}."])
    if oldest is None or at < oldest:
        since = f"since {oldest.day} {oldest:%b %Y, %H:%M} UTC" if oldest else "now: there are none"
        told.sentences.append(f"It is older than the decisions that are kept, which is {since}.")
    told.sentences.append(
        "It may never have reached an admission: the token was missing or isn't one that this gateway knows "
        "(403 invalid_token). Of a token that is refused more than 200 times a second, only so many are kept."
    )
    told.advice.append(Link("Check the token that the client sends: its first characters stand on the token's page."))
    return told


# The latest


def _latest(request: HttpRequest) -> dict[str, Any]:
    """The calls that were refused last, by the filters in the address: type, tenant, token."""
    kind, before = request.GET.get("type", ""), request.GET.get("before", "")
    tenant, token = (row_id(request.GET.get(name, "")) for name in ("tenant", "token"))
    mine = rights_of(request.user).tenants(SEES)

    def wanted(refusal: Refusal) -> bool:
        return (
            (mine is None or refusal.tenant in mine)
            and (not kind or refusal.type == kind)
            and tenant in (None, refusal.tenant)
            and token in (None, refusal.token)
            and bool(refusal.type)
        )

    if not _is_stream_id(before):
        before = ""
    try:
        page = decisions.latest(wanted, before, ROWS)
    except StoreUnavailable:
        return {"store_away": True}
    tokens = ProxyToken.objects.select_related("tenant", "member__user").in_bulk({one.token for one in page.refusals})
    filters = {name: value for name, value in (("type", kind), ("tenant", tenant), ("token", token)) if value}
    return {
        "rows": [_row(refusal, tokens.get(refusal.token)) for refusal in page.refusals],
        "filters": _shown(request, kind, tenant, token),
        "older": "?" + urlencode({**filters, "before": page.next}) if page.next else "",
        "newest": "?" + urlencode(filters) if before else "",
    }


def _is_stream_id(text: str) -> bool:
    parts = text.split("-")
    return len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts)


def _row(refusal: Refusal, token: ProxyToken | None) -> dict[str, Any]:
    return {
        "refusal": refusal,
        "at": dt.datetime.fromtimestamp(refusal.at, dt.UTC),
        "token": token,
        "why": in_words(refusal.limit) if refusal.limit else TITLES.get(refusal.type, refusal.type).partition(": ")[2],
    }


def _shown(request: HttpRequest, kind: str, tenant: int | None, token: int | None) -> list[str]:
    """The filters in words; a row that the person may not see isn't named."""
    shown = [f"only {kind}"] if kind else []
    if tenant is not None:
        row = visible_tenants(request.user).filter(pk=tenant).first()
        shown.append(f"of {row}" if row else "of a tenant that isn't there")
    if token is not None:
        tokens = narrow(ProxyToken.objects.all(), request.user, "tokens.view_proxytoken", "tenant_id")
        found = tokens.filter(pk=token).first()
        shown.append(f"with {found}" if found else "with a token that isn't there")
    return shown

"""In plain words: why a call wasn't admitted, and what can be done about it."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field

from django.urls import reverse

from gateway.refusals import describe
from gateway.telemetry import LimitSaid, Refusal
from tokens import discretion
from tokens.admin.history import trail_url
from tokens.admin.standing import Meter, read_use
from tokens.admission.connection import StoreUnavailable
from tokens.admission.principal import LimitRecord, ScopedLimit
from tokens.audit import STAFF, AuditEntry, subject_of
from tokens.issuing import Scope
from tokens.models import ProxyToken, Status, TokenStatus, User
from tokens.roles import narrow, rights_of, sees_staff

TITLES = {
    "": "Answered from an earlier call",
    "exceeds_limit": "Refused: it asks for more than a limit ever allows",
    "idempotency_mismatch": "Refused: its Idempotency-Key belongs to another request",
    "in_flight": "Refused: the first call with its Idempotency-Key was still under way",
    "internal_error": "Failed: an error of the gateway",
    "invalid_request": "Refused: the request isn't what the API takes",
    "invalid_token": "Refused: the token didn't count",
    "not_allowed": "Refused: not from there",
    "outcome_unknown": "Answered from an earlier call, whose outcome isn't known",
    "quota_exceeded": "Refused: a quota was used up",
    "rate_limited": "Refused: a limit was reached",
    "too_large": "Refused: the body was too large",
    "unavailable": "Refused: the gateway could not take it",
    "unsupported_media_type": "Refused: the body wasn't declared as JSON",
}
CLIENTS_FAULT = {"invalid_request", "unsupported_media_type", "too_large"}
KEYS = {"idempotency_mismatch", "in_flight", "outcome_unknown", ""}
MODELS = {"tenant": "tenant", "member": "membership", "token": "proxytoken"}


@dataclass
class Link:
    """Something to do: a sentence, and where it is done."""

    text: str
    url: str = ""


@dataclass
class Explanation:
    """What a person is told of a call."""

    title: str
    sentences: list[str] = field(default_factory=list)
    advice: list[Link] = field(default_factory=list)
    meter: Meter | None = None
    meter_of: str = ""
    store_away: bool = False


def explain(refusal: Refusal, token: ProxyToken, user: User) -> Explanation:
    """Why this call of `token` wasn't admitted, for somebody who may see it."""
    told = Explanation(TITLES.get(refusal.type, f"Refused: {refusal.type}"))
    told.sentences.append(_happened(refusal, token))
    if refusal.limit is not None:
        _about_limit(told, refusal, refusal.limit, token, user)
    elif refusal.type == "invalid_token":
        told.sentences += _why_it_did_not_count(refusal, token, user)
        told.advice.append(Link("See the token", page_of(token)))
    elif refusal.type == "not_allowed":
        _about_place(told, refusal, token)
    elif refusal.type in KEYS:
        _about_key(told, refusal)
    else:
        told.sentences += [refusal.message] if refusal.message else []
        if refusal.type in CLIENTS_FAULT:
            told.advice.append(Link("The client app has to be changed; nothing here would let this call pass."))
        elif rights_of(user).platform:
            told.advice.append(Link("Look at the open alarms", f"{reverse('admin:usage_alarm_changelist')}?state=open"))
            told.advice.append(Link("Nothing was spent: the client can send it again."))
        else:
            told.advice.append(Link("Nothing was spent: the client can send it again."))
    return told


def _happened(refusal: Refusal, token: ProxyToken) -> str:
    """When, who, what for, and what the client got."""
    at = dt.datetime.fromtimestamp(refusal.at, dt.UTC)
    asked = ""
    if refusal.images:
        images = "1 image" if refusal.images == 1 else f"{refusal.images} images"
        asked = f" asked {refusal.model} for {images} (at most {refusal.tokens:,} tokens)"
    got = f"{refusal.status} {refusal.type}".strip()
    return f"On {at.day} {at:%b %Y at %H:%M:%S} UTC the token “{token.name}”{asked or ' called'} and got {got}."


def _about_limit(told: Explanation, refusal: Refusal, said: LimitSaid, token: ProxyToken, user: User) -> None:
    if refusal.type == "exceeds_limit":
        told.title = f"Refused: more than the limit of {in_words(said)} ever allows"
    else:
        told.title = f"Refused: the limit of {in_words(said)} was reached"
    told.sentences.append(_stood(refusal, said))
    owner: Scope = token.tenant if said.scope == "tenant" else token.member if said.scope == "member" else token
    told.meter_of = said.scope
    try:
        told.meter = next((one for one in read_use(owner).meters if _is(one, said)), None)
    except StoreUnavailable:
        told.store_away = True
    limits = owner.limits.filter(metric=said.metric, period=said.period)
    if said.scope == "tenant":
        limits = limits.filter(member=None, token=None)
    limit = limits.first()
    if limit is None:
        told.sentences.append("That limit has been taken away since: calls are no longer refused for it.")
    elif limit.amount != said.amount:
        told.sentences.append(f"It has been changed since: it is {limit.amount:,} now.")
    told.sentences += _who_set(f"limit {said.metric}/{said.period}".rstrip("/"), owner, user)
    told.advice += _what_to_do(refusal, said, owner, user)


def in_words(said: LimitSaid) -> str:
    """A limit, such as ``100 images per day for this tenant``."""
    return describe(ScopedLimit(said.scope, LimitRecord(0, said.metric, said.period, said.amount, said.burst, start=0)))


def _is(meter: Meter, said: LimitSaid) -> bool:
    return (meter.scope, meter.limit.metric, meter.limit.period) == (said.scope, said.metric, said.period)


def _stood(refusal: Refusal, said: LimitSaid) -> str:
    """How much of the limit was left, and how much the call needed."""
    needed = {"images": refusal.images, "tokens": refusal.tokens}.get(said.metric, 1)
    whole = said.burst or said.amount
    if refusal.type == "exceeds_limit":
        return f"The call needs {needed:,} at once, the whole limit is {whole:,}: no waiting would let it pass."
    left = f"{said.remaining:,} {'was' if said.remaining == 1 else 'were'} left and the call needed {needed:,}"
    if said.metric == "concurrent":
        return f"{said.amount - said.remaining:,} calls were under way; {left}."
    if said.period in {"second", "minute", "hour"}:
        return f"It lets {said.amount:,} pass per {said.period}, {whole:,} at once: {left}."
    used = max(0, said.amount - said.remaining - said.reserved)
    held = f" and {said.reserved:,} were reserved by calls under way" if said.reserved else ""
    return f"Of {said.amount:,}, {used:,} were used{held}: {left}."


def _who_set(part: str, owner: Scope, user: User) -> Iterator[str]:
    """The last thing that was done to the limit, by the audit trail."""
    trail = narrow(AuditEntry.objects.all(), user, "tokens.view_auditentry", "tenant_id")
    if not user.has_perm("tokens.view_auditentry"):
        return
    subject = subject_of(owner)
    entry = trail.filter(object_type=subject.type, object_id=subject.id, part=part).order_by("-id").first()
    if entry is not None:
        at = entry.at.astimezone(dt.UTC)
        who = "The system" if entry.actor in {"", "system"} else entry.actor
        if entry.of_platform and not sees_staff(user):
            who = STAFF.capitalize()
        yield f"{who} {entry.sentence}, on {at.day} {at:%b %Y at %H:%M} UTC."


def _what_to_do(refusal: Refusal, said: LimitSaid, owner: Scope, user: User) -> Iterator[Link]:
    rights = rights_of(user)
    tenant = owner.entry().tenant_id
    # What the platform sells, a tenant's own limits, stays with the platform.
    may = rights.platform or (said.scope != "tenant" and rights.may("tokens.change_limit", tenant))
    if may:
        yield Link(f"Raise the limit on the {said.scope}'s page", page_of(owner))
    elif said.scope == "tenant":
        yield Link("Ask the gateway's operator to raise the limit: the tenant's own limits are set there.")
    else:
        yield Link("Ask an administrator of the tenant to raise the limit.", page_of(owner))
    if refusal.type == "exceeds_limit":
        yield Link("Or have the client ask for less at once.")
    elif said.metric == "concurrent":
        yield Link("Or have the client wait until one of its calls ends, then send it again.")
    elif said.frees > 0:
        yield Link(_wait(refusal, said))
    yield Link("See who else changed it and when", trail_url(subject_of(owner)))


def _wait(refusal: Refusal, said: LimitSaid) -> str:
    frees = dt.datetime.fromtimestamp(refusal.at + said.frees, dt.UTC)
    over = frees <= dt.datetime.now(dt.UTC)
    when = f"{frees.day} {frees:%b %Y, %H:%M:%S} UTC"
    return f"It was to free at {when}, which is over." if over else f"Or wait until {when}, when it frees."


def _why_it_did_not_count(refusal: Refusal, token: ProxyToken, user: User) -> Iterator[str]:
    """As things stand now, which may have changed since."""
    found = False
    if token.status == TokenStatus.REVOKED:
        revoked = token.revoked_at.astimezone(dt.UTC) if token.revoked_at else None
        when = f" on {revoked.day} {revoked:%b %Y at %H:%M} UTC" if revoked else ""
        by = f" by {discretion.told(token.revoked_by, token.tenant_id, user) or 'the system'}"
        reason = f" ({token.revoke_reason})" if token.revoke_reason else ""
        yield f"The token was revoked{when}{by}{reason}. That is final; issue another."
        found = True
    if token.expires_at is not None and token.expires_at.timestamp() <= refusal.at:
        expired = token.expires_at.astimezone(dt.UTC)
        yield f"The token had expired on {expired.day} {expired:%b %Y at %H:%M} UTC."
        found = True
    for what, row in (("tenant", token.tenant), ("member", token.member)):
        if row.status == Status.SUSPENDED:
            yield f"The {what} is suspended, which ends every call of it."
            found = True
    if not found:
        yield (
            "The secret that was sent doesn't count any more, or something was suspended then and isn't now: "
            "the token itself is active."
        )


def _about_place(told: Explanation, refusal: Refusal, token: ProxyToken) -> None:
    told.sentences.append(refusal.message)
    if refusal.address:
        networks = ", ".join(token.networks) or "all"
        told.sentences.append(f"The call came from {refusal.address}; the token's networks: {networks}.")
    if refusal.origin:
        origins = ", ".join(token.tenant.origins) or "none"
        told.sentences.append(f"The page's origin was {refusal.origin}; the tenant's origins: {origins}.")
    told.advice.append(Link("Change the token's networks", page_of(token)))
    if refusal.origin:
        told.advice.append(Link("Change the tenant's origins", page_of(token.tenant)))


def _about_key(told: Explanation, refusal: Refusal) -> None:
    told.sentences += [refusal.message] if refusal.message else []
    if not refusal.type:
        told.sentences.append("A call with the same Idempotency-Key had ended; its answer was given again, free.")
    if refusal.first:
        told.advice.append(Link(f"See that call, {refusal.first}", f"{reverse('refusals')}?request_id={refusal.first}"))


def page_of(row: Scope) -> str:
    """The page of a tenant, member or token."""
    return reverse(f"admin:tokens_{MODELS[row.entry().kind]}_change", args=(row.pk,))

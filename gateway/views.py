"""The endpoint that draws images. `post` reads as the life of a call, one module a step."""

import asyncio
import hashlib
import time
from typing import cast

from django.conf import settings
from rest_framework.request import Request

from gateway import throttling
from gateway.asyncviews import AsyncAPIView
from gateway.authentication import presented_token, require_allowed
from gateway.calls import Call, Skeleton, choose_model, estimate_tokens, fingerprint
from gateway.errors import (
    ApiError,
    InvalidRequest,
    InvalidToken,
    LimitReached,
    NotAllowed,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
    UpstreamFailed,
)
from gateway.headers import rate_limit_headers
from gateway.judging import UNKNOWN_OUTCOME
from gateway.lifecycle import admit_call, carry_out
from gateway.presenting import answer, remaining_after
from gateway.replies import Reply, json_reply
from gateway.requests import LeanRequest
from gateway.runtime import Runtime
from gateway.validation import GenerationRequest, require_json, validate
from tokens.admission.admission import Standing, standing
from tokens.admission.connection import StoreError, StoreUnavailable
from tokens.admission.principal import Principal

REFUSED_BEFORE_ADMISSION = (InvalidRequest, UnsupportedMediaType, TooLarge, NotAllowed, Unavailable)
AGENT_CHARACTERS = 200


class GenerateImage(AsyncAPIView):
    """``POST /wp-json/my-proxy/v1/generate-image``."""

    async def post(self, request: Request) -> Reply:
        """Authenticate, validate, admit, call, keep, settle, answer."""
        http = cast(LeanRequest, request._request)
        runtime = http.runtime
        token, principal = await self._authenticate(http)
        try:
            asked = await self._validate(http, principal)
            call = self._prepare(http, token, principal, asked)
            runtime.require_room()
            if not call.idempotency_key:  # what was answered before is replayed by the admission
                runtime.breaker.require_closed(call.model.provider)
        except REFUSED_BEFORE_ADMISSION as exc:
            await self._add_standings(http, token, exc)
            raise
        return await self._carry(http, call)

    async def _authenticate(self, request: LeanRequest) -> tuple[str, Principal]:
        token = presented_token(request.META)
        try:
            principal = await request.runtime.authenticator.authenticate(token)
        except InvalidToken:
            wait = await throttling.failed_authentication(request, request.client_address)
            if wait:
                text = f"Too many invalid API tokens from this address. Try again in {wait} s."
                raise LimitReached(text, quota=False, retry_after=wait) from None
            raise
        try:
            require_allowed(principal, request.client_address, request.origin)
        except NotAllowed:  # by what this process remembers, which may be out of date
            principal = await request.runtime.authenticator.authenticate(token, fresh=True)
        request.known = principal
        return token, principal

    async def _validate(self, request: LeanRequest, principal: Principal) -> GenerationRequest:
        require_allowed(principal, request.client_address, request.origin)
        require_json(request.META.get("CONTENT_TYPE", ""))
        return validate(await request.read_body())

    def _prepare(self, request: LeanRequest, token: str, principal: Principal, asked: GenerationRequest) -> Call:
        model = choose_model(request.runtime, principal, asked)
        key = request.META.get("HTTP_IDEMPOTENCY_KEY")
        if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable() and " " not in key):
            raise InvalidRequest("Idempotency-Key must have 1 to 255 visible ASCII characters.")
        call = request.call = Call(
            request_id=request.request_id,
            token=token,
            principal=principal,
            asked=asked,
            model=model,
            estimate=estimate_tokens(model, asked),
            address=request.client_address,
            origin=request.origin,
            agent=request.META.get("HTTP_USER_AGENT", "")[:AGENT_CHARACTERS],
            idempotency_key=hashlib.sha256(key.encode()).hexdigest()[:32] if key else "",
            fingerprint=fingerprint(asked, settings.SECRET_KEY.encode()) if key else "",
        )
        return call

    async def _add_standings(self, request: LeanRequest, token: str, error: ApiError) -> None:
        """Refused before admission: read the token anew (it may be revoked by now) and what it has left."""
        try:
            principal = await request.runtime.authenticator.authenticate(token, fresh=True)
            standings = await standing(request.runtime.store, principal, request.begun_at)
            error.headers.update(rate_limit_headers(standings))
        except (StoreUnavailable, StoreError, Unavailable):
            return

    async def _carry(self, request: LeanRequest, call: Call) -> Reply:
        runtime = request.runtime
        try:
            skeleton = await asyncio.shield(runtime.detach(_admitted(runtime, call), request.receive))
        except ApiError as exc:
            if not isinstance(exc, InvalidToken):
                exc.headers.update(rate_limit_headers(await _left(runtime, call)))
            raise
        left = await _left(runtime, call) if call.replayed else remaining_after(call, skeleton)
        headers = rate_limit_headers(left)
        if call.replayed:
            headers["Idempotent-Replayed"] = "true"
        if call.asked.ignored:
            headers["X-Ignored-Fields"] = ", ".join(call.asked.ignored)
        if skeleton.error:  # only a replay has one
            raise _with_headers(UpstreamFailed(UNKNOWN_OUTCOME, skeleton.error, may_be_charged=True), headers)
        return json_reply(answer(skeleton, runtime.images), headers=headers)


async def _left(runtime: Runtime, call: Call) -> tuple[Standing, ...]:
    """What is left after a call that drew nothing new: as its refusal said, else (ended, replayed) as it is now."""
    if call.standings and not call.admitted_at:
        return call.standings
    try:
        return await standing(runtime.store, call.principal, time.time())
    except (StoreUnavailable, StoreError):
        return call.standings


async def _admitted(runtime: Runtime, call: Call) -> Skeleton:
    replay = await admit_call(runtime, call)
    return replay if replay is not None else await carry_out(runtime, call)


def _with_headers(error: ApiError, headers: dict[str, str]) -> ApiError:
    error.headers.update(headers)
    return error

"""Steps 3 to 6 of a call: admit, call, keep, settle. What is admitted here always ends, whatever the client does."""

import asyncio
import logging
import time

import msgspec

from gateway import metrics
from gateway.authentication import require_allowed
from gateway.calls import Call, Skeleton, choose_model, estimate_tokens, event_of
from gateway.errors import ApiError, Unavailable, UpstreamFailed
from gateway.imageforms import NotAnImage
from gateway.images import StorageFailed
from gateway.judging import UNKNOWN_OUTCOME, Delivered, Failed, Usage, judge
from gateway.refusals import refusal
from gateway.runtime import Runtime
from gateway.upstream import UpstreamError
from tokens.admission.admission import Claim, Decision, admit
from tokens.admission.connection import StoreError, StoreUnavailable
from tokens.admission.settlement import Ending

logger = logging.getLogger(__name__)
PROVIDER_ID_CHARACTERS = 200


async def admit_call(runtime: Runtime, call: Call) -> Skeleton | None:
    """Step 3. None: admitted, the reservation is made. A skeleton: this was answered before, replay it.

    Raises InvalidToken, NotAllowed, InFlight, IdempotencyMismatch, ExceedsLimit, LimitReached, Unavailable.
    """
    for _ in range(3):
        if not runtime.generation:
            raise Unavailable("The gateway can't admit calls at the moment: its store isn't ready.")
        asked_at = time.monotonic()  # before the answer is read: a process that is held up can't tell when it came
        decision = await _decide(runtime, call)
        call.decision, call.standings = decision, decision.standings
        if decision.status == "ADMITTED":
            call.admitted_at = asked_at
            return None
        if decision.status == "REPLAY":
            call.replayed = True
            return msgspec.json.decode(decision.answer, type=Skeleton)
        if decision.status == "STALE":
            call.principal = await runtime.authenticator.authenticate(call.token, fresh=True)
            require_allowed(call.principal, call.address, call.origin)
            call.model = choose_model(runtime, call.principal, call.asked)
            call.estimate = estimate_tokens(call.model, call.asked)
        elif decision.status == "GENERATION":
            await _read_generation(runtime)
        elif decision.status != "PERIOD":
            if decision.status == "INVALID":
                runtime.authenticator.drop(call.token)
            raise refusal(decision)
    raise Unavailable("The gateway can't admit this call at the moment.")


async def _read_generation(runtime: Runtime) -> None:
    try:
        await runtime.refresh_generation()
    except (StoreUnavailable, StoreError) as exc:
        raise Unavailable("The gateway can't admit calls at the moment: its store doesn't answer.") from exc


async def _decide(runtime: Runtime, call: Call) -> Decision:
    now = time.time()
    principal = call.principal
    call.event = event_of(call, principal.plan(now).periods.day)
    claim = Claim(
        call.request_id,
        call.asked.n,
        call.estimate,
        runtime.bounds.lease_seconds,
        call.event,
        call.idempotency_key,
        call.fingerprint,
    )
    try:
        return await admit(runtime.store, principal, claim, now, runtime.generation, runtime.bounds.backlog_limit)
    except StoreUnavailable as exc:
        if exc.sent:  # it may have been admitted: give back what it may have taken
            call.admitted_at = time.monotonic()
            runtime.detach(_end(runtime, call, "void", "not_dispatched", keep_request=False))
        raise Unavailable("The gateway can't admit calls at the moment: its store doesn't answer.") from exc
    except StoreError as exc:
        logger.error("the store refused to admit", extra={"reason": exc.code})
        raise Unavailable("The gateway can't admit calls at the moment: its store is full.", 10) from exc


async def carry_out(runtime: Runtime, call: Call) -> Skeleton:
    """Steps 4 to 6 of an admitted call; it is settled when this returns or raises an ApiError."""
    metrics.in_flight(1)
    try:
        outcome = await _ask_provider(runtime, call)
        if isinstance(outcome, Delivered):
            return await _keep_and_settle(runtime, call, outcome)
        if outcome.alarm:
            logger.error("the provider refuses our key or account", extra={"provider": call.model.provider})
        await _end_failed(runtime, call, outcome.kind, outcome.reason)
        raise outcome.error
    except ApiError:
        raise
    except Exception as exc:
        logger.exception("a call failed after it was admitted", extra={"request_id": call.request_id})
        await _end_failed(runtime, call, "unresolved", "internal_error")
        raise UpstreamFailed(UNKNOWN_OUTCOME, "outcome_unknown", may_be_charged=True) from exc
    finally:
        metrics.in_flight(-1)
        if call.held is not None:
            call.held.release()


async def _ask_provider(runtime: Runtime, call: Call) -> Delivered | Failed:
    """Step 4."""
    begun, answered = time.monotonic(), False
    if begun - call.admitted_at > runtime.bounds.dispatch_within:  # this process was stopped; its lease may be gone
        return Failed("void", Unavailable("The gateway was held up; nothing was sent."), "not_dispatched")
    try:
        runtime.breaker.enter(call.model.provider)
        answer = await runtime.upstream.generate(call.model, call.asked, call.request_id)
        call.held = answer.held
        call.provider_request_id = answer.headers.get("x-request-id", "")[:PROVIDER_ID_CHARACTERS]
        outcome: Delivered | Failed = judge(answer, call.asked.n, call.estimate)
    except Unavailable as exc:
        return Failed("void", exc, "not_dispatched")
    except UpstreamError as exc:
        outcome = _no_answer(exc)
    else:
        answered = True
    if isinstance(outcome, Failed) and outcome.down:
        runtime.breaker.failed(call.model.provider)
    elif answered:
        runtime.breaker.answered(call.model.provider)
    call.upstream_ms = (time.monotonic() - begun) * 1000
    kind = "exact" if isinstance(outcome, Delivered) else outcome.kind
    # Counted while the store settles the call: the loop gets to it when that command has left.
    asyncio.get_running_loop().call_soon(metrics.upstream_finished, call.model.name, kind, call.upstream_ms / 1000)
    return outcome


def _no_answer(exc: UpstreamError) -> Failed:
    if not exc.dispatched:
        text = "The remote AI service can't be reached."
        return Failed("void", UpstreamFailed(text, exc.kind, may_be_charged=False), "not_dispatched", down=True)
    if exc.kind == "upstream_timeout":
        text = "The remote AI service did not answer in time; whether the call was carried out is not known."
        return Failed("unresolved", UpstreamFailed(text, exc.kind, may_be_charged=True), exc.kind)
    return Failed("unresolved", UpstreamFailed(UNKNOWN_OUTCOME, "outcome_unknown", may_be_charged=True), exc.kind)


async def _keep_and_settle(runtime: Runtime, call: Call, delivered: Delivered) -> Skeleton:
    """Steps 5 and 6."""
    try:
        kept = await runtime.images.keep_all(delivered.encoded) if delivered.encoded else []
    except NotAnImage as exc:
        await _end_failed(runtime, call, "unresolved", "no_image")
        text = "The remote AI service answered with something that is not an image."
        raise UpstreamFailed(text, "outcome_unknown", may_be_charged=True) from exc
    except StorageFailed as exc:
        logger.error("images can't be stored", extra={"reason": str(exc)})
        await _end_failed(runtime, call, "unresolved", "storage_failed")
        text = "The image was made but could not be stored."
        raise UpstreamFailed(text, "storage_failed", may_be_charged=True) from exc
    usage = delivered.usage
    if usage.charged > call.estimate:
        metrics.counted("estimate_exceeded")
        logger.error("usage above the model's upper bound", extra={"model": call.model.name, "tokens": usage.charged})
        runtime.distrust_bound(call.model, call.asked.size)
    skeleton = Skeleton(
        created=delivered.created or int(time.time()),
        names=[image.name for image in kept],
        urls=delivered.urls,
        output_format=kept[0].form if kept else "png",
        total_tokens=usage.charged,
    )
    images = len(kept) + len(delivered.urls)
    answer = msgspec.json.encode(skeleton) if call.idempotency_key else b""
    await _end(runtime, call, "exact", "", usage=usage, images=images, answer=answer)
    call.charged = usage.charged
    return skeleton


async def _end_failed(runtime: Runtime, call: Call, kind: str, reason: str) -> None:
    answer = b""
    if kind == "unresolved":
        metrics.counted("unresolved")
        answer = msgspec.json.encode(Skeleton(error="outcome_unknown")) if call.idempotency_key else b""
    await _end(runtime, call, kind, reason, answer=answer, keep_request=reason != "not_dispatched")


def _result(call: Call, usage: Usage, images: int, reason: str) -> bytes:
    return msgspec.json.encode(
        {
            "images": images,
            "input": usage.input,
            "output": usage.output,
            "reported": usage.reported,
            "charged": usage.charged,
            "provenance": usage.provenance,
            "provider_request_id": call.provider_request_id,
            "latency_ms": round(call.upstream_ms or 0),
            "reason": reason,
        }
    )


async def _end(
    runtime: Runtime,
    call: Call,
    kind: str,
    reason: str,
    *,
    usage: Usage | None = None,
    images: int = 0,
    answer: bytes = b"",
    keep_request: bool = True,
) -> None:
    """Step 6. Raises UpstreamFailed when store, ledger and spool all failed to take it: nothing is answered then."""
    if kind == "unresolved":
        usage, images = Usage(call.estimate, None, None, None, "estimated"), call.asked.n
    usage = usage or Usage(0, None, None, None, "derived")
    principal = call.principal
    ending = Ending(
        call.request_id,
        principal.shard,
        principal.tenant,
        kind,
        images,
        usage.charged,
        keep_request,
        _result(call, usage, images, reason),
        call.event,
        answer,
    )
    try:
        await runtime.settle(ending)
    except OSError as exc:
        logger.critical("usage can't be recorded anywhere", extra={"reason": str(exc), "request_id": call.request_id})
        raise UpstreamFailed("The call could not be recorded.", "storage_failed", may_be_charged=True) from exc

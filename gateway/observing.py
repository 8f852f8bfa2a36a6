"""What telemetry learns of an answered call."""

from gateway.calls import Call
from gateway.errors import InvalidToken, NotAllowed
from gateway.requests import LeanRequest
from gateway.telemetry import LimitSaid, Refusal
from tokens.admission.admission import Decision


def observe(request: LeanRequest, status: int, seconds: float) -> None:
    """Count a call of the endpoint, and keep why it wasn't admitted if it wasn't. Costs no round trip."""
    call, error, telemetry = request.call, request.error, request.runtime.telemetry
    principal = request.known or (error.principal if isinstance(error, InvalidToken) else None)
    replayed = call is not None and call.replayed
    telemetry.answered(principal, request.begun_at, status, request.error_type, -1.0 if replayed else seconds)
    decision = call.decision if call is not None else None
    if principal is None or (decision is not None and decision.status == "ADMITTED"):
        return
    who = isinstance(error, NotAllowed)
    telemetry.refused(
        Refusal(
            request_id=request.request_id,
            at=request.begun_at,
            tenant=principal.tenant,
            member=principal.member,
            token=principal.token,
            status=status,
            type=request.error_type,
            message=_message(request),
            verdict=decision.status if decision else "",
            first=decision.request_id if decision else "",
            model=call.model.name if call else "",
            images=call.asked.n if call else 0,
            tokens=call.estimate if call else 0,
            address=request.client_address if who else "",
            origin=request.origin[:200] if who else "",
            limit=_limit(decision, call),
        )
    )


def _message(request: LeanRequest) -> str:
    """What the client was told, unless it quotes what the client sent."""
    message = request.error.message if request.error else ""
    return "" if '"' in message else message


def _limit(decision: Decision | None, call: Call | None) -> LimitSaid | None:
    """The limit that a decision names, as it stood."""
    if decision is None or call is None or decision.limit is None:
        return None
    scope, limit = decision.limit.scope, decision.limit.limit
    remaining = next((one.remaining for one in decision.standings if one.scoped is decision.limit), 0)
    frees = decision.retry_after or -1
    return LimitSaid(scope, limit.metric, limit.period, limit.amount, limit.burst, remaining, decision.reserved, frees)

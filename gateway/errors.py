"""Every error that a client can be answered with, and the one shape they have.

ApiError
├── NotFound                404 not_found
├── MethodNotAllowed        405 method_not_allowed
├── InvalidToken            403 invalid_token       one message, whatever is wrong with the token
├── NotAllowed              403 not_allowed         address, origin or model
├── UnsupportedMediaType    415 unsupported_media_type
├── TooLarge                413 too_large
├── InvalidRequest          400 invalid_request
├── ExceedsLimit            400 exceeds_limit       no waiting could let it pass
├── RefusedByProvider       400 refused_by_provider moderation, say; nothing is charged
├── InFlight                409 in_flight
├── IdempotencyMismatch     422 idempotency_mismatch
├── LimitReached            429 rate_limited, quota_exceeded
├── Unavailable             503 unavailable         nothing was spent
└── UpstreamFailed          500 upstream_failed, upstream_timeout, outcome_unknown, storage_failed
"""

from typing import Any, ClassVar

from tokens.admission.principal import Principal

NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """An answer that isn't a success: `status`, `type`, a message for people, and headers."""

    status: ClassVar[int] = 500
    type = "internal_error"

    def __init__(self, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers or {}

    def content(self, request_id: str) -> dict[str, Any]:
        """The body, as documented for every error."""
        return {"error": {"message": self.message, "code": self.status, "type": self.type, "request_id": request_id}}


class NotFound(ApiError):
    """No such path."""

    status, type = 404, "not_found"


class MethodNotAllowed(ApiError):
    """The path exists, for other methods."""

    status, type = 405, "method_not_allowed"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"This method isn't allowed here. Allowed: {allowed}.", {"Allow": allowed})


class InvalidToken(ApiError):
    """No token, or one that doesn't count; which of both nobody is told. `principal` is whose it is, where known."""

    status, type = 403, "invalid_token"

    def __init__(self, principal: Principal | None = None) -> None:
        super().__init__("Invalid API token", dict(NO_RETRY))
        self.principal = principal


class NotAllowed(ApiError):
    """A good token from an address or a web origin, or for a model, that isn't allowed."""

    status, type = 403, "not_allowed"

    def __init__(self, message: str) -> None:
        super().__init__(message, dict(NO_RETRY))


class UnsupportedMediaType(ApiError):
    """The body isn't declared as JSON."""

    status, type = 415, "unsupported_media_type"

    def __init__(self) -> None:
        super().__init__("Send JSON with Content-Type: application/json.")


class TooLarge(ApiError):
    """The body is over the limit."""

    status, type = 413, "too_large"


class InvalidRequest(ApiError):
    """The body isn't what the contract says; the message names the field."""

    status, type = 400, "invalid_request"


class ExceedsLimit(ApiError):
    """The call asks for more than a limit's whole amount."""

    status, type = 400, "exceeds_limit"


class RefusedByProvider(ApiError):
    """The provider refused the request itself."""

    status, type = 400, "refused_by_provider"


class InFlight(ApiError):
    """The first call under this idempotency key isn't finished."""

    status, type = 409, "in_flight"

    def __init__(self) -> None:
        super().__init__("A call with this Idempotency-Key is still in flight.", {"Retry-After": "2"})


class IdempotencyMismatch(ApiError):
    """The idempotency key belongs to another body."""

    status, type = 422, "idempotency_mismatch"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used with another request body.")


class LimitReached(ApiError):
    """A rate limit, a concurrency limit or a quota would be passed."""

    status = 429

    def __init__(self, message: str, quota: bool, retry_after: int) -> None:
        headers = {"Retry-After": str(retry_after), **(NO_RETRY if quota else {})}
        super().__init__(message, headers)
        self.type = "quota_exceeded" if quota else "rate_limited"


class Unavailable(ApiError):
    """The gateway can't admit now; nothing was spent."""

    status, type = 503, "unavailable"

    def __init__(self, message: str, retry_after: int = 2) -> None:
        super().__init__(message, {"Retry-After": str(retry_after)})


class UpstreamFailed(ApiError):
    """The remote service failed, timed out, or left its outcome unknown."""

    def __init__(self, message: str, kind: str, may_be_charged: bool) -> None:
        super().__init__(message, dict(NO_RETRY) if may_be_charged else None)
        self.type = kind

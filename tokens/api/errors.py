"""Errors of the management API, in the one shape that every error of the gateway has."""

import logging
from typing import Any

from django.core.exceptions import PermissionDenied, SuspiciousOperation, ValidationError
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response

from tokens.admission.connection import StoreUnavailable
from tokens.errors import DATABASE_DOWN, Refused
from tokens.management.base import sentence

RETRY_SECONDS = 5
TYPES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}

logger = logging.getLogger(__name__)


class ApiProblem(Exception):
    """An answer that isn't a success: its status, type, a sentence for people, and headers."""

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, message, headers or {}


def invalid(message: str) -> ApiProblem:
    """What was sent isn't as documented."""
    return ApiProblem(400, "invalid_request", message)


def not_allowed(message: str) -> ApiProblem:
    """A good key, for something that it doesn't open."""
    return ApiProblem(403, "not_allowed", message)


def problem_of(exc: Exception) -> ApiProblem:
    """What to answer for whatever a view has raised. What nobody thought of is logged, and told without details."""
    if isinstance(exc, ApiProblem):
        return exc
    if isinstance(exc, exceptions.ValidationError):
        return invalid(_flat(exc.detail))
    if isinstance(exc, exceptions.APIException):
        allowed = {"Allow": exc.args[0]} if exc.status_code == 405 and exc.args else {}
        return ApiProblem(exc.status_code, TYPES.get(exc.status_code, "invalid_request"), str(exc.detail), allowed)
    if isinstance(exc, ValidationError):
        return invalid(sentence(exc))
    if isinstance(exc, Refused):
        return invalid(str(exc))
    if isinstance(exc, Http404):
        return ApiProblem(404, "not_found", "There is nothing here, or not for this key.")
    if isinstance(exc, (StoreUnavailable, *DATABASE_DOWN)):
        what = "admission store" if isinstance(exc, StoreUnavailable) else "database"
        text = f"The gateway's {what} did not answer. Try again."
        return ApiProblem(503, "unavailable", text, {"Retry-After": str(RETRY_SECONDS)})
    if isinstance(exc, RecursionError | UnicodeError | SuspiciousOperation | PermissionDenied):
        return invalid("The gateway can't read this request.")
    logger.error("a request of the management API failed", exc_info=exc)
    return ApiProblem(500, "internal_error", "The gateway failed to answer this request. The error is in its log.")


def response_of(problem: ApiProblem, request_id: str) -> Response:
    """The answer."""
    error = {"message": problem.message, "code": problem.status, "type": problem.kind, "request_id": request_id}
    return Response({"error": error}, status=problem.status, headers=problem.headers)


def _flat(detail: Any, name: str = "") -> str:
    """What a serializer found wrong, as sentences that name the fields."""
    if isinstance(detail, dict):
        parts = [_flat(value, "" if key == "non_field_errors" else str(key)) for key, value in detail.items()]
        inner = " ".join(part for part in parts if part)
        return f"{name}: {inner}" if name and inner else inner
    if isinstance(detail, list):
        return " ".join(part for part in (_flat(value, name) for value in detail) if part)
    return f"{name}: {detail}" if name else str(detail)

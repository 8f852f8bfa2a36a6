"""What the management API reads and answers: fields, their bounds, and their words in the OpenAPI document."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec
from rest_framework import serializers

from tokens.api.errors import invalid

MOST_ROWS = 1_000
USUAL_ROWS = 100
MOST_ID = 2**63 - 1


class Strict(serializers.Serializer[Any]):
    """Fields of a query or of a body; one that isn't known is refused, since it was meant to do something."""

    def to_internal_value(self, data: Any) -> Any:
        """Read, or raise ValidationError."""
        if isinstance(data, Mapping):
            unknown = sorted(set(data) - set(self.fields))
            if unknown:
                known = ", ".join(self.fields)
                raise serializers.ValidationError(
                    {str(unknown[0])[:100]: f"There is no such field. There are: {known}."}
                )
        return super().to_internal_value(data)


class Paged(Strict):
    """A query that is answered page by page."""

    limit = serializers.IntegerField(
        min_value=1, max_value=MOST_ROWS, default=USUAL_ROWS, help_text="How many a page holds, at most."
    )
    cursor = serializers.CharField(
        max_length=2_000, default="", allow_blank=True, help_text="`next` of the page before. Empty: the first page."
    )


class TokenQuery(Paged):
    """Which tokens to list."""

    tenant = serializers.SlugField(max_length=63, default="", help_text="Only this tenant's, by its short name.")
    user = serializers.EmailField(default="", help_text="Only those of this member.")
    name = serializers.CharField(max_length=100, default="", help_text="Only those of exactly this name.")
    status = serializers.ChoiceField(choices=["active", "revoked"], default="", help_text="Empty: both.")


class RevokeQuery(Strict):
    """Why a token is revoked."""

    reason = serializers.CharField(
        max_length=200, default="", allow_blank=True, help_text="Kept with the token, for whoever asks later."
    )


class TokenRequest(Strict):
    """A token to issue."""

    tenant = serializers.SlugField(
        max_length=63, default="", help_text="Its tenant's short name. A key of one tenant needn't say it."
    )
    user = serializers.EmailField(max_length=254, help_text="Whose it is; added as a member if there is none.")
    name = serializers.CharField(max_length=100, help_text="What it is for.")
    expires = serializers.CharField(
        max_length=50,
        default="",
        allow_blank=True,
        help_text="`90d`, `12h`, or a date or time such as `2027-01-31`; without an offset it is the tenant's. "
        "Empty: it doesn't expire.",
    )
    networks = serializers.ListField(
        child=serializers.CharField(max_length=50),
        default=list,
        max_length=100,
        help_text="Client networks that may use it, such as `203.0.113.0/24`. Empty: all.",
    )
    limits = serializers.ListField(
        child=serializers.CharField(max_length=60),
        default=list,
        max_length=20,
        help_text="Such as `images:500/day`, `requests:60/minute:burst=10`, `concurrent:8`.",
    )
    usual_limits = serializers.BooleanField(
        default=True,
        help_text="Where `limits` says nothing: start with what the tenant's plan gives to each new token.",
    )
    model = serializers.CharField(
        max_length=100,
        default="",
        allow_blank=True,
        help_text="The model that answers its calls. Empty: the tenant's.",
    )


class TokenAnswer(serializers.Serializer[Any]):
    """A token. Its secret is never part of it."""

    id = serializers.IntegerField()
    name = serializers.CharField()
    tenant = serializers.CharField()
    user = serializers.CharField()
    status = serializers.ChoiceField(choices=["active", "expired", "revoked"])
    first_characters = serializers.CharField(allow_blank=True, help_text="Of its current secret.")
    networks = serializers.ListField(child=serializers.CharField())
    limits = serializers.ListField(child=serializers.CharField())
    model = serializers.CharField(allow_blank=True, help_text="Empty: the tenant's.")
    created_at = serializers.DateTimeField()
    created_by = serializers.CharField(allow_blank=True)
    expires_at = serializers.DateTimeField(allow_null=True)
    last_used_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)
    revoke_reason = serializers.CharField(allow_blank=True)


class IssuedToken(TokenAnswer):
    """A token that was just issued, with its secret: keep it, it can't be shown again."""

    secret = serializers.CharField(
        allow_null=True,
        help_text="What clients send as `X-Proxy-Token`. null: this repeats a request whose secret has ended since.",
    )
    in_effect = serializers.BooleanField(
        help_text="false: the gateway's admission store did not answer; the token works as soon as it is back."
    )


class TokenPage(serializers.Serializer[Any]):
    """A page of tokens, newest first."""

    tokens = TokenAnswer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The `cursor` of the next page; null: this is the last.")


class ErrorDetail(serializers.Serializer[Any]):
    """What went wrong."""

    message = serializers.CharField(help_text="For people.")
    code = serializers.IntegerField(help_text="The HTTP status.")
    type = serializers.CharField(help_text="For programs, such as `invalid_request`.")
    request_id = serializers.CharField(help_text="Names the request in the gateway's log.")


class ApiErrorAnswer(serializers.Serializer[Any]):
    """Every error has this shape."""

    error = ErrorDetail()


ERRORS: dict[int, type[ApiErrorAnswer]] = dict.fromkeys((400, 401, 403, 404, 413, 429, 500, 503), ApiErrorAnswer)
WRITE_ERRORS: dict[int, type[ApiErrorAnswer]] = {**ERRORS, **dict.fromkeys((415, 422), ApiErrorAnswer)}


def read(form: type[Strict], data: Any) -> dict[str, Any]:
    """The fields of a request. Raises ValidationError."""
    if not isinstance(data, Mapping):
        raise invalid("The body must be a JSON object.")
    reader = form(data=data)
    reader.is_valid(raise_exception=True)
    found: dict[str, Any] = reader.validated_data
    return found


def make_cursor(value: object) -> str:
    """A place in a list, as text for a URL; opaque to clients."""
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")


def read_cursor(text: str, form: Any) -> Any:
    """The place, of the type `form`. Raises ApiProblem for what `make_cursor` didn't make."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=form)
    except (binascii.Error, msgspec.MsgspecError, ValueError):
        raise invalid("cursor: It must be `next` of the page before.") from None

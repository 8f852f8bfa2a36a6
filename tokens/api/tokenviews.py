"""/api/tokens: issuing, listing and revoking proxy tokens for automation."""

from collections.abc import Sequence
from typing import Any

from django.db.models import QuerySet
from django.http import Http404
from django.utils.timezone import now
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from tokens import directory, discretion, stopping
from tokens.api.apiview import ApiView
from tokens.api.errors import invalid
from tokens.api.forms import (
    ERRORS,
    WRITE_ERRORS,
    IssuedToken,
    RevokeQuery,
    TokenAnswer,
    TokenPage,
    TokenQuery,
    TokenRequest,
    make_cursor,
    read,
    read_cursor,
)
from tokens.api.provisioning import Caller, provision
from tokens.apikeyrow import ApiScope
from tokens.models import ProxyToken, TokenStatus

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="1 to 255 visible ASCII characters. A repeat within 24 hours returns the same token and secret, and "
    "issues none; another body under the same key is 422.",
)


def token_answer(token: ProxyToken, created_by: str) -> dict[str, Any]:
    """A token as the API tells it. Its tenant, member, secrets and limits should have been fetched."""
    secrets = list(token.secrets.all())
    current = next((secret for secret in secrets if secret.ended_at is None and secret.accepted_until is None), None)
    expired = token.expires_at is not None and token.expires_at <= now()
    return {
        "id": token.pk,
        "name": token.name,
        "tenant": token.tenant.slug,
        "user": token.member.user.email,
        "status": "expired" if expired and token.status == TokenStatus.ACTIVE else token.status,
        "first_characters": current.shown if current else "",
        "networks": token.networks,
        "limits": [str(limit) for limit in token.limits.all()],
        "model": token.model,
        "created_at": token.created_at,
        "created_by": created_by,
        "expires_at": token.expires_at,
        "last_used_at": max((secret.last_used_at for secret in secrets if secret.last_used_at), default=None),
        "revoked_at": token.revoked_at,
        "revoke_reason": token.revoke_reason,
    }


class TokenView(ApiView):
    """What both paths share: the tokens that the key opens."""

    scope = ApiScope.TOKENS_WRITE

    def tokens(self) -> QuerySet[ProxyToken]:
        """Those of its tenant, or all."""
        tokens = ProxyToken.objects.select_related("tenant", "member__user").prefetch_related("secrets", "limits")
        return tokens if self.key.tenant_id is None else tokens.filter(tenant=self.key.tenant_id)

    def answers(self, tokens: Sequence[ProxyToken]) -> list[dict[str, Any]]:
        """What is told of them; by whom they were issued, to a key of their tenant as to its people."""
        names = {token.created_by for token in tokens}
        told = {name: name for name in names}
        if self.key.tenant_id is not None:
            told = discretion.names_told(names, self.key.tenant_id)
        return [token_answer(token, told[token.created_by]) for token in tokens]

    def find(self, token_id: int) -> ProxyToken:
        """One of them, or 404."""
        token = self.tokens().filter(pk=token_id).first()
        if token is None:
            raise Http404
        return token


class Tokens(TokenView):
    """The list, and issuing."""

    @extend_schema(
        operation_id="list_tokens", summary="List tokens", parameters=[TokenQuery], responses={200: TokenPage, **ERRORS}
    )
    def get(self, request: Request) -> Response:
        """Tokens, newest first, page by page. Without their secrets, which nobody has."""
        asked = read(TokenQuery, request.query_params.dict())
        tenant = self.tenant_of(asked["tenant"])
        tokens = self.tokens().order_by("-pk")
        if tenant is not None:
            tokens = tokens.filter(tenant=tenant)
        if asked["user"]:
            tokens = tokens.filter(member__user__email=asked["user"].strip().lower())
        for name in ("name", "status"):
            if asked[name]:
                tokens = tokens.filter(**{name: asked[name]})
        if asked["cursor"]:
            tokens = tokens.filter(pk__lt=read_cursor(asked["cursor"], int))
        page = list(tokens[: asked["limit"] + 1])
        more, page = len(page) > asked["limit"], page[: asked["limit"]]
        return Response({"tokens": self.answers(page), "next": make_cursor(page[-1].pk) if more else None})

    @extend_schema(
        operation_id="issue_token",
        summary="Issue a token",
        request=TokenRequest,
        parameters=[IDEMPOTENCY_KEY],
        responses={201: IssuedToken, **WRITE_ERRORS},
    )
    def post(self, request: Request) -> Response:
        """Issue a token. The answer holds its secret, this once: send an `Idempotency-Key`, and a lost answer can be
        asked for again.
        """
        wanted = read(TokenRequest, request.data)
        tenant = self.tenant_of(wanted["tenant"])
        if tenant is None:
            raise invalid("tenant: This key opens all tenants, so say whose token it is.")
        self.require_active(tenant)
        caller = Caller(self.key, self.secret, self.by())
        issued = provision(caller, tenant, wanted, request.headers.get("Idempotency-Key"))
        token = self.find(issued.token.pk)
        answer = {**self.answers([token])[0], "secret": issued.secret, "in_effect": not directory.is_waiting(token)}
        headers = {"Location": f"/api/tokens/{token.pk}"}
        if issued.repeated:
            headers["Idempotent-Replayed"] = "true"
        return Response(answer, status=201, headers=headers)


class OneToken(TokenView):
    """One token."""

    @extend_schema(operation_id="get_token", summary="Look at a token", responses={200: TokenAnswer, **ERRORS})
    def get(self, request: Request, token_id: int) -> Response:
        """A token, without its secret."""
        return Response(self.answers([self.find(token_id)])[0])

    @extend_schema(
        operation_id="revoke_token",
        summary="Revoke a token",
        parameters=[RevokeQuery],
        responses={204: None, **ERRORS},
    )
    def delete(self, request: Request, token_id: int) -> Response:
        """Revoke a token for good: once this has answered, no call with it is admitted. A repeat changes nothing."""
        reason = read(RevokeQuery, request.query_params.dict())["reason"]
        token = self.find(token_id)
        self.require_active(token.tenant)
        stopping.revoke(token.pk, self.by()[:254], reason)
        return Response(status=204)

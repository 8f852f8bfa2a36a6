"""What every view of the management API does first: who calls, how often, and whether the key opens this."""

import logging
import time
from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponseBase
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import JSONParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from config import addresses
from config.requestids import make_request_id
from config.throttling import count_try
from tokens import actors, apikeys
from tokens.actors import Actor, Way
from tokens.api.errors import ApiProblem, not_allowed, problem_of, response_of
from tokens.apikeyrow import ApiScope
from tokens.audit import AGENT_CHARACTERS
from tokens.models import ApiKey, Status, Tenant

BODY_LIMIT = 64 * 1024  # bytes
NO_KEY = "Send a key of the management API as Authorization: Bearer gemf_…; this one is missing, unknown or ended."

logger = logging.getLogger(__name__)


class JsonOnly(BaseContentNegotiation):
    """JSON, whatever the client says that it accepts."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        """The one that reads the body's type, if there is one."""
        return next((parser for parser in parsers if request.content_type.startswith(parser.media_type)), None)

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        """The only one."""
        return renderers[0], renderers[0].media_type


class ApiView(APIView):
    """A view of the management API. `scope` is what a key must have to call it."""

    scope: ClassVar[ApiScope]
    parser_classes = (JSONParser,)
    renderer_classes = (JSONRenderer,)
    content_negotiation_class = JsonOnly
    metadata_class = None

    key: ApiKey  # from `check_permissions` on
    secret: str  # the key's, as it was presented

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Answer, as the key that is presented; one line in the log."""
        begun = time.perf_counter()
        self.request_id = make_request_id()
        with actors.found_by(self._actor):
            response: HttpResponseBase = super().dispatch(request, *args, **kwargs)
        response.headers["X-Request-Id"] = self.request_id
        response.headers["Cache-Control"] = "no-store"
        key = getattr(self, "key", None)
        told = {"request_id": self.request_id, "route": getattr(request.resolver_match, "url_name", "")}
        told |= {"method": request.method or "", "status": response.status_code, "api_key": key.pk if key else None}
        logger.info("management API", extra={**told, "ms": round((time.perf_counter() - begun) * 1000, 2)})
        return response

    def handle_exception(self, exc: Exception) -> Response:
        """Every error in the one shape."""
        response = response_of(problem_of(exc), self.request_id)
        response.exception = True
        return response

    def check_permissions(self, request: Request) -> None:
        """Find the key and judge it. Raises ApiProblem: 401, 403, 413 or 429."""
        if _body_size(request._request) > BODY_LIMIT:
            raise ApiProblem(413, "too_large", f"The body may have {BODY_LIMIT // 1024} KB.")
        address = self._address()
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        key = apikeys.find(presented.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            self._count("api-failed-authentication", addresses.subscriber(address), settings.FAILED_AUTHENTICATION_RATE)
            raise ApiProblem(401, "invalid_api_key", NO_KEY, {"WWW-Authenticate": "Bearer"})
        self.key, self.secret = key, presented.strip()
        self._count("api", f"key {key.pk}", settings.API_RATE)
        if self.scope not in key.scopes:
            raise not_allowed(f"This key may not do that: it lacks {self.scope.value}.")
        apikeys.note_use(key, address)

    def tenant_of(self, slug: str) -> Tenant | None:
        """The tenant that a request names, within what the key opens; None: all tenants, and the key opens them.

        Raises ApiProblem for another tenant than the key's, whether there is one or not, and for an unknown one.
        """
        bound = self.key.tenant
        if bound is not None:
            if slug and slug != bound.slug:
                raise not_allowed(f"This key opens the tenant {bound.slug} only.")
            return bound
        if not slug:
            return None
        tenant = Tenant.objects.filter(slug=slug).first()
        if tenant is None:
            raise ApiProblem(404, "not_found", f"There is no tenant {slug}.")
        return tenant

    def require_active(self, tenant: Tenant) -> None:
        """Refuse a change for a suspended tenant, unless the key is the platform's: so it is for people, too."""
        if self.key.tenant_id is not None and tenant.status != Status.ACTIVE:
            raise not_allowed(f"The tenant {tenant.slug} is suspended.")

    def by(self) -> str:
        """Who acts, for what they change."""
        return self.key.actor

    def _actor(self) -> Actor:
        agent = self.request.META.get("HTTP_USER_AGENT", "")[:AGENT_CHARACTERS]
        known = getattr(self, "key", None) is not None
        name = self.by() if known else "an unknown API key"
        platform = known and self.key.tenant_id is None
        return Actor(name, Way.API.value, None, self._address(), agent, platform)

    def _address(self) -> str:
        meta = self.request.META
        peer, forwarded = meta.get("REMOTE_ADDR", ""), meta.get("HTTP_X_FORWARDED_FOR")
        address = addresses.parse(addresses.client_address(peer, forwarded, settings.TRUSTED_PROXIES))
        return str(address or "")

    def _count(self, group: str, key: str, rate: str) -> None:
        wait = count_try(self.request._request, group, key, rate)
        if wait:
            text = f"Too many requests: this is limited to {rate}. Try again in {wait} s."
            raise ApiProblem(429, "rate_limited", text, {"Retry-After": str(wait)})


def _body_size(request: HttpRequest) -> int:
    """In bytes; of a body that comes in chunks, too, which no header tells and DRF would take for empty."""
    if not request.META.get("CONTENT_LENGTH"):
        try:
            request.META["CONTENT_LENGTH"] = str(len(request.body))
        except RequestDataTooBig:
            return BODY_LIMIT + 1
    return int(request.META["CONTENT_LENGTH"])


class NothingHere(ApiView):
    """Any other path below /api/."""

    schema = None

    def check_permissions(self, request: Request) -> None:
        """Nobody has to say who they are."""
        raise ApiProblem(404, "not_found", "There is nothing at this path. The API is described at /api/docs.")

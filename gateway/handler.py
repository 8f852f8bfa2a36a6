"""The lean ASGI handler for the API's paths.

Django still makes the request, resolves the URL and runs the view. Left out is what only serves views that use the
ORM: the request signals (a thread hop each), the body spooled to a file, a task a request that waits for the client
to leave, and the middleware, whose work for the API is done here: request ids, CORS, the request log and metrics.
"""

import gc
import logging
import re
import time
from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.http import HttpResponse
from django.urls import Resolver404, ResolverMatch, get_resolver

from gateway import metrics, requestlog
from gateway.errors import ApiError, InvalidRequest, NotFound
from gateway.headers import origin_headers, preflight_headers
from gateway.inflight import Receive
from gateway.observing import observe
from gateway.replies import Reply, json_reply, reply_of
from gateway.requests import LeanRequest, Send
from gateway.runtime import Runtime

logger = logging.getLogger(__name__)
LONGEST_METHOD = 20  # characters in the log; a client may send as many as a header may have
CLIENT_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,200}")


class LeanHandler:
    """An ASGI application for the paths of gateway.urls; it owns the process's runtime."""

    runtime: Runtime  # from the server's start-up on

    async def lifespan(self, receive: Receive, send: Send) -> None:
        """Start and stop the runtime with the server."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.runtime = Runtime()
                await self.runtime.start()
                _calm_collector()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.runtime.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        begun = time.perf_counter()
        request = LeanRequest(scope, receive, self.runtime)
        reply = await self._respond(request)
        self._finish_headers(request, reply)
        head = {
            "type": "http.response.start",
            "status": reply.status,
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()],
        }
        await send(head)
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else reply.body})
        _record(request, reply, time.perf_counter() - begun)

    async def _respond(self, request: LeanRequest) -> Reply:
        try:
            match = _resolve(request.path_info)
        except Resolver404:
            return _error(request, NotFound("There is nothing at this path."))
        request.resolver_match = match
        request.route = match.url_name or "unknown"
        if request.method == "OPTIONS":
            return self._preflight(request, match.func)
        try:
            response: HttpResponse | Reply = await match.func(request, *match.args, **match.kwargs)
        except ApiError as exc:
            return _error(request, exc)
        except SuspiciousOperation:  # a query of over a thousand fields, say
            return _error(request, InvalidRequest("The gateway can't read this request."))
        except Exception:
            logger.exception("a request failed", extra={"request_id": request.request_id})
            return _error(request, ApiError("The gateway failed to answer this request."))
        return response if isinstance(response, Reply) else reply_of(response)

    def _preflight(self, request: LeanRequest, view: Any) -> Reply:
        """OPTIONS carries no token, so it is answered from the origins of all tenants together."""
        handlers = getattr(view, "view_class", None)
        methods = ", ".join(
            ["POST", "OPTIONS"] if handlers and hasattr(handlers, "post") else ["GET", "HEAD", "OPTIONS"]
        )
        headers = {"Allow": methods}
        if request.origin and self._allows(request.origin):
            headers |= preflight_headers(request.origin, methods)
        return Reply(204, b"", headers)

    def _allows(self, origin: str) -> bool:
        catalog = self.runtime.catalog
        return catalog is not None and catalog.allows(origin)

    def _finish_headers(self, request: LeanRequest, reply: Reply) -> None:
        headers = reply.headers
        headers["X-Request-Id"] = request.request_id
        theirs = request.META.get("HTTP_X_REQUEST_ID", "")
        if theirs and CLIENT_REQUEST_ID.fullmatch(theirs):
            headers["X-Client-Request-Id"] = theirs
        if request.unread and request.scope["http_version"].startswith("1"):
            # Otherwise a client sends its next request over a connection that the server is about to close.
            headers["Connection"] = "close"
        if "Content-Length" not in headers and reply.status != 204:
            headers["Content-Length"] = str(len(reply.body))
        if request.origin and request.method != "OPTIONS" and "Access-Control-Allow-Origin" not in headers:
            known = request.known
            if known.allows_origin(request.origin) if known else self._allows(request.origin):
                headers |= origin_headers(request.origin)


_matches: dict[str, ResolverMatch] = {}


def _resolve(path: str) -> ResolverMatch:
    """What Django's resolver finds, remembered for paths without a variable part. Raises Resolver404."""
    match = _matches.get(path)
    if match is None:
        match = get_resolver("gateway.urls").resolve(path)
        if not match.args and not match.kwargs:
            _matches[path] = match
    return match


def _calm_collector() -> None:
    """Set aside what start-up made; otherwise the cyclic collector walks all of Django every few hundred calls.

    A call leaves hardly any cycle behind, so the collector may look less often, too: together 5 % of a call's CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _error(request: LeanRequest, error: ApiError) -> Reply:
    request.error, request.error_type = error, error.type
    return json_reply(error.content(request.request_id), error.status, error.headers)


def _record(request: LeanRequest, reply: Reply, seconds: float) -> None:
    metrics.request_finished(request.route, reply.status, request.error_type, seconds)
    if request.route in {"healthz", "readyz", "metrics"}:
        return
    if request.route == "generate-image" and request.method == "POST":
        observe(request, reply.status, seconds)
    call, known = request.call, request.known
    requestlog.write(
        request_id=request.request_id,
        route=request.route,
        method=(request.method or "")[:LONGEST_METHOD],
        status=reply.status,
        ms=seconds * 1000,
        type=request.error_type,
        address=request.client_address,
        tenant=known.tenant if known else None,
        token=known.token if known else None,
        upstream_ms=call.upstream_ms if call else None,
        model=call.model.name if call else "",
        n=call.asked.n if call else None,
        tokens=call.charged if call else None,
        client_request_id=reply.headers.get("X-Client-Request-Id", ""),
    )

"""Django REST framework's view life cycle, natively asynchronous.

`rest_framework.views.APIView` can't be awaited, and running it in threads would serialise authentication. This keeps
its order (request, handler, exception, final response) on the event loop, and renders before returning: an
unrendered response would cost a thread hop.
"""

import logging
from typing import Any, cast

import msgspec
from django.http import HttpRequest, HttpResponse
from rest_framework.renderers import BaseRenderer
from rest_framework.response import Response
from rest_framework.views import APIView

from gateway.errors import ApiError, MethodNotAllowed
from gateway.requests import LeanRequest

logger = logging.getLogger(__name__)


class JSONRenderer(BaseRenderer):
    """JSON by msgspec."""

    media_type = "application/json"
    format = "json"
    charset = None

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None) -> bytes:
        """`data` as compact UTF-8."""
        return msgspec.json.encode(data)


class AsyncAPIView(APIView):
    """A view whose handlers are coroutines and whose errors are ApiErrors."""

    view_is_async = True
    renderer_classes = [JSONRenderer]
    authentication_classes = []
    permission_classes = []
    throttle_classes = []

    async def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:  # type: ignore[override]
        """Answer one request; an ApiError becomes its answer, anything else is logged and answered with 500."""
        self.args, self.kwargs = args, kwargs
        self.request = rest_request = self.initialize_request(request, *args, **kwargs)
        rest_request.accepted_renderer = JSONRenderer()  # nothing is negotiated, whatever the client says it accepts
        rest_request.accepted_media_type = JSONRenderer.media_type
        self.headers = {}
        name = (request.method or "").lower()
        try:
            if name not in self.http_method_names or not hasattr(self, name):
                raise MethodNotAllowed(", ".join(self.allowed_methods))
            response = await getattr(self, name)(rest_request, *args, **kwargs)
        except Exception as exc:
            response = self.handle_exception(exc)
        return self.finalize_response(rest_request, response, *args, **kwargs).render()  # type: ignore[no-any-return]

    def handle_exception(self, exc: Exception) -> Response:
        """The answer for an error; the one place where it gets its shape."""
        error = exc if isinstance(exc, ApiError) else None
        if error is None:
            logger.error("a view failed", exc_info=exc)
            error = ApiError("The gateway failed to answer this request.")
        request = cast(LeanRequest, self.request._request)
        request.error_type = error.type
        return Response(error.content(request.request_id), error.status, headers=error.headers)

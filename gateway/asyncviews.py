"""Django REST framework's view life cycle, natively asynchronous.

`rest_framework.views.APIView` can't be awaited, and running it in threads would serialise authentication. This keeps
its order (request, handler, exception, final response) on the event loop. Nothing is negotiated, and what a handler
returns is rendered already: a response of the framework's would be rendered, copied and checked again.
"""

import logging
from collections.abc import Callable
from typing import Any, cast

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.views import View
from rest_framework.request import Request
from rest_framework.views import APIView

from gateway.errors import ApiError, MethodNotAllowed
from gateway.replies import Reply, json_reply
from gateway.requests import LeanRequest

logger = logging.getLogger(__name__)


class AsyncAPIView(APIView):
    """A view whose handlers are coroutines that return replies, and whose errors are ApiErrors."""

    view_is_async = True
    authentication_classes = []
    permission_classes = []
    throttle_classes = []

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., HttpResponseBase]:  # type: ignore[override]
        """Django's view function, without the framework's wrapper: it exempts from a middleware that isn't there."""
        made: Callable[..., HttpResponseBase] = View.as_view.__func__(cls, **initkwargs)  # type: ignore[attr-defined]
        return made

    async def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Reply:  # type: ignore[override]
        """Answer one request; an ApiError becomes its answer, anything else is logged and answered with 500."""
        self.request = rest_request = self.initialize_request(request, *args, **kwargs)
        name = (request.method or "").lower()
        try:
            if name not in self.http_method_names or not hasattr(self, name):
                raise MethodNotAllowed(", ".join(self.allowed_methods))
            return cast(Reply, await getattr(self, name)(rest_request, *args, **kwargs))
        except Exception as exc:
            return self.handle_exception(exc)

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """The framework's request, without parsers, whose context would refer to it: no garbage to be collected."""
        made = Request(request)
        made.parser_context = {}
        return made

    def handle_exception(self, exc: Exception) -> Reply:  # type: ignore[override]
        """The answer for an error; the one place where it gets its shape."""
        error = exc if isinstance(exc, ApiError) else None
        if error is None:
            logger.error("a view failed", exc_info=exc)
            error = ApiError("The gateway failed to answer this request.")
        request = cast(LeanRequest, self.request._request)
        request.error, request.error_type = error, error.type
        return json_reply(error.content(request.request_id), error.status, error.headers)

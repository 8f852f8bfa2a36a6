"""Headers that Django has no setting for, on every answer of the admin."""

from collections.abc import Awaitable, Callable

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

Answer = HttpResponseBase | Awaitable[HttpResponseBase]


def add_headers(response: HttpResponseBase) -> HttpResponseBase:
    """Take what no page needs from the browser, and its answers from other origins' pages."""
    response.setdefault("Permissions-Policy", settings.PERMISSIONS_POLICY)
    response.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    return response


@sync_and_async_middleware
def browser_headers(get_response: Callable[[HttpRequest], Answer]) -> Callable[[HttpRequest], Answer]:
    """The middleware, which makes no thread where none is needed."""
    if iscoroutinefunction(get_response):

        async def answer_async(request: HttpRequest) -> HttpResponseBase:
            return add_headers(await get_response(request))

        return answer_async

    def answer(request: HttpRequest) -> HttpResponseBase:
        return add_headers(get_response(request))  # type: ignore[arg-type]

    return answer

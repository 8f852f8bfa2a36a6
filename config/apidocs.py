"""The OpenAPI document of the management API, and the page that shows it.

The image endpoint has a document of its own (docs/openapi.json): it isn't served by the views that this one is made
from. The page is Swagger UI from files of our own, without anything inline, as the Content-Security-Policy wants it.
"""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from drf_spectacular.renderers import OpenApiJsonRenderer
from drf_spectacular.views import SpectacularAPIView

DESCRIPTION = """\
For finance's own tools and for automation. Send a key of the management API, which a platform administrator or an
administrator of the tenant makes in the admin, or an operator with `manage.py key issue`, as
`Authorization: Bearer gemf_…`. Such a key opens no image call, and the tokens of image calls open nothing here.

Every error is `{"error": {"message", "code", "type", "request_id"}}`. Lists come page by page: send `next` of a page
as `cursor` of the following one until it is null. Each key may call as often as `API_RATE` allows; then 429 with
`Retry-After`.
"""
SETTINGS = {
    "TITLE": "Gem Heaven Gateway: management API",
    "DESCRIPTION": DESCRIPTION,
    "VERSION": "1",
    "OAS_VERSION": "3.1.1",
    "COMPONENT_SPLIT_REQUEST": True,
    "SECURITY": [{"apiKey": []}],
    "APPEND_COMPONENTS": {"securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}}},
}


class Document(SpectacularAPIView):
    """The document, as JSON; itself it isn't part of it."""

    schema = None
    renderer_classes = [OpenApiJsonRenderer]
    custom_settings = SETTINGS


def page(request: HttpRequest) -> HttpResponse:
    """The page."""
    return render(request, "api/docs.html")

"""The ASGI application: API paths go to the lean handler, everything else to Django's own."""

import os
from typing import Any

import django
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from gateway.handler import LeanHandler  # noqa: E402  (models need the set-up above)
from gateway.requests import Receive, Send  # noqa: E402

API_PATHS = ("/wp-json/", "/v1/", "/images/")
OPERATION_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})

lean = LeanHandler()
stock = get_asgi_application()


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Route one ASGI scope."""
    if scope["type"] == "lifespan":
        await lean.lifespan(receive, send)
    elif scope["path"].startswith(API_PATHS) or scope["path"] in OPERATION_PATHS:
        await lean(scope, receive, send)
    else:
        await stock(scope, receive, send)  # type: ignore[arg-type]

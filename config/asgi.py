"""The ASGI application: API paths go to the lean handler, everything else to Django's own."""

import multiprocessing
import os
import signal
import sys
from typing import Any

import django
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured

from config import checks

if multiprocessing.parent_process() is not None:
    # A worker that granian forked has the main process's handlers until its loop sets its own, and would ignore a stop
    # while it imports what follows. It has no calls yet, so the signal may simply end it.
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, signal.SIG_DFL)

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
try:
    django.setup()
    checks.refuse_unsafe()
except ImproperlyConfigured as refusal:
    sys.exit(f"The gateway doesn't start. {refusal}")

from config.bodies import bounded
from gateway.handler import LeanHandler
from gateway.inflight import Receive
from gateway.requests import Send

API_PATHS = ("/wp-json/", "/v1/", "/images/")
OPERATION_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})

lean = LeanHandler()
stock = bounded(get_asgi_application())


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Route one ASGI scope."""
    if scope["type"] == "lifespan":
        await lean.lifespan(receive, send)
    elif f"{scope['path']}/".startswith(API_PATHS) or scope["path"] in OPERATION_PATHS:
        await lean(scope, receive, send)
    else:
        await stock(scope, receive, send)

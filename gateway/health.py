"""Whether the process lives, and whether it can admit."""

import msgspec
from django.http import HttpRequest, HttpResponse


async def healthz(request: HttpRequest) -> HttpResponse:
    """``GET /healthz``: 200 while the process answers at all."""
    return HttpResponse(b'{"status":"ok"}', content_type="application/json")


async def readyz(request: HttpRequest) -> HttpResponse:
    """``GET /readyz``: 200 when calls can be admitted, else 503 and what isn't ready."""
    problems: dict[str, str] = request.runtime.problems()  # type: ignore[attr-defined]
    body = {"status": "not ready" if problems else "ready", "problems": problems}
    return HttpResponse(msgspec.json.encode(body), status=503 if problems else 200, content_type="application/json")

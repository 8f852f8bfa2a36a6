"""``GET /images/<day>/<file>``: serves kept images to whoever holds a signed URL, as nothing but images."""

import time

from django.http import HttpRequest, HttpResponse

from gateway.errors import MethodNotAllowed, NotAllowed, NotFound, UpstreamFailed
from gateway.images import StorageFailed, image_store

# An image may be shown anywhere, by any page, but never runs as a document of our origin.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Access-Control-Allow-Origin": "*",
}


async def image(request: HttpRequest, day: str, file: str) -> HttpResponse:
    """Answer with the image `day`/`file` when the query's `expires` and `signature` are ours and not past.

    Raises NotAllowed for a URL that isn't (any more), NotFound for an image that is deleted, MethodNotAllowed, and
    UpstreamFailed of type `storage_failed` when the disk refuses.
    """
    if request.method not in {"GET", "HEAD"}:
        raise MethodNotAllowed("GET, HEAD")
    store, name, now = image_store(), f"{day}/{file}", time.time()
    expires = request.GET.get("expires", "")
    if not store.check(name, expires, request.GET.get("signature", ""), now):
        raise NotAllowed("This image URL is not valid or has expired.")
    try:
        kept = await store.read(name)
    except StorageFailed as exc:
        raise UpstreamFailed("The image can't be read at the moment.", "storage_failed", False) from exc
    if kept is None:
        raise NotFound("There is no such image (any more).")
    answer = HttpResponse(kept.content if request.method == "GET" else b"", kept.media_type, headers=HEADERS)
    answer["Content-Length"] = str(len(kept.content))
    answer["Content-Disposition"] = f'inline; filename="{file}"'
    answer["Cache-Control"] = f"private, max-age={int(expires) - int(now)}, immutable"
    return answer

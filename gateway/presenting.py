"""Step 7: what a successful call is answered with."""

import datetime as dt
import time
from typing import Any

from gateway.calls import Call, Skeleton
from gateway.images import ImageStore
from tokens.admission.admission import Standing


def answer(skeleton: Skeleton, images: ImageStore) -> dict[str, Any]:
    """The body; stored images get URLs signed now, with `expires_at` (RFC 3339, UTC) beside them."""
    data: list[dict[str, str]] = []
    for name in skeleton.names:
        url, expires = images.url(name, time.time())
        moment = dt.datetime.fromtimestamp(expires, dt.UTC)
        data.append({"url": url, "expires_at": moment.strftime("%Y-%m-%dT%H:%M:%SZ")})
    data += ({"url": url} for url in skeleton.urls)
    return {
        "created": skeleton.created,
        "data": data,
        "output_format": skeleton.output_format,
        "usage": {"total_tokens": skeleton.total_tokens},
    }


def remaining_after(call: Call, skeleton: Skeleton) -> tuple[Standing, ...]:
    """The standings of the admission, with what settling gave back: tokens and images below the estimate."""
    back = {
        "tokens": call.estimate - skeleton.total_tokens,
        "images": call.asked.n - len(skeleton.names) - len(skeleton.urls),
        "concurrent": 1,
    }
    return tuple(
        [
            Standing(scoped, min(max(remaining + units, 0), scoped.most), reset)
            if (units := back.get(scoped.gives_back))
            else Standing(scoped, remaining, reset)
            for scoped, remaining, reset in call.standings
        ]
    )

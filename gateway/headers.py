"""Response headers that tell a client what is left, and browsers what they may read.

`RateLimit-Policy` and `RateLimit` follow draft-ietf-httpapi-ratelimit-headers-10 (structured fields, RFC 9651).
"""

from collections.abc import Iterable, Sequence

from tokens.admission.admission import Standing
from tokens.admission.principal import ScopedLimit

PERIOD_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "month": 2_592_000}
PERIOD_ORDER = ("", "second", "minute", "hour", "day", "month", "total")
METRICS = ("requests", "images", "tokens")
EXPOSED = ", ".join(
    [
        "X-Request-Id",
        "X-Client-Request-Id",
        "Retry-After",
        "RateLimit",
        "RateLimit-Policy",
        *(f"X-RateLimit-{part}-{metric.title()}" for part in ("Limit", "Remaining", "Reset") for metric in METRICS),
        "Idempotent-Replayed",
        "X-Ignored-Fields",
    ]
)
ALLOWED_REQUEST_HEADERS = "content-type, x-proxy-token, authorization, idempotency-key, x-request-id"
PREFLIGHT_SECONDS = 600


def limit_name(scoped: ScopedLimit) -> str:
    """The name of a limit in headers, such as ``tenant-images-day``."""
    limit = scoped.limit
    return "-".join(filter(None, (scoped.scope, limit.metric, limit.period)))


def _policy(scoped: ScopedLimit) -> str:
    limit = scoped.limit
    unit = "" if limit.metric == "requests" else f';qu="{limit.metric}"'
    if limit.metric == "concurrent":
        unit = ';qu="concurrent-requests"'
    window = PERIOD_SECONDS.get(limit.period)
    return f'"{limit_name(scoped)}";q={limit.amount}{unit}' + (f";w={window}" if window else "")


def _state(standing: Standing) -> str:
    reset = f";t={standing.reset}" if standing.reset >= 0 else ""
    return f'"{limit_name(standing.scoped)}";r={standing.remaining}{reset}'


def _tightest(standings: Iterable[Standing], metric: str) -> Standing | None:
    of_metric = [standing for standing in standings if standing.scoped.limit.metric == metric]
    if not of_metric:
        return None
    return min(
        of_metric,
        key=lambda standing: (
            standing.remaining / standing.scoped.limit.amount,
            PERIOD_ORDER.index(standing.scoped.limit.period),
        ),
    )


def rate_limit_headers(standings: Sequence[Standing]) -> dict[str, str]:
    """Every limit in the structured fields, and for each metric its tightest in `X-RateLimit-*`."""
    if not standings:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join(_policy(standing.scoped) for standing in standings),
        "RateLimit": ", ".join(_state(standing) for standing in standings),
    }
    for metric in METRICS:
        standing = _tightest(standings, metric)
        if standing is not None:
            name = metric.title()
            headers[f"X-RateLimit-Limit-{name}"] = str(standing.scoped.limit.amount)
            headers[f"X-RateLimit-Remaining-{name}"] = str(standing.remaining)
            if standing.reset >= 0:
                headers[f"X-RateLimit-Reset-{name}"] = str(standing.reset)
    return headers


def origin_headers(origin: str) -> dict[str, str]:
    """For an answer to a page of an allowed origin."""
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED, "Vary": "Origin"}


def preflight_headers(origin: str, methods: str) -> dict[str, str]:
    """For the answer to a browser's preflight from an allowed origin."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": methods,
        "Access-Control-Allow-Headers": ALLOWED_REQUEST_HEADERS,
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }

"""Response headers that tell a client what is left, and browsers what they may read.

`RateLimit-Policy` and `RateLimit` follow draft-ietf-httpapi-ratelimit-headers-10 (structured fields, RFC 9651).
"""

from collections.abc import Sequence

from tokens.admission.admission import Standing

PERIOD_ORDER = {name: place for place, name in enumerate(("", "second", "minute", "hour", "day", "month", "total"))}
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


def rate_limit_headers(standings: Sequence[Standing]) -> dict[str, str]:
    """Every limit in the structured fields, and for each metric its tightest in `X-RateLimit-*`.

    The tightest has the smallest share left; of equals, the one of the shortest period.
    """
    if not standings:
        return {}
    policies, states = [], []
    tightest: dict[str, tuple[float, int, Standing]] = {}
    for standing in standings:
        scoped, remaining, reset = standing
        policies.append(scoped.policy)
        states.append(f'"{scoped.name}";r={remaining};t={reset}' if reset >= 0 else f'"{scoped.name}";r={remaining}')
        limit = scoped.limit
        rank = (remaining / limit.amount, PERIOD_ORDER[limit.period], standing)
        known = tightest.get(limit.metric)
        if known is None or rank[:2] < known[:2]:
            tightest[limit.metric] = rank
    headers = {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}
    for metric in METRICS:
        if metric in tightest:
            scoped, remaining, reset = tightest[metric][2]
            name = metric.title()
            headers[f"X-RateLimit-Limit-{name}"] = str(scoped.limit.amount)
            headers[f"X-RateLimit-Remaining-{name}"] = str(remaining)
            if reset >= 0:
                headers[f"X-RateLimit-Reset-{name}"] = str(reset)
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

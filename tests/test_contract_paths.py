"""404 and 405, and what browsers are told: preflights and the headers of answers to allowed origins."""

import json
import uuid
from collections.abc import Callable

import httpx
import pytest

from tests.conftest import PATH, Customer, Gateway
from tests.contract import SMALL, assert_error, assert_images, assert_request_id, elsewhere
from tests.processes import wait_until

METHODS = ["GET", "PUT", "PATCH", "DELETE", "TRACE", "BREW"]
UNKNOWN = [
    *("/wp-json", "/wp-json/", "/wp-json/my-proxy", "/wp-json/my-proxy/v1/", "/wp-json/my-proxy/v1/generate-images"),
    *(
        f"{PATH}//",
        f"{PATH}/x",
        PATH.replace("generate", "Generate"),
        PATH.replace("v1", "v2"),
        f"{PATH}%00",
        f"{PATH}%0a",
        f"{PATH}%2f%2f",
    ),
    *(
        "/wp-json/%ff%fe",
        "/wp-json/wp/v2/users",
        "/v1",
        "/v1/",
        "/v1/%2e%2e/admin/",
        "/v1/nothing",
        "/v1/é",
        "/images/a",
    ),
]
EXPOSED = {
    *("x-request-id", "retry-after", "ratelimit", "ratelimit-policy", "idempotent-replayed"),
    *(f"x-ratelimit-{a}-{b}" for a in ("limit", "remaining", "reset") for b in ("requests", "images", "tokens")),
}
ALLOWED = {"content-type", "x-proxy-token", "authorization", "idempotency-key"}


@pytest.fixture
def origin() -> str:
    """A web origin that no other test knows."""
    return f"https://{uuid.uuid4().hex}.example"


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
def test_an_unknown_path_gets_404(gateway: Gateway, method: str, path: str) -> None:
    answer = gateway.client.request(method, gateway.url + path, follow_redirects=False)
    assert_error(answer, 404, "not_found")


GOOD = {"message": "There is nothing.", "code": 404, "type": "not_found", "request_id": ""}


@pytest.mark.parametrize(
    "wrong",
    [{"code": "404"}, {"code": 400}, {"type": "notFound"}, {"message": " "}, {"message": None}, {"request_id": "x"}],
)
def test_control_another_shape_of_error_is_noticed(wrong: dict[str, object]) -> None:
    request_id = "01a20262-ab1f-71ed-b9f9-b7c48c7185c4"
    headers = {"X-Request-Id": request_id, "Content-Type": "application/json"}
    good = {**GOOD, "request_id": request_id}
    assert_error(httpx.Response(404, headers=headers, content=json.dumps({"error": good})), 404, "not_found")
    with pytest.raises(AssertionError):
        content = json.dumps({"error": {**good, **wrong}})
        assert_error(httpx.Response(404, headers=headers, content=content), 404, "not_found")
    with pytest.raises(AssertionError):
        html = {**headers, "Content-Type": "text/html"}
        assert_error(httpx.Response(404, headers=html, content="<html>Not Found</html>"), 404, "not_found")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", [PATH, f"{PATH}/"])
def test_another_method_gets_405_before_anything_else(gateway: Gateway, method: str, path: str) -> None:
    answer = gateway.client.request(method, gateway.url + path, content=b"x", headers={"X-Proxy-Token": "wrong"})
    assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST, OPTIONS"


def test_head_gets_405_without_a_body(gateway: Gateway) -> None:
    answer = gateway.client.head(gateway.url + PATH)
    assert (answer.status_code, answer.content) == (405, b"")
    assert answer.headers["allow"] == "POST, OPTIONS"
    assert_request_id(answer)


def test_method_override_headers_mean_nothing(gateway: Gateway, customer: Customer) -> None:
    answer = gateway.post(customer.secret, SMALL, **{"X-HTTP-Method-Override": "DELETE"})
    assert_images(answer)


def test_options_without_an_origin_says_what_is_allowed(gateway: Gateway) -> None:
    answer = gateway.client.options(gateway.url + PATH)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["allow"] == "POST, OPTIONS"
    assert "access-control-allow-origin" not in answer.headers
    assert_request_id(answer)


def preflight(gateway: Gateway, origin: str) -> dict[str, str]:
    asking = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-proxy-token",
    }
    answer = gateway.client.options(gateway.url + PATH, headers=asking)
    assert (answer.status_code, answer.content) == (204, b"")
    return dict(answer.headers)


def words(header: str) -> set[str]:
    return {word.strip().lower() for word in header.split(",")}


def test_a_preflight_is_answered_from_all_tenants_origins(
    gateway: Gateway, make_customer: Callable[..., Customer], origin: str
) -> None:
    make_customer(origins=[origin])
    allowed = "access-control-allow-origin"
    wait_until(lambda: allowed in preflight(gateway, origin), what="a process that knows of the origin")
    headers = preflight(gateway, origin)
    assert headers[allowed] == origin
    assert "post" in words(headers["access-control-allow-methods"])
    assert words(headers["access-control-allow-headers"]) >= ALLOWED
    assert "origin" in words(headers["vary"])
    assert "access-control-allow-credentials" not in headers


def test_the_post_enforces_the_tenants_own_origins(
    gateway: Gateway, make_customer: Callable[..., Customer], origin: str
) -> None:
    own, other = make_customer(origins=[origin]), make_customer(origins=["https://other.example"])
    answer = gateway.post(own.secret, SMALL, Origin=origin)
    assert_images(answer)
    assert answer.headers["access-control-allow-origin"] == origin
    assert words(answer.headers["access-control-expose-headers"]) >= EXPOSED
    refused = gateway.post(other.secret, SMALL, Origin=origin)
    assert "origin" in assert_error(refused, 403, "not_allowed")
    assert "access-control-allow-origin" not in refused.headers, "the page must not read another tenant's answer"
    assert_images(gateway.post(other.secret, SMALL)), "without a browser there is no origin to check"


@pytest.mark.parametrize("odd", ["null", "https://app.example.evil", "http://app.example", "https://app.example:444"])
def test_origins_are_compared_whole(gateway: Gateway, make_customer: Callable[..., Customer], odd: str) -> None:
    customer = make_customer(origins=["https://app.example"])
    assert_error(gateway.post(customer.secret, SMALL, Origin=odd), 403, "not_allowed")


def test_origins_are_compared_without_regard_to_case(gateway: Gateway, make_customer: Callable[..., Customer]) -> None:
    customer = make_customer(origins=["https://App.example"])
    assert_images(gateway.post(customer.secret, SMALL, Origin="https://app.example"))


def test_every_answer_to_an_allowed_origin_can_be_read_errors_too(
    gateway: Gateway, make_customer: Callable[..., Customer], origin: str
) -> None:
    customer = make_customer(origins=[origin])
    customer.limit("images:1/day")
    with elsewhere(gateway) as there:
        allowed = "access-control-allow-origin"
        wait_until(lambda: allowed in preflight(gateway, origin), what="a process that knows of the origin")
        answers = [
            there.post(customer.secret, b"{}", Origin=origin),
            there.post(customer.secret, SMALL, Origin=origin, **{"Content-Type": "text/plain"}),
            there.post(customer.secret, b" " * 300_000, Origin=origin),
            there.post(customer.secret, SMALL, Origin=origin),
            there.post(customer.secret, SMALL, Origin=origin),
            there.post("gem_wrong", SMALL, Origin=origin),
            there.post(None, SMALL, Origin=origin),
            there.client.get(there.url + PATH, headers={"Origin": origin}),
            there.client.post(f"{there.url}/v1/nothing", headers={"Origin": origin}),
        ]
    assert [answer.status_code for answer in answers] == [400, 415, 413, 200, 429, 403, 403, 405, 404]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == origin
        assert words(answer.headers["access-control-expose-headers"]) >= EXPOSED
        assert "origin" in words(answer.headers["vary"])

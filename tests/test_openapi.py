"""docs/openapi.json says what the gateway does: no constant, error, header or path drifts away from it."""

import copy
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from django.conf import settings as gateway_settings
from django.urls import get_resolver
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from schemathesis import Case, GenerationMode, checks
from schemathesis.core.failures import FailureGroup

from gateway import errors, headers, validation
from gateway.imageforms import MEDIA_TYPES
from tests.apidocument import CORS, DOCUMENT, GENERATE, IMAGE, problems, resolved
from tests.conftest import Customer, Gateway
from tests.contract import SMALL, elsewhere
from tests.test_readme import error_types
from tokens import issuing

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "90"))  # right requests; a third as many wrong ones
POST = DOCUMENT["paths"][GENERATE]["post"]
SCHEMAS = DOCUMENT["components"]["schemas"]


# The document itself


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object in the document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    for node in nodes(DOCUMENT):
        if "$ref" in node:
            assert resolved(node)
        if isinstance(node.get("schema"), dict):
            Draft202012Validator.check_schema(node["schema"])
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)
    names = [operation["operationId"] for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


def test_nothing_stands_in_it_unused() -> None:
    used = {node["$ref"] for node in nodes(DOCUMENT) if "$ref" in node}
    parts = DOCUMENT["components"]
    assert used == {
        f"#/components/{kind}/{name}" for kind in ("headers", "responses", "schemas") for name in parts[kind]
    }


def test_the_fields_are_those_of_the_validation() -> None:
    request = SCHEMAS["GenerationRequest"]
    fields = request["properties"]
    assert fields.keys() == validation.FIELDS | validation.IGNORED_FIELDS
    assert (request["required"], request["additionalProperties"]) == (["prompt"], False)
    assert fields["prompt"]["maxLength"] == validation.PROMPT_LIMIT
    assert fields["size"]["enum"] == list(validation.SIZES)
    assert fields["size"]["default"] == validation.DEFAULT_SIZE
    assert (fields["n"]["maximum"], SCHEMAS["Generation"]["properties"]["data"]["maxItems"]) == (
        validation.MOST_IMAGES,
    ) * 2
    assert f"{gateway_settings.BODY_LIMIT // 1024} KB" in POST["requestBody"]["description"]
    assert set(SCHEMAS["Generation"]["properties"]["output_format"]["enum"]) == MEDIA_TYPES.keys()
    image = DOCUMENT["paths"][IMAGE]["get"]["responses"]["200"]
    assert image["content"].keys() == set(MEDIA_TYPES.values())


def documented_errors() -> set[tuple[int, str]]:
    """Status and type of every error in the document."""
    found = set()
    for response in DOCUMENT["components"]["responses"].values():
        fields = response["content"]["application/json"]["schema"]["allOf"][1]["properties"]["error"]["properties"]
        found |= {(fields["code"]["const"], name) for name in fields["type"]["enum"]}
    return found


def test_the_errors_are_those_of_the_tree() -> None:
    assert documented_errors() == error_types()


def test_the_headers_are_those_that_browsers_may_read() -> None:
    documented = DOCUMENT["components"]["headers"].keys()
    assert documented - set(headers.EXPOSED.split(", ")) == {"x-should-retry", "Allow"}
    assert set(headers.EXPOSED.split(", ")) <= documented
    sent = {parameter["name"].lower() for parameter in POST["parameters"]}
    schemes = {"x-proxy-token", "authorization"}
    assert sent | schemes | {"content-type"} == set(headers.ALLOWED_REQUEST_HEADERS.split(", "))


def test_every_path_of_the_api_is_in_it() -> None:
    filled = {path.replace("{day}", "2026-11-22").replace("{file}", "a.png") for path in DOCUMENT["paths"]}
    served = {getattr(pattern, "name", None) for pattern in get_resolver("gateway.urls").url_patterns}
    assert {get_resolver("gateway.urls").resolve(path).url_name for path in filled} == served


# Real answers


@pytest.fixture(scope="module")
def answers(gateway: Gateway, django_db_blocker: Any) -> dict[tuple[int, str], httpx.Response]:
    """One real answer of each status and type that a client can come by."""
    with django_db_blocker.unblock(), ThreadPoolExecutor(8) as threads, elsewhere(gateway) as there:
        made = list(threads.map(lambda ask: ask(there), provocations()))
    found = {}
    for answer in made:
        found[answer.status_code, "" if answer.status_code == 200 else answer.json()["error"]["type"]] = answer
    return found


def customer_with(*limits: str, **fields: Any) -> Customer:
    slug = f"openapi-{os.urandom(6).hex()}"
    tenant = issuing.create_tenant(slug, slug, **{"origins": ["*"], **fields})
    member = issuing.add_member(tenant, f"{slug}@example.com")
    customer = Customer(tenant, member, *issuing.issue_token(member, name="test"))
    customer.limit(*limits)
    return customer


def provocations() -> list[Callable[[Gateway], httpx.Response]]:
    """One call for each error; the gateway answers 500 `storage_failed` and `internal_error` to nobody's wish."""
    plenty = customer_with("requests:1000/day", "images:1000/day", "tokens:9000000/day", "concurrent:50").secret
    secrets = {text: customer_with(text).secret for text in ("requests:1/hour", "requests:1/day", "images:1/day")}
    closed = customer_with(origins=[]).secret
    key, other = os.urandom(8).hex(), os.urandom(8).hex()

    def prompt(directive: str, **fields: Any) -> Callable[[Gateway], httpx.Response]:
        return lambda gateway: gateway.post(plenty, {**SMALL, "prompt": f"a gem [sandbox {directive}]", **fields})

    def second(secret: str, first: Any, then: Any, **sent: str) -> Callable[[Gateway], httpx.Response]:
        def ask(gateway: Gateway) -> httpx.Response:
            gateway.post(secret, first, **sent)
            return gateway.post(secret, then, **sent)

        return ask

    def in_flight(gateway: Gateway) -> httpx.Response:
        body = {**SMALL, "prompt": "a gem [sandbox delay=3s]"}
        with ThreadPoolExecutor(1) as thread:
            first = thread.submit(gateway.post, plenty, body, **{"Idempotency-Key": other})
            time.sleep(0.5)
            answer = gateway.post(plenty, body, **{"Idempotency-Key": other})
            first.result()
        return answer

    return [
        prompt("delay=6s"),  # upstream_timeout, the slowest first
        in_flight,
        prompt("tokens=123", quality="hd"),
        prompt("status=400"),
        prompt("status=401"),
        prompt("status=429"),
        prompt("drop=unread"),
        second(plenty, SMALL, {**SMALL, "n": 2}, **{"Idempotency-Key": key}),
        second(secrets["requests:1/hour"], SMALL, SMALL),
        second(secrets["requests:1/day"], SMALL, SMALL),
        lambda gateway: gateway.post(secrets["images:1/day"], {**SMALL, "n": 2}),
        lambda gateway: gateway.post(plenty, b"{}"),
        lambda gateway: gateway.post("gem_nobody", SMALL),
        lambda gateway: gateway.post(closed, SMALL, Origin="https://elsewhere.example"),
        lambda gateway: gateway.post(plenty, SMALL, **{"Content-Type": "text/plain"}),
        lambda gateway: gateway.post(plenty, b" " * (256 * 1024 + 1)),
        lambda gateway: gateway.client.get(gateway.url + GENERATE),
    ]


def test_real_answers_of_every_kind_conform(answers: dict[tuple[int, str], httpx.Response]) -> None:
    beyond = {(404, "not_found"), (500, "storage_failed"), (500, "internal_error")}
    assert answers.keys() == (error_types() - beyond) | {(200, "")}
    for kind, answer in answers.items():
        assert problems(answer) == [], kind
    limited = answers[200, ""].headers.keys()
    assert {"ratelimit", "x-ratelimit-limit-images", "x-ignored-fields"} <= set(limited)


def test_replays_and_browsers_get_answers_that_conform(gateway: Gateway, customer: Customer) -> None:
    sent = {"Idempotency-Key": "again", "Origin": "https://a.example", "X-Request-Id": "mine"}
    for body in (SMALL, {**SMALL, "prompt": "a gem [sandbox drop=unread]"}):
        first, again = (gateway.post(customer.secret, body, **sent) for _ in range(2))
        assert problems(first) == problems(again) == []
        assert again.headers["idempotent-replayed"] == "true"
        assert any(name.startswith(CORS) for name in again.headers)
        sent["Idempotency-Key"] = "another"


def test_images_health_and_metrics_conform(gateway: Gateway, customer: Customer) -> None:
    url = gateway.post(customer.secret, SMALL).json()["data"][0]["url"]
    missing = url.replace("/images/2", "/images/1")
    for method in ("get", "head"):
        assert problems(gateway.client.request(method, url), IMAGE, method) == []
        assert problems(gateway.client.request(method, missing), IMAGE, method) == []
    assert problems(gateway.client.post(url), IMAGE, "get") == []
    for path in ("/healthz", "/readyz", "/metrics"):
        assert problems(gateway.client.get(gateway.url + path), path, "get") == []
    assert (
        problems(
            gateway.client.get(f"{gateway.url}/metrics", headers={"X-Forwarded-For": "1.2.3.4"}), "/metrics", "get"
        )
        == []
    )


def test_errors_that_nobody_can_provoke_have_the_shape() -> None:
    request_id = "01a20262-ab1f-71ed-b9f9-b7c48c7185c4"
    for error in (errors.ApiError("x"), errors.UpstreamFailed("x", "storage_failed", may_be_charged=True)):
        sent = {"X-Request-Id": request_id, "Content-Type": "application/json", **error.headers}
        content = json.dumps(error.content(request_id))
        assert problems(httpx.Response(error.status, headers=sent, content=content)) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer["data"].clear(),
        lambda answer: answer.pop("created"),
        lambda answer: answer["data"][0].update(url="javascript:alert(1)"),
        lambda answer: answer.update(output_format="svg"),
        lambda answer: answer["usage"].update(total_tokens="12"),
    ],
)
def test_control_another_answer_is_noticed(gateway: Gateway, customer: Customer, change: Callable[[Any], Any]) -> None:
    answer = gateway.post(customer.secret, SMALL)
    content = answer.json()
    assert problems(answer) == []
    change(content)
    assert problems(httpx.Response(200, headers=answer.headers, content=json.dumps(content)))


def test_control_headers_that_are_wrong_are_noticed(answers: dict[tuple[int, str], httpx.Response]) -> None:
    answer = answers[429, "rate_limited"]
    for name, value in [("retry-after", "0"), ("retry-after", "soon"), ("x-request-id", "1"), ("set-cookie", "a=b")]:
        sent = httpx.Headers(answer.headers)
        sent[name] = value
        assert problems(httpx.Response(429, headers=sent, content=answer.content)), name
    del (without := httpx.Headers(answer.headers))["retry-after"]
    assert problems(httpx.Response(429, headers=without, content=answer.content)) == ["retry-after is missing"]


def test_control_a_constant_that_drifts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "PROMPT_LIMIT", 31_999)
    with pytest.raises(AssertionError):
        test_the_fields_are_those_of_the_validation()
    with_one_less = copy.deepcopy(DOCUMENT["components"]["responses"])
    del with_one_less["InFlight"]
    monkeypatch.setitem(DOCUMENT["components"], "responses", with_one_less)
    assert documented_errors() != error_types()


# What schemathesis makes of it


def served(mode: GenerationMode) -> schemathesis.BaseSchema:
    """The document as schemathesis reads it. Prompts that are too long take it 0.2 s each: others try those."""
    document = copy.deepcopy(DOCUMENT)
    if mode is GenerationMode.NEGATIVE:
        del document["components"]["schemas"]["GenerationRequest"]["properties"]["prompt"]["maxLength"]
    return schemathesis.openapi.from_dict(document)


MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
# What has no parameters has one request, and none that is wrong.
FUZZED = [
    *[(path, method, mode) for path, method in ((GENERATE, "post"), (IMAGE, "get")) for mode in MODES],
    *[(path, "get", GenerationMode.POSITIVE) for path in ("/healthz", "/readyz", "/metrics")],
]
SLOWER = 3  # times, to make a wrong case; an image takes fewer, too
ACCEPTED = {200, 409, 422, 429}  # what a right request may get: an Idempotency-Key may have been used before
RIGHT, WRONG = ACCEPTED | {403}, ACCEPTED | {400, 403, 404, 405, 415}  # 403: no image URL of ours can be guessed
# Replaced by the sets above; and made-up tokens, of which an address may send only so many.
EXCLUDED = [checks.positive_data_acceptance, checks.ignored_auth]


def as_integers_are_written(case: Case) -> bool:
    """A schema can't tell 2.0 from 2, the gateway does."""
    return not (isinstance(case.body, dict) and isinstance(case.body.get("n"), float))


@pytest.fixture(scope="module")
def fuzzed(provider: Path, django_db_blocker: Any) -> Customer:
    """A customer whose limit is soon reached, so that cases meet a 429, too, and few draw an image."""
    with django_db_blocker.unblock():
        return customer_with("images:12/day")


@pytest.mark.parametrize(("path", "method", "mode"), FUZZED)
def test_no_case_of_schemathesis_is_answered_otherwise(
    gateway: Gateway, fuzzed: Customer, path: str, method: str, mode: GenerationMode
) -> None:
    seen: Counter[int] = Counter()

    def carry_out(case: Case) -> None:
        if case.headers:
            case.headers.pop("Authorization", None)  # a made-up one, beside the token below
        answer = case.call(base_url=gateway.url, headers={"X-Proxy-Token": fuzzed.secret})
        seen[answer.status_code] += 1
        assert answer.status_code in (WRONG if wrong else ACCEPTED if path == GENERATE else RIGHT)
        case.validate_response(answer, excluded_checks=EXCLUDED)

    wrong = mode is GenerationMode.NEGATIVE
    cases = served(mode)[path][method.upper()].as_strategy(generation_mode=mode)
    cases = cases if wrong else cases.filter(as_integers_are_written)
    examples = EXAMPLES // SLOWER if wrong or path != GENERATE else EXAMPLES
    rules = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    rules(given(cases)(carry_out))()
    if path in {GENERATE, IMAGE}:
        assert seen.total() >= examples
    if path == GENERATE:
        assert seen[400 if wrong else 429] > examples / 2, seen


def test_control_schemathesis_notices_an_answer_that_is_not_documented(gateway: Gateway, customer: Customer) -> None:
    changed = copy.deepcopy(DOCUMENT)
    del changed["paths"][GENERATE]["post"]["responses"]["400"]
    operation = schemathesis.openapi.from_dict(changed)[GENERATE]["POST"]
    case = operation.Case(body={"prompt": 5}, media_type="application/json")
    with pytest.raises(FailureGroup):
        case.validate_response(case.call(base_url=gateway.url, headers={"X-Proxy-Token": customer.secret}))

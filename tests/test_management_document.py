"""The OpenAPI document of the management API and its page; and the API held to the document by made-up requests."""

import copy
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.contrib.staticfiles import finders
from django.test import Client
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode, checks
from schemathesis.core.failures import FailureGroup

from tests.bookkeeping import Customer as Books
from tests.conftest import Customer, Gateway
from tests.test_apikeys_api import BOTH, DAYS
from tokens import apikeys, issuing
from usage.api.forms import UsageQuery
from usage.ledger import record
from usage.reports import GROUPS

METHODS = {"get", "post", "delete", "put", "patch"}
OPERATIONS = {
    ("/api/usage", "get", "report_usage"),
    ("/api/tokens", "get", "list_tokens"),
    ("/api/tokens", "post", "issue_token"),
    ("/api/tokens/{token_id}", "get", "get_token"),
    ("/api/tokens/{token_id}", "delete", "revoke_token"),
}
EXAMPLES = 20
# Made-up keys, of which an address may send only so many; and values that a schema can't tell from right ones.
EXCLUDED = [checks.ignored_auth, checks.positive_data_acceptance, checks.negative_data_rejection]


@pytest.fixture(scope="module")
def document(django_db_setup: None, django_db_blocker: Any) -> dict[str, Any]:
    with django_db_blocker.unblock():
        answer = Client().get("/api/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = json.loads(answer.content)
    return found


def test_the_document_is_valid_and_names_every_operation(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(document).validate()
    found = set()
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            operation = item[method]
            found.add((path, method, operation["operationId"]))
            assert {"400", "401", "403", "429", "503"} <= operation["responses"].keys(), operation["operationId"]
            assert operation["summary"]
    assert found == OPERATIONS
    assert document["components"]["securitySchemes"]["apiKey"] == {"type": "http", "scheme": "bearer"}


def test_control_a_broken_document_is_noticed(document: dict[str, Any]) -> None:
    broken = copy.deepcopy(document)
    broken["paths"]["/api/usage"]["get"]["responses"] = "none"
    with pytest.raises(Exception, match="none"):
        schemathesis.openapi.from_dict(broken).validate()


def test_its_page_loads_files_of_our_own_and_nothing_inline() -> None:
    answer = Client().get("/api/docs")
    text = answer.text
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    files = [part.partition('"')[0] for part in text.replace("src=", "href=").split('href="')[1:]]
    assert len(files) >= 5
    for file in files:
        assert file.startswith(("/static/", "/api/")), file
        if file.startswith("/static/"):
            assert finders.find(file.removeprefix("/static/")), file
    assert "<style" not in text
    assert "script>" not in text.replace("></script>", "").replace("noscript>", "")


@pytest.fixture(scope="module")
def key(gateway: Gateway, django_db_blocker: Any) -> Iterator[str]:
    """A key of a tenant of its own, with a token."""
    with django_db_blocker.unblock():
        tenant = issuing.create_tenant(f"fuzzed-{id(gateway)}", "Fuzzed")
        issuing.issue_token(issuing.add_member(tenant, "somebody@fuzzed.example"), "there already")
        yield apikeys.issue("fuzzing", BOTH, tenant)[1]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("path", "method", "name"), sorted(OPERATIONS))
def test_no_case_of_schemathesis_is_answered_otherwise(
    gateway: Gateway, key: str, document: dict[str, Any], path: str, method: str, name: str, mode: GenerationMode
) -> None:
    seen: Counter[int] = Counter()

    def carry_out(case: Case) -> None:
        if case.headers:
            case.headers.pop("Authorization", None)  # a made-up one, beside the key below
        answer = case.call(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"})
        seen[answer.status_code] += 1
        assert answer.status_code < 500, answer.text
        case.validate_response(answer, excluded_checks=EXCLUDED)

    cases = schemathesis.openapi.from_dict(document)[path][method.upper()].as_strategy(generation_mode=mode)
    rules = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    rules(given(cases)(carry_out))()
    assert seen, "nothing was asked"


def test_right_requests_are_answered_as_documented(
    gateway: Gateway, customer: Customer, document: dict[str, Any]
) -> None:
    """What is made up seldom finds anything; these do."""
    secret = apikeys.issue("tests", BOTH, customer.tenant)[1]
    headers = {"Authorization": f"Bearer {secret}"}
    schema = schemathesis.openapi.from_dict(document)
    body: dict[str, Any] = {"user": "robot@example.com", "name": "right"}
    right = [
        (schema["/api/usage"]["GET"].Case(query=DAYS), 200),
        (schema["/api/tokens"]["GET"].Case(query={"limit": 1}), 200),
        (schema["/api/tokens"]["POST"].Case(body=body, media_type="application/json"), 201),
        (schema["/api/tokens/{token_id}"]["GET"].Case(path_parameters={"token_id": customer.token.pk}), 200),
        (schema["/api/tokens/{token_id}"]["DELETE"].Case(path_parameters={"token_id": customer.token.pk}), 204),
    ]
    for case, status in right:
        answer = case.call(base_url=gateway.url, headers=headers)
        assert answer.status_code == status, answer.text
        case.validate_response(answer, excluded_checks=EXCLUDED)


def test_answers_have_the_documented_fields_and_no_others(document: dict[str, Any], customer: Customer) -> None:
    """To a schema an answer with more than it names is right."""
    record([Books().event()])
    headers = {"Authorization": f"Bearer {apikeys.issue('tests', BOTH, None)[1]}"}
    schemas = document["components"]["schemas"]
    answers = {
        "UsagePage": Client().get("/api/usage", {**DAYS, "group_by": ",".join(GROUPS)}, headers=headers).json(),
        "TokenPage": Client().get("/api/tokens", {"limit": 1}, headers=headers).json(),
        "TokenAnswer": Client().get(f"/api/tokens/{customer.token.pk}", headers=headers).json(),
        "ApiErrorAnswer": Client().get("/api/tokens/1").json(),
    }
    answers |= {"UsageRow": answers["UsagePage"]["rows"][0], "UsageFigures": answers["UsagePage"]["totals"][0]}
    body = {"tenant": customer.tenant.slug, "user": "robot@example.com", "name": "right"}
    answers["IssuedToken"] = Client().post("/api/tokens", body, "application/json", headers=headers).json()
    for name, answer in answers.items():
        assert answer.keys() == schemas[name]["properties"].keys(), name
    asked = {parameter["name"] for parameter in document["paths"]["/api/usage"]["get"]["parameters"]}
    assert asked == UsageQuery().fields.keys()


def test_control_an_answer_that_is_not_documented_is_noticed(
    gateway: Gateway, key: str, document: dict[str, Any]
) -> None:
    changed = copy.deepcopy(document)
    del changed["paths"]["/api/usage"]["get"]["responses"]["400"]
    case = schemathesis.openapi.from_dict(changed)["/api/usage"]["GET"].Case(query={"from": "yesterday"})
    answer = case.call(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"})
    with pytest.raises(FailureGroup):
        case.validate_response(answer, excluded_checks=EXCLUDED)

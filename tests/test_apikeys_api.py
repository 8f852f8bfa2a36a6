"""The management API over HTTP: keys, scoping, usage page by page, tokens for automation."""

import datetime as dt
import json
import secrets as system_random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from tests.bookkeeping import Customer as Books
from tests.conftest import Customer, Gateway
from tokens import apikeys, issuing, roles, secrets, stopping
from tokens.apikeyrow import ApiScope
from tokens.models import ApiKey, AuditEntry, IssueReceipt, ProxyToken, Role, Secret, Tenant
from usage.api import usageviews
from usage.ledger import record
from usage.reports import Query, report

BOTH = [ApiScope.USAGE_READ, ApiScope.TOKENS_WRITE]
DAYS = {"from": "2026-11-01", "to": "2026-12-01"}


class Api:
    """A client that presents a key."""

    def __init__(self, secret: str | None) -> None:
        self.headers = {"Authorization": f"Bearer {secret}"} if secret is not None else {}
        self.client = Client()

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(f"/api/{path}", query, headers=self.headers)

    def post(self, body: Any, **headers: str) -> Any:
        content = body if isinstance(body, str) else json.dumps(body)
        sent = {**self.headers, **headers}
        return self.client.post("/api/tokens", content, content_type="application/json", headers=sent)

    def delete(self, token: int, **query: str) -> Any:
        return self.client.delete(f"/api/tokens/{token}", query_params=query, headers=self.headers)


@pytest.fixture
def make_api() -> Callable[..., Api]:
    def make(tenant: Tenant | None = None, scopes: list[ApiScope] = BOTH) -> Api:
        api = Api(None)
        api.key, secret = apikeys.issue("tests", scopes, tenant, "somebody")  # type: ignore[attr-defined]
        api.headers = {"Authorization": f"Bearer {secret}"}
        api.secret = secret  # type: ignore[attr-defined]
        return api

    return make


def error(answer: Any, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.content
    told = answer.json()["error"]
    assert (told["code"], told["type"]) == (status, kind)
    assert answer.headers["X-Request-Id"] == told["request_id"]
    return str(told["message"])


def wanted(tenant: Tenant, **changes: Any) -> dict[str, Any]:
    return {"tenant": tenant.slug, "user": f"robot@{tenant.slug}.example", "name": "made by tests", **changes}


# Keys


def test_only_a_digest_of_a_key_is_kept(make_api: Any) -> None:
    api = make_api()
    row = ApiKey.objects.filter(pk=api.key.pk).values()[0]
    assert api.secret.startswith("gemf_")
    assert api.secret not in str(row)
    assert apikeys.find(api.secret) == api.key
    assert apikeys.find(api.secret[:-1] + "0") is None
    assert apikeys.find("gemf_") is None


@pytest.mark.parametrize("header", [None, "Bearer nonsense", "Bearer gemf_", "Basic abc", "Bearer " + "x" * 5000, ""])
def test_without_a_good_key_nothing_opens(header: str | None) -> None:
    api = Api(None)
    api.headers = {} if header is None else {"Authorization": header}
    for answer in (api.get("usage", **DAYS), api.get("tokens"), api.post({}), api.delete(1)):
        error(answer, 401, "invalid_api_key")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_revoked_key_is_refused_by_the_next_request(make_api: Any, customer: Customer) -> None:
    api = make_api(customer.tenant)
    assert api.get("tokens").status_code == 200
    apikeys.revoke(api.key, "somebody")
    error(api.get("tokens"), 401, "invalid_api_key")


def test_a_key_ends_when_it_was_agreed(make_api: Any, customer: Customer) -> None:
    api = make_api(customer.tenant)
    api.key.expires_at = now() + dt.timedelta(minutes=1)
    api.key.save()
    assert api.get("tokens").status_code == 200
    api.key.expires_at = now() - dt.timedelta(seconds=1)
    api.key.save()
    assert api.key.state == "expired"
    error(api.get("tokens"), 401, "invalid_api_key")


def test_a_key_opens_no_more_than_who_gave_it_could_give(customer: Customer, make_customer: Any) -> None:
    member = issuing.add_member(customer.tenant, f"{system_random.token_hex(6)}@keys.test")
    giver = member.user

    def status(tenant: Tenant | None) -> int:
        _, secret = apikeys.issue("given", BOTH, tenant, str(giver), giver=giver)
        return int(Api(secret).get("tokens").status_code)

    assert status(customer.tenant) == 401, "who has no role"
    roles.set_role(member, Role.VIEWER)
    assert status(customer.tenant) == 401
    roles.set_role(member, Role.ADMINISTRATOR)
    assert status(customer.tenant) == 200
    assert (status(None), status(make_customer().tenant)) == (401, 401), "and of their own tenant only"
    stopping.suspend_member(member)
    assert status(customer.tenant) == 401
    giver.is_superuser = True
    giver.save()
    assert (status(None), status(customer.tenant)) == (200, 200)
    giver.is_active = False
    giver.save()
    assert (status(None), status(customer.tenant)) == (401, 401)


def test_a_proxy_token_opens_nothing_here_and_a_key_no_call(
    make_api: Any, customer: Customer, gateway: Gateway
) -> None:
    error(Api(customer.secret).get("tokens"), 401, "invalid_api_key")
    api = make_api(customer.tenant)
    assert gateway.post(api.secret, {"prompt": "a gem"}).status_code == 403
    with pytest.raises(ValueError, match="gemf_"):
        issuing.import_token(customer.member, "x", api.secret)


@pytest.mark.parametrize("scope", BOTH)
def test_a_key_opens_what_its_scopes_say(make_api: Any, customer: Customer, scope: ApiScope) -> None:
    api = make_api(customer.tenant, [scope])
    answers = {
        ApiScope.USAGE_READ: [api.get("usage", **DAYS)],
        ApiScope.TOKENS_WRITE: [api.get("tokens"), api.get(f"tokens/{customer.token.pk}")],
    }
    for of, found in answers.items():
        for answer in found:
            if of == scope:
                assert answer.status_code == 200
            else:
                assert of.value in error(answer, 403, "not_allowed")
    if scope == ApiScope.USAGE_READ:
        error(api.post(wanted(customer.tenant)), 403, "not_allowed")
        error(api.delete(customer.token.pk), 403, "not_allowed")
        customer.token.refresh_from_db()
        assert customer.token.status == "active"


def test_use_is_noted_once_a_minute(make_api: Any, customer: Customer) -> None:
    api = make_api(customer.tenant)
    api.get("tokens")
    api.key.refresh_from_db()
    first = api.key.last_used_at
    assert (first is not None, api.key.last_used_from) == (True, "127.0.0.1")
    api.get("tokens")
    api.key.refresh_from_db()
    assert api.key.last_used_at == first


def test_too_many_requests_are_told_when_to_come_back(make_api: Any, customer: Customer, settings: Any) -> None:
    settings.API_RATE = "3/m"
    api, other = make_api(customer.tenant), make_api(customer.tenant)
    answers = [api.get("tokens") for _ in range(8)]
    assert [answer.status_code for answer in answers].count(200) in {3, 6}  # a window may end meanwhile
    error(answers[-1], 429, "rate_limited")
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
    assert other.get("tokens").status_code == 200, "each key has its own"


def test_guessing_is_stopped_by_address(settings: Any, make_api: Any) -> None:
    settings.FAILED_AUTHENTICATION_RATE = "3/m"
    stranger = Api("gemf_nothing")
    answers = [stranger.get("tokens").status_code for _ in range(8)]
    assert answers[0] == 401
    assert answers[-1] == 429
    assert make_api().get("tokens").status_code == 200, "a good key is never affected"


# Isolation


def test_a_key_of_one_tenant_sees_that_one_only(make_api: Any, make_customer: Any) -> None:
    own, other = make_customer(), make_customer()
    api = make_api(own.tenant)
    assert [token["id"] for token in api.get("tokens").json()["tokens"]] == [own.token.pk]
    for answer in (api.get(f"tokens/{other.token.pk}"), api.delete(other.token.pk)):
        error(answer, 404, "not_found")
    other.token.refresh_from_db()
    assert other.token.status == "active"
    message = error(api.get("tokens", tenant=other.tenant.slug), 403, "not_allowed")
    assert message == error(api.get("tokens", tenant="nobody-at-all"), 403, "not_allowed")
    error(api.get("usage", tenant=other.tenant.slug, **DAYS), 403, "not_allowed")
    error(api.post(wanted(other.tenant)), 403, "not_allowed")
    assert not other.tenant.tokens.exclude(pk=other.token.pk).exists()


def test_a_tenants_key_changes_nothing_while_it_is_suspended(make_api: Any, customer: Customer) -> None:
    api, platform = make_api(customer.tenant), make_api()
    stopping.suspend_tenant(customer.tenant.slug, "tests")
    error(api.post(wanted(customer.tenant)), 403, "not_allowed")
    error(api.delete(customer.token.pk), 403, "not_allowed")
    assert api.get("tokens").status_code == 200
    assert platform.delete(customer.token.pk).status_code == 204


# Usage


def books_of(count: int) -> Books:
    books = Books()
    tokens = [books.add_token(f"token {number}") for number in range(count)]
    events = []
    for number, (token, secret) in enumerate(tokens):
        day = dt.date(2026, 11, 1 + number % 20).isoformat()
        of: dict[str, Any] = {"token": token.pk, "secret": secret.pk, "day": day}
        events += [books.event(**of), books.event("unresolved", **of), books.event("void", **of)]
    record(events)
    return books


def everything(api: Api, **query: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of all pages, and the totals of the first."""
    rows, totals, cursor = [], None, ""
    for _ in range(200):
        answer = api.get("usage", cursor=cursor, **query)
        assert answer.status_code == 200, answer.content
        page = answer.json()
        assert len(page["rows"]) <= query.get("limit", 100) * 3
        assert ("totals" in page) is (cursor == "")
        rows += page["rows"]
        totals = page.get("totals", totals)
        cursor = page["next"]
        if cursor is None:
            return rows, totals or []
    raise AssertionError("there is no end to it")


@pytest.fixture(scope="module")
def books(django_db_setup: None, django_db_blocker: Any) -> Iterator[Books]:
    with django_db_blocker.unblock():
        yield books_of(23)


@pytest.mark.parametrize(
    "groups", ["token", "day,token", "week,model", "user,month,model", "model,day", "tenant,token,day"]
)
@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_the_pages_together_are_the_report(make_api: Any, books: Books, groups: str, limit: int) -> None:
    api = make_api(books.tenant)
    rows, totals = everything(api, group_by=groups, limit=limit, **DAYS)
    query = Query(books.tenant, dt.date(2026, 11, 1), dt.date(2026, 12, 1), groups.split(","))
    expected = list(report(query))
    assert len(rows) == len(expected)
    for row, known in zip(rows, expected, strict=True):
        assert {name: str(value) for name, value in row.items()} == {name: str(known[name]) for name in row}
        assert set(query.groups) <= row.keys()
    assert sum(total["requests"] for total in totals) == sum(row["requests"] for row in rows) == books.total("requests")
    assert sum(total["tokens"] for total in totals) == sum(row["tokens"] for row in rows)


def test_rows_and_totals_of_an_answer_are_of_one_moment(make_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    books = books_of(2)

    def while_others_book(query: Query, *more: Any) -> Any:
        yield from list(report(query, *more))
        with ThreadPoolExecutor(1) as other:
            other.submit(book).result()

    def book() -> None:
        record([books.event(day="2026-11-03")])
        connection.close()  # this thread's own

    monkeypatch.setattr(usageviews, "report", while_others_book)
    rows, totals = everything(make_api(books.tenant), **DAYS)
    assert books.total("requests") == 4, "two came while it was read"
    assert sum(row["requests"] for row in rows) == sum(row["requests"] for row in totals) == 2


def test_what_the_provider_charges_is_for_keys_of_all_tenants(make_api: Any) -> None:
    books = books_of(1)
    own, _ = everything(make_api(books.tenant), **DAYS)
    of_all, totals = everything(make_api(), tenant=books.tenant.slug, **DAYS)
    hidden = {"provider_cost", "margin", "uncosted_requests"}
    assert all(hidden.isdisjoint(row) for row in own)
    assert all(hidden <= row.keys() for row in [*of_all, *totals])


def test_usage_is_filtered_by_user_token_and_model(make_api: Any) -> None:
    books = books_of(5)
    api = make_api(books.tenant)
    token = ProxyToken.objects.filter(tenant=books.tenant, name="token 3").get()
    rows, _ = everything(api, group_by="token", token=token.pk, **DAYS)
    assert [row["token"] for row in rows] == [token.pk]
    assert everything(api, model="another", **DAYS)[0] == []
    assert len(everything(api, group_by="user", user=books.user.email.upper(), **DAYS)[0]) == 1
    assert everything(api, user="nobody@example.com", **DAYS)[0] == []


def test_an_unknown_price_is_null_and_never_0(make_api: Any) -> None:
    books = books_of(2)
    rows, totals = everything(make_api(books.tenant), **DAYS)
    assert {row["cost"] for row in [*rows, *totals]} == {None}
    assert all(row["unpriced_requests"] == row["requests"] for row in rows)


@pytest.mark.parametrize(
    "query",
    [
        {"from": "2026-11-02", "to": "2026-11-02"},
        {"from": "yesterday", "to": "2026-11-02"},
        {"from": "2026-11-01"},
        {**DAYS, "group_by": "prompt"},
        {**DAYS, "group_by": "day,day"},
        {**DAYS, "group_by": ""},
        {**DAYS, "limit": "0"},
        {**DAYS, "limit": "1001"},
        {**DAYS, "limit": "9" * 400},
        {**DAYS, "cursor": "nonsense"},
        {**DAYS, "cursor": "e30"},
        {**DAYS, "token": "9" * 30},
        {**DAYS, "model": "a\0b"},
        {**DAYS, "tenat": "acme"},
    ],
)
def test_a_question_that_cant_be_read_is_refused(make_api: Any, customer: Customer, query: dict[str, str]) -> None:
    error(make_api(customer.tenant).get("usage", **query), 400, "invalid_request")


def test_a_cursor_belongs_to_its_question(make_api: Any) -> None:
    books = books_of(4)
    api = make_api(books.tenant)
    cursor = api.get("usage", group_by="token", limit=1, **DAYS).json()["next"]
    assert api.get("usage", group_by="token", limit=2, cursor=cursor, **DAYS).status_code == 200
    error(api.get("usage", group_by="token,day", cursor=cursor, **DAYS), 400, "invalid_request")
    other = make_api(books_of(1).tenant)
    error(other.get("usage", group_by="token", cursor=cursor, **DAYS), 400, "invalid_request")


# Tokens


def test_a_provisioned_token_works(make_api: Any, customer: Customer, gateway: Gateway) -> None:
    api = make_api(customer.tenant)
    answer = api.post(wanted(customer.tenant, limits=["images:3/day"], networks=["127.0.0.0/8"], expires="90d"))
    assert answer.status_code == 201
    issued = answer.json()
    assert answer.headers["Location"] == f"/api/tokens/{issued['id']}"
    assert (issued["in_effect"], issued["limits"], issued["tenant"]) == (True, ["images:3/day"], customer.tenant.slug)
    assert issued["expires_at"] > (now() + dt.timedelta(days=89)).isoformat()
    assert gateway.post(issued["secret"], {"prompt": "a gem", "size": "256x256", "n": 1}).status_code == 200
    listed = api.get("tokens", name="made by tests").json()["tokens"]
    assert [token["id"] for token in listed] == [issued["id"]]
    assert "secret" not in listed[0]
    assert issued["secret"].startswith(listed[0]["first_characters"])
    assert api.delete(issued["id"], reason="left").status_code == 204
    assert gateway.post(issued["secret"], {"prompt": "a gem"}).status_code == 403
    assert api.delete(issued["id"]).status_code == 204
    told = api.get(f"tokens/{issued['id']}").json()
    assert (told["status"], told["revoke_reason"]) == ("revoked", "left")


def test_a_body_that_comes_in_chunks_is_read_and_bounded(make_api: Any, customer: Customer, gateway: Gateway) -> None:
    api = make_api(customer.tenant)
    headers = {**api.headers, "Content-Type": "application/json"}
    statuses = []
    for body in (json.dumps(wanted(customer.tenant)).encode(), b"[" + b" " * 100_000 + b"]"):
        chunks = (body[at : at + 1000] for at in range(0, len(body), 1000))  # their number isn't told beforehand
        statuses.append(gateway.client.post(f"{gateway.url}/api/tokens", content=chunks, headers=headers).status_code)
    assert statuses == [201, 413]


def test_the_trail_says_which_key_did_it(make_api: Any, customer: Customer) -> None:
    api = make_api(customer.tenant)
    issued = api.post(wanted(customer.tenant)).json()
    api.delete(issued["id"], reason="left")
    entries = AuditEntry.objects.filter(object_type="tokens.proxytoken", object_id=str(issued["id"]))
    assert {entry.verb for entry in entries} >= {"issued", "revoked"}
    for entry in entries:
        assert (entry.way, entry.tenant_id, entry.address) == ("api", customer.tenant.pk, "127.0.0.1")
        assert entry.actor == f"API key tests ({api.key.shown}…)"
    whole = str(list(AuditEntry.objects.filter(tenant=customer.tenant).values()))
    assert issued["secret"] not in whole
    assert api.secret not in whole


def test_a_repeat_under_an_idempotency_key_returns_the_same_token_and_secret(
    make_api: Any, customer: Customer, gateway: Gateway
) -> None:
    api, other = make_api(customer.tenant), make_api(customer.tenant)
    body = wanted(customer.tenant)
    key = {"Idempotency-Key": system_random.token_hex(8)}
    first, again = api.post(body, **key), api.post(body, **key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.json() == again.json()
    assert gateway.post(again.json()["secret"], {"prompt": "a gem", "size": "256x256"}).status_code == 200
    error(api.post({**body, "name": "another"}, **key), 422, "idempotency_mismatch")
    assert other.post(body, **key).json()["id"] != first.json()["id"], "each key has its own"
    assert api.post(body).json()["id"] != first.json()["id"], "control: without the header each request issues"
    token = ProxyToken.objects.get(pk=first.json()["id"])
    issuing.rotate(token, dt.timedelta())
    assert api.post(body, **key).json()["secret"] is None, "what has ended is not told any more"


def test_the_secret_cant_be_made_from_what_is_stored(make_api: Any, customer: Customer) -> None:
    api = make_api(customer.tenant)
    key = system_random.token_hex(8)
    issued = api.post(wanted(customer.tenant), **{"Idempotency-Key": key}).json()
    receipt = IssueReceipt.objects.get(token=issued["id"])
    stored = str(IssueReceipt.objects.filter(pk=receipt.pk).values()) + str(Secret.objects.filter(token=issued["id"]))
    assert key not in stored
    assert issued["secret"] not in stored
    text = f"provision\n{receipt.nonce}\n{key}".encode()
    assert secrets.derive_secret(api.secret.encode(), text) == issued["secret"], "control"
    assert secrets.derive_secret(api.key.digest.encode(), text) != issued["secret"]


def test_old_receipts_go(make_api: Any, customer: Customer) -> None:
    api = make_api(customer.tenant)
    key = {"Idempotency-Key": system_random.token_hex(8)}
    first = api.post(wanted(customer.tenant), **key).json()
    IssueReceipt.objects.filter(token=first["id"]).update(created_at=now() - dt.timedelta(hours=25))
    second = api.post(wanted(customer.tenant), **key).json()
    assert (second["id"] != first["id"], second["secret"] != first["secret"]) == (True, True)


@pytest.mark.parametrize(
    "change",
    [
        {"user": "nobody"},
        {"name": ""},
        {"name": "  "},
        {"name": "\ud800"},
        {"name": "a\0b"},
        {"expires": "2020-01-01"},
        {"expires": "soon"},
        {"networks": ["everywhere"]},
        {"limits": ["images:many/day"]},
        {"limits": ["images:5/day", "images:6/day"]},
        {"models": ["x"]},
        {"limits": "images:5/day"},
    ],
)
def test_what_cant_be_issued_is_refused_and_leaves_nothing(
    make_api: Any, customer: Customer, change: dict[str, Any]
) -> None:
    before = customer.tenant.tokens.count(), IssueReceipt.objects.count()
    answer = make_api(customer.tenant).post(wanted(customer.tenant, **change), **{"Idempotency-Key": "k"})
    error(answer, 400, "invalid_request")
    assert (customer.tenant.tokens.count(), IssueReceipt.objects.count()) == before


@pytest.mark.parametrize("body", ["", "[]", "null", "{", '{"a":' * 5000, '"text"', "7"])
def test_a_body_that_is_no_object_is_refused(make_api: Any, customer: Customer, body: str) -> None:
    error(make_api(customer.tenant).post(body), 400, "invalid_request")


def test_other_bodies_and_methods(make_api: Any, customer: Customer) -> None:
    api = make_api(customer.tenant)
    form = api.client.post("/api/tokens", {"name": "x"}, headers=api.headers)
    error(form, 415, "unsupported_media_type")
    error(api.post(json.dumps({"name": "x" * 70_000})), 413, "too_large")
    error(api.client.put("/api/tokens", headers=api.headers), 405, "method_not_allowed")
    error(api.get("nothing"), 404, "not_found")
    error(make_api().post({k: v for k, v in wanted(customer.tenant).items() if k != "tenant"}), 400, "invalid_request")


def test_tokens_are_listed_page_by_page_and_cost_no_more_queries(make_api: Any, customer: Customer) -> None:
    api = make_api(customer.tenant)

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert api.get("tokens").status_code == 200
        return len(captured)

    api.get("tokens")
    few = queries()
    for number in range(20):
        issuing.issue_token(customer.member, f"token {number}", limit_texts=["images:5/day"])
    assert queries() <= few + 1, "the limits, of which there were none"
    found: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        page = api.get("tokens", limit=4, cursor=cursor).json()
        found += [token["id"] for token in page["tokens"]]
        cursor = page["next"]
    assert found == list(customer.tenant.tokens.order_by("-pk").values_list("pk", flat=True))

"""403: which tokens count, from where, and what happens to those who guess."""

import datetime as dt
import json
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.conftest import PATH, Customer, Gateway
from tests.contract import SMALL, assert_error, assert_images, elsewhere, raw_exchange, raw_post, read_raw
from tests.processes import web
from tokens import issuing, secrets
from tokens.models import Status, TokenStatus

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def there(gateway: Gateway) -> Iterator[Gateway]:
    """The gateway from an address of this test's own, whose failed authentications are nobody else's."""
    with elsewhere(gateway) as there:
        yield there


def ask(gateway: Gateway, headers: list[tuple[str, str]]) -> httpx.Response:
    """A body that is refused after authentication, so that nothing is drawn."""
    return gateway.client.post(gateway.url + PATH, content=b"{}", headers=[*JSON.items(), *headers])


def make_expired(customer: Customer) -> str:
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)
    token, secret = issuing.issue_token(customer.member, "short", expires_at=soon)
    assert token.expires_at
    time.sleep(2.1)
    return secret


def revoke(customer: Customer) -> str:
    customer.token.status = TokenStatus.REVOKED
    customer.token.save()
    return customer.secret


def suspend_member(customer: Customer) -> str:
    customer.member.status = Status.SUSPENDED
    customer.member.save()
    return customer.secret


def suspend_tenant(customer: Customer) -> str:
    customer.tenant.status = Status.SUSPENDED
    customer.tenant.save()
    return customer.secret


def rotate_away(customer: Customer) -> str:
    issuing.rotate(customer.token, dt.timedelta())
    return customer.secret


@pytest.mark.parametrize("end", [make_expired, revoke, suspend_member, suspend_tenant, rotate_away])
def test_a_token_that_does_not_count_any_more_gets_the_one_message(
    there: Gateway, customer: Customer, end: Callable[[Customer], str]
) -> None:
    assert_error(there.post(customer.secret, b"{}"), 400, "invalid_request")
    secret = end(customer)
    for body in (json.dumps(SMALL).encode(), b"{}"):
        answer = there.post(secret, body)
        assert assert_error(answer, 403, "invalid_token") == "Invalid API token"
        assert not [name for name in answer.headers if "ratelimit" in name], "nothing about a tenant to nobody"


def typo(secret: str, at: int) -> str:
    return secret[:at] + ("a" if secret[at] != "a" else "b") + secret[at + 1 :]


def test_a_token_that_never_counted_gets_the_same_message(there: Gateway, customer: Customer) -> None:
    secret = customer.secret
    wrong = [
        *("", "x", "gem_", secret[:-1], secret + "a", secret.upper(), secret.swapcase(), secret[4:], f"'{secret}'"),
        *(secrets.make_secret(), "an-imported-secret-that-nobody-knows", "x" * 5000, "é" * 50, "null", f"{secret} a"),
        *(typo(secret, at) for at in (0, 4, 20, len(secret) - 1)),
    ]
    for token in wrong:
        answer = there.client.post(there.url + PATH, json={}, headers=[(b"X-Proxy-Token", token.encode())])
        assert assert_error(answer, 403, "invalid_token") == "Invalid API token", token
    assert assert_error(ask(there, []), 403, "invalid_token") == "Invalid API token"
    assert assert_error(ask(there, [("X-Proxy-Token", secret)] * 2), 403, "invalid_token") == "Invalid API token"


def test_blanks_around_a_token_do_not_matter(there: Gateway, customer: Customer) -> None:
    request = raw_post("", b"{}").replace(b"X-Proxy-Token: ", f"X-Proxy-Token: \t {customer.secret} \t".encode())
    assert_error(read_raw(raw_exchange(there, request)), 400, "invalid_request")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_a_bearer_token_is_the_same_token(there: Gateway, customer: Customer, scheme: str) -> None:
    answer = ask(there, [("Authorization", f"{scheme} {customer.secret}")])
    assert_error(answer, 400, "invalid_request")


def test_only_bearer_counts(there: Gateway, customer: Customer) -> None:
    secret = customer.secret
    for value in (f"Basic {secret}", f"Token {secret}", secret, "Bearer", f"Bearer{secret}", f"Bearer {secret},x"):
        assert_error(ask(there, [("Authorization", value)]), 403, "invalid_token")
        if not value.startswith("Bearer "):
            answer = ask(there, [("Authorization", value), ("X-Proxy-Token", secret)])
            assert assert_error(answer, 400, "invalid_request").startswith("The field prompt")


def test_two_headers_must_agree(there: Gateway, customer: Customer, make_customer: Callable[..., Customer]) -> None:
    secret, other = customer.secret, make_customer().secret
    same = ask(there, [("X-Proxy-Token", secret), ("Authorization", f"Bearer {secret}")])
    assert assert_error(same, 400, "invalid_request").startswith("The field prompt")
    for first, second in [(secret, other), (secret, "wrong"), ("wrong", secret)]:
        answer = ask(there, [("X-Proxy-Token", first), ("Authorization", f"Bearer {second}")])
        message = assert_error(answer, 400, "invalid_request")
        assert "different tokens" in message
        assert secret not in answer.text


def test_a_token_may_be_bound_to_networks(gateway: Gateway, customer: Customer) -> None:
    _, secret = issuing.issue_token(customer.member, "bound", networks=["127.77.0.0/16", "2001:db8::/32"])
    with elsewhere(gateway, "127.77.1.2") as inside, elsewhere(gateway, "127.78.1.2") as outside:
        assert_images(inside.post(secret, SMALL))
        answer = outside.post(secret, SMALL)
        assert "address" in assert_error(answer, 403, "not_allowed")
        forged = outside.post(secret, SMALL, **{"X-Forwarded-For": "127.77.1.2"})
        assert_error(forged, 403, "not_allowed")


def test_changed_networks_and_origins_count_from_the_next_call_on(
    gateway: Gateway, make_customer: Callable[..., Customer]
) -> None:
    customer, origin = make_customer(origins=["https://one.example"]), "https://two.example"
    token, tenant = customer.token, customer.tenant
    with elsewhere(gateway, "127.77.1.3") as inside:
        assert_images(inside.post(customer.secret, SMALL, Origin="https://one.example"))
        for networks, status in [(["10.0.0.0/8"], 403), (["127.77.0.0/16"], 200), (["10.0.0.0/8"], 403), ([], 200)]:
            token.networks = networks
            token.save()
            assert inside.post(customer.secret, SMALL).status_code == status, networks
        for origins, status in [([origin], 200), (["https://one.example"], 403), (["*"], 200)]:
            tenant.origins = origins
            tenant.save()
            assert inside.post(customer.secret, SMALL, Origin=origin).status_code == status, origins


def test_addresses_origins_and_media_types_are_checked_in_that_order(
    gateway: Gateway, make_customer: Callable[..., Customer]
) -> None:
    customer = make_customer(origins=["https://app.example"])
    _, secret = issuing.issue_token(customer.member, "bound", networks=["10.0.0.0/8"])
    odd = {"Origin": "https://other.example", "Content-Type": "text/plain"}
    assert "address" in assert_error(gateway.post(secret, SMALL, **odd), 403, "not_allowed")
    assert "origin" in assert_error(gateway.post(customer.secret, SMALL, **odd), 403, "not_allowed")


def test_the_61st_wrong_token_within_a_minute_gets_429(gateway: Gateway, customer: Customer) -> None:
    with elsewhere(gateway) as there, elsewhere(gateway) as neighbour:
        answers = [there.post(secrets.make_secret(), b"{}") for _ in range(75)]
        kinds = [answer.json()["error"]["type"] for answer in answers]
        assert kinds[:60] == ["invalid_token"] * 60
        if "rate_limited" not in kinds:  # the minute turned in between
            answers = [there.post("wrong", b"{}") for _ in range(61)]
        message = assert_error(answers[-1], 429, "rate_limited")
        assert "address" in message
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert_error(there.post(customer.secret, b"{}"), 400, "invalid_request")
        assert_images(there.post(customer.secret, SMALL)), "a valid token is never affected"
        assert_error(neighbour.post("wrong", b"{}"), 403, "invalid_token")


@pytest.fixture(scope="module")
def behind_a_proxy(provider: object, gateway: Gateway) -> Iterator[Gateway]:
    """A gateway that trusts the proxies of 127.0.0.0/8 and 10.0.0.0/8, and allows three wrong tokens a minute."""
    with (
        web(gateway.folder, TRUSTED_PROXIES="127.0.0.0/8,10.0.0.0/8", FAILED_AUTHENTICATION_RATE="3/m") as (url, _),
        httpx.Client(timeout=30) as client,
    ):
        yield Gateway(url, gateway.folder, client)


def test_behind_proxies_the_address_is_the_rightmost_that_is_not_theirs(
    behind_a_proxy: Gateway, customer: Customer
) -> None:
    _, secret = issuing.issue_token(customer.member, "bound", networks=["203.0.113.9/32"])
    allowed = ["203.0.113.9", "203.0.113.9, 10.1.2.3", "8.8.8.8, 203.0.113.9", "junk, 203.0.113.9,10.0.0.1"]
    for forwarded in allowed:
        answer = behind_a_proxy.post(secret, b"{}", **{"X-Forwarded-For": forwarded})
        assert_error(answer, 400, "invalid_request")
    for forwarded in ("203.0.113.9, 8.8.8.8", "203.0.113.9, junk", "203.0.113.9:80", "127.0.0.1", ""):
        answer = behind_a_proxy.post(secret, b"{}", **{"X-Forwarded-For": forwarded})
        assert_error(answer, 403, "not_allowed")
    assert_error(behind_a_proxy.post(secret, b"{}", X_Forwarded_For="203.0.113.9"), 403, "not_allowed")


def test_guessing_is_counted_by_the_clients_address_and_cannot_be_spread(behind_a_proxy: Gateway) -> None:
    first, second = f"198.51.100.{time.time_ns() % 200}", f"203.0.113.{time.time_ns() % 200}"
    kinds = []
    for number in range(12):
        forged = f"192.0.2.{number}, {first}"  # what stands further left the client made up
        answer = behind_a_proxy.post("wrong", b"{}", **{"X-Forwarded-For": forged})
        kinds.append(answer.json()["error"]["type"])
    assert "rate_limited" in kinds
    other = behind_a_proxy.post("wrong", b"{}", **{"X-Forwarded-For": second})
    assert_error(other, 403, "invalid_token")


def test_control_without_trusted_proxies_the_header_means_nothing(gateway: Gateway, customer: Customer) -> None:
    _, secret = issuing.issue_token(customer.member, "bound", networks=["203.0.113.9/32"])
    answer = gateway.post(secret, b"{}", **{"X-Forwarded-For": "203.0.113.9"})
    assert_error(answer, 403, "not_allowed")

"""Limits, revocation and rotation with many clients on several web processes at once, each beside its control."""

import datetime as dt
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import catalog
from gateway.models import Model, Provider
from tests import processes, rawservers
from tests.conftest import Customer, Gateway, point_at
from tests.hammering import Hammering, Reply, hammer
from tests.ledgerwatch import check_books, in_flight, rows
from tests.rawservers import RawServer
from tokens import issuing, stopping

WORKERS = 4
READ_THEN_WRITE = "tests.controls.read_then_write:application"
TRUSTING = "tests.controls.trusting:application"


class Counting:
    """A provider's behaviour that counts how many calls it has in hand at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.most, self.lock = seconds, 0, 0, threading.Lock()

    def __call__(self, server: RawServer, connection: socket.socket) -> None:
        while server.read_request(connection):
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(self.seconds)
            with self.lock:
                self.now -= 1
            connection.sendall(rawservers.answer("200 OK", rawservers.IMAGE))


@pytest.fixture(scope="module")
def counting() -> Counting:
    return Counting(0.02)


@pytest.fixture(scope="module")
def quick(provider: Path, counting: Counting, django_db_blocker: Any) -> Iterator[None]:
    """Models named after providers that answer at once (`quick`) or soon (`counting`)."""
    servers = {"quick": RawServer(rawservers.well), "counting": RawServer(counting)}
    with django_db_blocker.unblock():
        for name, server in servers.items():
            point_at(server.url, name=name, default=False)
        yield
        Model.objects.filter(name__in=servers).delete()
        Provider.objects.filter(name__in=servers).delete()
        catalog.publish()
    for server in servers.values():
        server.close()


@pytest.fixture(scope="module")
def four(provider: Path, quick: None) -> Iterator[Gateway]:
    """Four web processes."""
    with processes.web(provider, WORKERS) as (url, _), httpx.Client() as client:
        yield Gateway(url, provider, client)


def customers_of(scope: str, make_customer: Callable[..., Customer], **fields: str) -> tuple[Customer, list[str]]:
    """A customer with a limit of 100 images a day in that scope, and the secrets of all tokens that share it."""
    customer = make_customer(**fields)
    customer.limit("images:100/day", scope=scope)
    secrets = [customer.secret]
    for number in range(0 if scope == "token" else 7):
        member = customer.member
        if scope == "tenant":
            member = issuing.add_member(customer.tenant, f"{number}-{customer.member.user.email}")
        secrets.append(issuing.issue_token(member, name=f"more {number}")[1])
    return customer, secrets


def check_refusal(reply: Reply, scope: str) -> None:
    assert reply.status == 429
    error = reply.body["error"]
    assert (error["type"], error["code"]) == ("quota_exceeded", 429)
    assert f"100 images per day for this {scope}" in error["message"]
    midnight = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0) + dt.timedelta(days=1)
    expected = midnight.timestamp() - reply.ended
    assert expected - 2 < int(reply.headers["retry-after"]) < expected + 3
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("scope", ["token", "member", "tenant"])
def test_a_limit_admits_exactly_its_amount(scope: str, four: Gateway, make_customer: Callable[..., Customer]) -> None:
    customer, secrets = customers_of(scope, make_customer)
    sizes = [1] * 260 if scope == "token" else [*(1 + number % 4 for number in range(130)), *[1] * 64]
    replies = hammer(four.url, [(secrets[number % len(secrets)], n) for number, n in enumerate(sizes)])
    taken = [reply for reply in replies if reply.status == 200]
    for reply in replies:
        if reply.status != 200:
            check_refusal(reply, scope)
    assert sum(reply.n for reply in taken) == sum(len(reply.body["data"]) for reply in taken) == 100
    drawn = four.drawn()
    ids = {reply.headers["x-request-id"] for reply in taken}
    assert sum(drawn[request_id]["n"] for request_id in ids) == 100
    refused = {reply.headers["x-request-id"] for reply in replies} - ids
    assert not refused & drawn.keys()
    booked = rows(customer)
    assert {str(row.request_id): row.charged_tokens for row in booked} == {
        request_id: drawn[request_id]["usage"]["total_tokens"] for request_id in ids
    }
    assert sum(row.images for row in booked) == 100
    check_books([customer])


def test_control_reading_then_writing_admits_more(
    provider: Path, quick: None, make_customer: Callable[..., Customer]
) -> None:
    customer, (secret,) = customers_of("token", make_customer, model="quick")
    with processes.web(provider, 2, application=READ_THEN_WRITE) as (url, _):
        replies = hammer(url, [(secret, 1)] * 260)
    assert sum(row.images for row in rows(customer)) == sum(reply.status == 200 for reply in replies) > 100


def test_a_concurrency_limit_holds_at_the_provider(
    four: Gateway, counting: Counting, make_customer: Callable[..., Customer]
) -> None:
    customer = make_customer(model="counting")
    customer.limit("concurrent:5")
    replies = hammer(four.url, [(customer.secret, 1)] * 600)
    assert {reply.status for reply in replies} == {200, 429}
    assert {reply.headers["retry-after"] for reply in replies if reply.status == 429} == {"2"}
    assert counting.most == 5
    assert in_flight(customer) == 0


def test_token_quotas_are_never_passed_by_what_calls_really_cost(
    four: Gateway, make_customer: Callable[..., Customer]
) -> None:
    customer = make_customer()
    customer.limit("tokens:30000/day")
    replies = hammer(four.url, [(customer.secret, 1)] * 120)
    replies += hammer(four.url, [(customer.secret, 1)] * 60, clients=1)  # what settling gave back
    charged = sum(row.charged_tokens for row in rows(customer))
    assert charged == sum(reply.body["usage"]["total_tokens"] for reply in replies if reply.status == 200)
    assert 30000 - 1205 < charged <= 30000  # less than one more call's upper bound is left


def is_refused_as_invalid(reply: Reply) -> bool:
    """403, or 429 since an address may fail to authenticate only so often."""
    error = reply.body.get("error", {})
    if reply.status == 429:
        return "Too many invalid API tokens" in error["message"]
    return (reply.status, error.get("type")) == (403, "invalid_token")


def admitted_after(replies: list[Reply], moment: float) -> int:
    """How many calls that were begun after a moment were not refused as an invalid token."""
    later = [reply for reply in replies if reply.begun > moment]
    assert len(later) > 200
    return sum(not is_refused_as_invalid(reply) for reply in later)


def revoked_while_hammering(url: str, customer: Customer) -> int:
    with Hammering(url, customer.secret) as hammering:
        time.sleep(0.7)
        assert stopping.revoke(customer.token.pk, by="test")
        moment = time.time()
        time.sleep(0.7)
    before = [reply for reply in hammering.replies if reply.begun <= moment]
    assert sum(reply.status == 200 for reply in before) > 100
    return admitted_after(hammering.replies, moment)


def test_revocation_is_immediate_on_every_process(four: Gateway, make_customer: Callable[..., Customer]) -> None:
    customer = make_customer(model="quick")
    assert revoked_while_hammering(four.url, customer) == 0
    replies = hammer(four.url, [(customer.secret, 1)] * 3000)
    assert all(is_refused_as_invalid(reply) for reply in replies)
    assert in_flight(customer) == 0


def test_control_trusting_the_memory_admits_the_revoked(
    provider: Path, quick: None, make_customer: Callable[..., Customer]
) -> None:
    customer = make_customer(model="quick")
    with processes.web(provider, 2, application=TRUSTING) as (url, _):
        assert revoked_while_hammering(url, customer) > 0


def rotated_while_hammering(url: str, customer: Customer) -> tuple[list[Reply], float, str]:
    """Rotate with a grace of a second while the old secret is in use everywhere; when the grace ended, and the new."""
    with Hammering(url, customer.secret) as hammering:
        time.sleep(0.5)
        new = issuing.rotate(customer.token, dt.timedelta(seconds=1))
        old = customer.token.secrets.get(accepted_until__isnull=False)
        assert old.accepted_until is not None
        end = old.accepted_until.timestamp()
        time.sleep(max(end - time.time(), 0) + 1.7)
    return hammering.replies, end, new


def test_an_old_secret_ends_with_its_grace_on_every_process(
    four: Gateway, make_customer: Callable[..., Customer]
) -> None:
    customer = make_customer(model="quick")
    replies, end, new = rotated_while_hammering(four.url, customer)
    assert {reply.status for reply in replies if reply.ended < end - 1} == {200}
    assert admitted_after(replies, end + 1) == 0
    assert {reply.status for reply in hammer(four.url, [(new, 1)] * 64)} == {200}


def test_control_an_old_secret_that_is_trusted_goes_on(
    provider: Path, quick: None, make_customer: Callable[..., Customer]
) -> None:
    customer = make_customer(model="quick")
    with processes.web(provider, 2, application=TRUSTING) as (url, _):
        replies, end, _ = rotated_while_hammering(url, customer)
    assert admitted_after(replies, end + 1) > 0

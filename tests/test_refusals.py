"""Why was this refused? What people read of a call, and that they read it of their own tenants only."""

import uuid
from collections.abc import Callable

import pytest
import redis
from django.test import Client
from django.urls import reverse
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.redis import store
from gateway import decisions
from tests.adminpages import page
from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tests.conftest import Customer, Gateway
from tests.processes import wait_until
from tokens import issuing, roles, stopping
from tokens.actors import Actor, Way, acting_as
from tokens.admission import keys
from tokens.models import Role, Tenant, User
from usage.ledger import record

BODY = {"prompt": "a lighthouse at dusk", "size": "512x512", "n": 1}


def look_up(browser: Client, asked: object) -> str:
    answer = browser.get(reverse("refusals"), {"request_id": str(asked)})
    assert answer.status_code == 200
    return answer.text


def refused(gateway: Gateway, secret: str, **body: object) -> str:
    """The request id of a call that isn't admitted, once its decision is kept."""
    answer = gateway.post(secret, {**BODY, **body})
    assert answer.status_code >= 400, answer.text
    asked = uuid.UUID(answer.headers["X-Request-Id"])
    at = decisions.moment_of(asked)
    assert at
    wait_until(lambda: decisions.find(asked, at))
    return str(asked)


@pytest.fixture
def person() -> Callable[[Tenant, Role], Client]:
    """Signs somebody in who has a role in a tenant."""

    def make(tenant: Tenant, role: Role) -> Client:
        member = issuing.add_member(tenant, f"{uuid.uuid4().hex}@refusals.test")
        roles.set_role(member, role)
        browser = Client()
        browser.force_login(User.objects.get(pk=member.user_id))
        return browser

    return make


def test_a_quota_is_explained_with_what_to_do(
    admin: Client, gateway: Gateway, customer: Customer, person: Callable[[Tenant, Role], Client]
) -> None:
    customer.limit("images:1/day", scope="member")
    assert gateway.post(customer.secret, BODY).status_code == 200
    html = look_up(admin, refused(gateway, customer.secret))
    assert "the limit of 1 image per day for this member was reached" in html
    assert "Of 1, 1 were used: 0 were left and the call needed 1." in html
    assert "created limit images/day of member" in html, "who set it"
    assert "<b>1</b> of 1" in html, "as it stands now"
    assert page("tokens_membership_change", customer.member.pk) in html
    assert "Or wait until" in html
    with acting_as(Actor("boss@platform.test", Way.ADMIN.value, platform=True)):
        customer.limit("images:5/day", scope="member")
    told, theirs = (look_up(one, refused_before(html)) for one in (admin, person(customer.tenant, Role.VIEWER)))
    assert "It has been changed since: it is 5 now." in told
    assert "boss@platform.test changed limit" in told
    assert "boss@platform.test" not in theirs
    assert "Platform staff changed limit" in theirs


def refused_before(html: str) -> str:
    return html.partition('name="request_id" value="')[2].partition('"')[0]


def test_every_kind_of_refusal_is_told_in_words(admin: Client, gateway: Gateway, customer: Customer) -> None:
    customer.limit("images:3/day", scope="token")
    told = {
        "ever allows": refused(gateway, customer.secret, n=4),
        "The field n must be an integer from 1 to 4.": refused(gateway, customer.secret, n=9),
    }
    customer.token.networks = ["203.0.113.0/24"]
    customer.token.save(update_fields=["networks"])
    wait_until(lambda: gateway.post(customer.secret, BODY).status_code == 403)
    told["the token&#x27;s networks: 203.0.113.0/24"] = refused(gateway, customer.secret)
    stopping.revoke(customer.token.pk, "ops@example.com", "leaked")
    told["by ops@example.com (leaked). That is final"] = refused(gateway, customer.secret)
    for words, asked in told.items():
        assert words in look_up(admin, asked), words


def test_an_idempotency_key_leads_to_the_first_call(admin: Client, gateway: Gateway, customer: Customer) -> None:
    first = gateway.post(customer.secret, BODY, **{"Idempotency-Key": "k1"}).headers["X-Request-Id"]
    again = gateway.post(customer.secret, BODY, **{"Idempotency-Key": "k1"})
    assert again.headers["Idempotent-Replayed"] == "true"
    asked = uuid.UUID(again.headers["X-Request-Id"])
    at = decisions.moment_of(asked)
    assert at
    wait_until(lambda: decisions.find(asked, at))
    html = look_up(admin, asked)
    assert "Answered from an earlier call" in html
    assert first in html


def test_what_was_admitted_leads_to_the_books(admin: Client, gateway: Gateway, customer: Customer) -> None:
    books = Books()
    ended, unknown = request_id(), request_id()
    record([books.event(of=ended), books.event("unresolved", of=unknown)])
    assert f"?q={ended}" in look_up(admin, ended)
    html = look_up(admin, unknown)
    assert "its outcome isn&#x27;t known" in html
    assert f"{page('usage_unresolvedcall_changelist')}?q={unknown}" in html
    sent = gateway.post(customer.secret, BODY).headers["X-Request-Id"]
    assert "Not refused" in look_up(admin, sent), "before it is in the books, too"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("nonsense", "That is not a request id"),
        ("\0", "That is not a request id"),
        ("8c1f3c9e-3a59-4d0c-9f35-2b8f2a8a3a11", "No gateway made this request id"),
        ("ffffffff-ffff-7fff-bfff-ffffffffffff", "No gateway made this request id"),
        ("01f00000-0000-7000-8000-000000000000", "to come"),
        ("019abc12-3456-7def-8abc-0123456789ab", "Nothing is known of this call"),
    ],
)
def test_what_isnt_known_is_said_so(admin: Client, asked: str, words: str) -> None:
    assert words in look_up(admin, asked)


def test_people_of_a_tenant_see_its_calls_only(
    gateway: Gateway, make_customer: Callable[..., Customer], person: Callable[[Tenant, Role], Client]
) -> None:
    ours, theirs = make_customer(), make_customer()
    mine, other = (refused(gateway, customer.secret, n=9) for customer in (ours, theirs))
    running = gateway.post(theirs.secret, BODY).headers["X-Request-Id"]
    viewer = person(ours.tenant, Role.VIEWER)
    assert "The field n must be" in look_up(viewer, mine)
    for foreign in (other, running):
        html = look_up(viewer, foreign)
        assert "Nothing is known of this call" in html or "It isn&#x27;t known yet" in html
        assert theirs.tenant.slug not in html
    listed = viewer.get(reverse("refusals")).text
    assert mine in listed
    assert other not in listed
    for kind, row in (("tenant", theirs.tenant), ("token", theirs.token)):
        html = viewer.get(reverse("refusals"), {kind: row.pk}).text
        assert other not in html
        assert theirs.tenant.slug not in html
        assert f"a {kind} that isn&#x27;t there" in html


def test_control_a_page_that_forgets_whose_call_it_is_would_be_caught(
    gateway: Gateway,
    make_customer: Callable[..., Customer],
    person: Callable[[Tenant, Role], Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = make_customer(), make_customer()
    other = refused(gateway, theirs.secret, n=9)
    viewer = person(ours.tenant, Role.VIEWER)
    monkeypatch.setattr("gateway.admin.refusalpages.rights_of", lambda _: roles.Rights(platform=True))
    assert "The field n must be" in look_up(viewer, other)
    assert other in viewer.get(reverse("refusals")).text


def test_the_advice_is_what_the_person_can_do(
    gateway: Gateway, customer: Customer, person: Callable[[Tenant, Role], Client]
) -> None:
    customer.limit("requests:1/day")
    assert gateway.post(customer.secret, BODY).status_code == 200
    asked = refused(gateway, customer.secret)
    assert "Ask the gateway&#x27;s operator" in look_up(person(customer.tenant, Role.ADMINISTRATOR), asked)
    customer.limit("requests:1/day", scope="token")
    issuing.set_limits(customer.tenant, ["requests:100/day"])
    asked = refused(gateway, customer.secret)
    assert "Raise the limit on the token" in look_up(person(customer.tenant, Role.ADMINISTRATOR), asked)
    assert "Ask an administrator of the tenant" in look_up(person(customer.tenant, Role.VIEWER), asked)


def test_the_list_is_paged_by_filter(admin: Client, gateway: Gateway, customer: Customer) -> None:
    wanted = [refused(gateway, customer.secret, n=9) for _ in range(3)]
    filters = f"?token={customer.token.pk}&type=invalid_request"
    html = admin.get(reverse("refusals") + filters).text
    assert all(one in html for one in wanted)
    assert "No call has been refused" not in html
    assert "None here" in admin.get(reverse("refusals") + f"?token={customer.token.pk}&type=in_flight").text
    first = decisions.latest(lambda one: one.token == customer.token.pk, "", 1)
    assert [one.request_id for one in first.refusals] == wanted[-1:]
    second = decisions.latest(lambda one: one.token == customer.token.pk, first.next, 5)
    assert [one.request_id for one in second.refusals] == wanted[1::-1]
    for before in ("x", "1-", "-1", "9" * 30 + "-0", "²-1"):
        assert admin.get(reverse("refusals"), {"before": before}).status_code == 200


def test_without_the_store_the_page_says_so(
    admin: Client, gateway: Gateway, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refused(gateway, customer.secret, n=9)
    books = Books()
    ended = request_id()
    record([books.event(of=ended)])
    gone = redis.Redis(unix_socket_path="/nonexistent/valkey.sock", retry=Retry(NoBackoff(), 0))
    for module in ("gateway.decisions", "gateway.admin.refusalpages"):
        monkeypatch.setattr(f"{module}.store", lambda _: gone)
    assert "The admission store did not answer" in look_up(admin, asked)
    assert "The admission store did not answer" in admin.get(reverse("refusals")).text
    assert "See it in the books" in look_up(admin, ended), "the books answer by themselves"


def test_a_page_looks_at_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MOST_LOOKED_AT", 100)
    fields = b'{"request_id":"%s","at":1.0,"tenant":0,"member":0,"token":0,"status":429,"type":"rate_limited"}'
    for _ in range(300):
        store().xadd(keys.DECISIONS, {"decision": fields % str(uuid.uuid4()).encode()})
    first = decisions.latest(lambda one: False, "", 50)
    assert not first.refusals
    assert first.next

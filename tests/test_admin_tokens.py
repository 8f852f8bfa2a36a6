"""Issuing, finding and cutting over tokens in the admin; a token's own model; lists that stay quick."""

import datetime as dt
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from tests.adminpages import page, rows
from tests.bookkeeping import Customer as Books
from tests.conftest import Customer, Gateway, point_at
from tests.processes import sandbox, wait_until
from tokens import apikeys, finding, issuing, secrets, stopping
from tokens.admin.tokenstatus import status_of
from tokens.cutover import cut_over
from tokens.models import AuditEntry, ProxyToken, Role, Secret, SecretUse, User
from usage import olduses
from usage.ledger import record

SMALL = {"prompt": "a lighthouse at dusk", "size": "256x256", "n": 1}


def issue(admin: Client, customer: Customer, **fields: Any) -> Any:
    data = {"tenant": customer.tenant.pk, "email": "ci@example.com", "name": "ci", "networks": ""}
    return admin.post(page("tokens_proxytoken_add"), data | rows("limits") | fields)


def test_the_form_suggests_an_end_and_takes_any_other(admin: Client, customer: Customer) -> None:
    form = admin.get(page("tokens_proxytoken_add")).context["adminform"].form
    assert (form["lifetime"].value(), form["usual_limits"].value()) == ("90d", True)
    for fields, days in (
        ({"lifetime": "90d"}, 90),
        ({"lifetime": ""}, None),
        ({"lifetime": "90d", "expires": "12d"}, 12),
    ):
        assert "Token issued" in issue(admin, customer, **fields).text
        token = ProxyToken.objects.latest("pk")
        left = token.expires_at - token.created_at if token.expires_at else None
        assert (left.days if left is not None else None) in {days, days and days - 1}, fields


@pytest.fixture
def other_model(gateway: Gateway) -> Any:
    """A second model, of a provider of its own, which draws apart from the first."""
    name = f"other-{uuid.uuid4().hex[:8]}"
    folder = gateway.folder / name
    with sandbox(folder, "another-key") as url:
        yield point_at(url, "another-key", name, default=False), folder / "generations.jsonl"


def drawn(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_token_may_have_a_model_of_its_own(
    admin: Client, gateway: Gateway, customer: Customer, other_model: Any
) -> None:
    model, account = other_model
    answer = issue(admin, customer, model=model.name)
    secret = re.findall(r'value="(gem_[0-9A-Za-z]{46})"', answer.text)[0]
    wait_until(lambda: gateway.post(secret, SMALL).status_code == 200)  # the catalog is read every second
    assert (drawn(account), gateway.post(customer.secret, SMALL).status_code) == (1, 200)
    assert drawn(account) == 1, "the tenant's other tokens have the tenant's model"
    token = ProxyToken.objects.latest("pk")
    change = {"name": "ci", "expires_at_0": "", "expires_at_1": "", "networks": ""} | rows("limits")
    assert admin.post(page("tokens_proxytoken_change", token.pk), change | {"model": ""}).status_code == 302
    assert (gateway.post(secret, SMALL).status_code, drawn(account)) == (200, 1), "from the next call on"
    assert "Select a valid choice" in issue(admin, customer, model="nobody-1").text


def test_a_leaked_token_is_found_and_stays_nowhere(
    admin: Client, customer: Customer, caplog: pytest.LogCaptureFixture
) -> None:
    find = page("tokens_proxytoken_find_leaked")
    log_line = f'POST /x "Authorization: Bearer {customer.secret}", 200\n'
    answer = admin.post(find, {"pasted": log_line})
    assert customer.token.name in answer.text
    assert "Still works" in answer.text
    assert page("tokens_proxytoken_revoke", customer.token.pk) in answer.text
    assert "no-store" in answer["Cache-Control"]
    session = Session.objects.get(pk=admin.session.session_key).get_decoded()
    trail = json.dumps(list(AuditEntry.objects.values_list("changes", "object_name", "reason")))
    places = [answer.text, str(dict(answer.items())), str(answer.cookies), str(session), trail, caplog.text]
    assert [place for place in places if customer.secret[10:] in place] == []
    stopping.revoke(customer.token.pk, "x")
    assert "Harmless" in admin.post(find, {"pasted": customer.secret}).text
    for unknown in (secrets.make_secret(), customer.secret[:-1], customer.secret[:-1] + "!", "nothing"):
        assert "Not known here" in admin.post(find, {"pasted": unknown}).text, unknown


def test_old_secrets_imported_ones_and_api_keys_are_found(admin: Client, customer: Customer) -> None:
    find = page("tokens_proxytoken_find_leaked")
    new = issuing.rotate(customer.token, dt.timedelta(hours=1))
    assert "old secret, accepted until" in admin.post(find, {"pasted": customer.secret}).text
    assert admin.post(find, {"pasted": f"{customer.secret} {new}"}).text.count("Still works") == 2
    imported = f"legacy-{uuid.uuid4().hex}"
    issuing.import_token(customer.member, "from before", imported)
    assert "from before" in admin.post(find, {"pasted": f" {imported}\n"}).text
    key, secret = apikeys.issue("SAP", ["usage:read"], None)
    assert f"/apikey/{key.pk}/revoke/" in admin.post(find, {"pasted": secret}).text


def signed_in(tenant: Any, role: Role) -> Client:
    person = User.objects.create_user(f"{uuid.uuid4().hex}@example.com")
    member = issuing.add_member(tenant, person.email)
    member.role = role
    member.save()
    client = Client()
    client.force_login(User.objects.get(pk=person.pk))
    return client


def test_only_ones_own_tokens_are_found(make_customer: Callable[..., Customer]) -> None:
    ours, theirs = make_customer(), make_customer()
    find = page("tokens_proxytoken_find_leaked")
    viewer = signed_in(ours.tenant, Role.VIEWER)
    assert "Not known here" in viewer.post(find, {"pasted": theirs.secret}).text
    found = viewer.post(find, {"pasted": ours.secret}).text
    assert "Still works" in found
    assert "/revoke/" not in found
    listed = viewer.get(page("tokens_proxytoken_changelist"), {"q": theirs.tenant.slug}).context["cl"].result_list
    assert list(listed) == []


def test_a_whole_secret_is_never_searched_for_by_an_address(admin: Client, customer: Customer) -> None:
    answer = admin.get(page("tokens_proxytoken_changelist"), {"q": customer.secret})
    assert list(answer.context["cl"].result_list) == []
    assert "That is a whole secret" in answer.text


def test_tokens_are_found_by_what_people_remember(admin: Client, customer: Customer) -> None:
    mark = uuid.uuid4().hex[:8]
    token, secret = issuing.issue_token(issuing.add_member(customer.tenant, f"{mark}@example.com"), f"CI {mark} runner")
    for term in (mark, mark.upper(), f"{mark[2:]} run", f"{mark}@exam", secret[:10], secret[:20]):
        found = admin.get(page("tokens_proxytoken_changelist"), {"q": term}).context["cl"].result_list
        assert token in found, term
    by_tenant = admin.get(page("tokens_proxytoken_changelist"), {"q": customer.tenant.slug}).context["cl"].result_list
    assert set(by_tenant) == {token, customer.token}
    for term in ("%", "_" * 9, mark + "x"):
        assert token not in admin.get(page("tokens_proxytoken_changelist"), {"q": term}).context["cl"].result_list


def test_the_list_asks_the_same_for_one_and_for_many_and_never_counts(admin: Client, customer: Customer) -> None:
    def asked(query: str) -> list[str]:
        with CaptureQueriesContext(connection) as queries:
            assert admin.get(page("tokens_proxytoken_changelist") + query).status_code == 200
        return [query["sql"] for query in queries]

    query = f"?tenant__id__exact={customer.tenant.pk}"
    before = asked(query)
    for number in range(20):
        issuing.issue_token(issuing.add_member(customer.tenant, f"m{number}@{customer.tenant.slug}.test"), "many")
    after = asked(query)
    assert len(before) == len(after)
    assert [sql for sql in after + asked("?q=many") if "COUNT(*)" in sql and "proxytoken" in sql] == []


def test_status_at_a_glance(customer: Customer) -> None:
    token = customer.token
    assert status_of(token) == "unused"
    Secret.objects.filter(token=token).update(last_used_at=now())
    for days, status in ((13, "soon"), (15, "active"), (-1, "expired")):
        token.expires_at = now() + dt.timedelta(days=days)
        token.save()
        assert status_of(ProxyToken.objects.get(pk=token.pk)) == status
    token.expires_at = None
    token.save()
    issuing.rotate(token, dt.timedelta(hours=1))
    assert status_of(ProxyToken.objects.get(pk=token.pk)) == "grace"


def uses(books: Books) -> list[tuple[str, str, int]]:
    return sorted((use.address or "", use.agent, use.calls) for use in SecretUse.objects.filter(secret=books.secret))


def test_the_cut_over_says_who_still_has_the_old_secret(admin: Client) -> None:
    books = Books()
    record([books.event(agent="before/1", address="192.0.2.1")])
    address = page("tokens_proxytoken_cut_over", books.token.pk)
    assert cut_over(books.token) is None
    assert "one secret only" in admin.get(address).text
    issuing.rotate(books.token, dt.timedelta(days=7))
    assert "breaks nothing known" in admin.get(address).text
    old = [books.event(agent="app/2", address="192.0.2.7") for _ in range(3)]
    old += [books.event(agent="cron/1", address="2001:db8::1")]
    record(old)
    record(old)  # the same events once more change nothing
    record([books.event(agent="app/2", address="192.0.2.7")])
    assert uses(books) == [("192.0.2.7", "app/2", 4), ("2001:db8::1", "cron/1", 1)]
    shown = admin.get(address).text
    assert "2 clients have called with the old secret in the last 24 hours" in shown
    assert "their next call gets 403" in admin.get(page("tokens_proxytoken_end_grace", books.token.pk)).text
    SecretUse.objects.filter(secret=books.secret).update(last_at=now() - dt.timedelta(days=2))
    # They are from before the new secret now, as calls that were booked late.
    assert "breaks nothing known" in admin.get(address).text
    admin.post(page("tokens_proxytoken_end_grace", books.token.pk))
    assert "The grace is over" in admin.get(address).text


def test_control_uses_of_a_current_secret_are_not_kept(admin: Client) -> None:
    books = Books()
    record([books.event(), books.event()])
    assert uses(books) == []


def test_of_a_secret_everybody_has_only_so_many_clients_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(olduses, "ADD", olduses.ADD.replace("< 200", "< 3"))
    books = Books()
    issuing.rotate(books.token, dt.timedelta(days=7))
    for number in range(6):
        record([books.event(address=f"192.0.2.{number}", agent="x")])
    record([books.event(address="192.0.2.1", agent="x")])
    assert uses(books) == [("192.0.2.0", "x", 1), ("192.0.2.1", "x", 2), ("192.0.2.2", "x", 1)]


def test_revoking_asks_for_a_reason(admin: Client, customer: Customer) -> None:
    revoke = page("tokens_proxytoken_revoke", customer.token.pk)
    assert "This field is required" in admin.post(revoke, {"reason": " "}).text
    assert "never, as far as the books know" in admin.get(revoke).text
    assert ProxyToken.objects.get(pk=customer.token.pk).revoked_at is None


def plan_of(queryset: Any) -> str:
    """How a query is answered when only those indexes are left that serve its conditions as they stand.

    On tables as small as these the planner may take any way, and takes another one after every analysis.
    """
    others = ("enable_seqscan", "enable_indexscan", "enable_indexonlyscan", "enable_nestloop")
    with transaction.atomic(), connection.cursor() as cursor:
        for way in others:
            cursor.execute(f"SET LOCAL {way} = off")
        return str(queryset.explain())


@pytest.mark.parametrize("term", ["runner", "ru"])
def test_a_search_uses_its_indexes(term: str) -> None:
    plan = plan_of(finding.matching(term))
    for index in ("tokens_by_a_part_of_a_name", "users_by_a_part_of_an_address", "secrets_by_first_characters"):
        assert index in plan


def test_control_a_search_that_fits_no_index_is_caught() -> None:
    assert "tokens_by_a_part_of_a_name" not in plan_of(ProxyToken.objects.filter(name__contains="runner"))
    by_address = ProxyToken.objects.filter(member__user__email__contains="runner")
    assert "users_by_a_part_of_an_address" not in plan_of(by_address)
    assert "secrets_by_first_characters" not in plan_of(Secret.objects.filter(shown__contains="runner"))

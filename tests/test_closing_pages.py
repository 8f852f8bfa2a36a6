"""The pages *Months* and *Statements*: who may close, what is said before, what is downloaded, and by whom."""

# ruff: noqa: F811 - fixtures are imported

import dataclasses
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from tests.adminpages import page
from tests.bookkeeping import Customer as Books
from tests.test_closing import LAST, _nothing_of_others, acme, closed, reserved, used  # noqa: F401 - fixtures
from tokens import issuing, roles
from tokens.audit import AuditEntry
from tokens.models import Role, Tenant, User
from usage import keeping
from usage.admin import monthpages
from usage.exporting.formats import FORMATS
from usage.models import Statement, StatementFile
from usage.resolving import NOTHING, resolve
from usage.tasks import make_exports
from usage.verifying import verify

pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous iterators:Warning")

MONTHS, CLOSE = reverse("months"), reverse("close_months")


def hired(tenant: Tenant, role: Role) -> Client:
    member = issuing.add_member(tenant, f"{uuid.uuid4().hex}@closing.test")
    roles.set_role(member, role)
    client = Client()
    client.force_login(User.objects.get(pk=member.user_id))
    return client


@pytest.fixture
def finance() -> Client:
    client = Client()
    client.force_login(User.objects.create_user(f"{uuid.uuid4().hex}@closing.test", is_finance=True))
    return client


def confirmed(client: Client, books: Books) -> str:
    """Close the tenant's month as a person does: read the page, confirm it."""
    address = f"{CLOSE}?tenant={books.tenant.slug}"
    asked = client.get(address)
    assert "Closing is for good" in asked.text
    kept = dict(asked.context["kept"])
    return str(client.post(address, kept, follow=True).text)


def test_finance_closes_a_month_and_downloads_its_files(acme: Books, finance: Client) -> None:
    used(acme, LAST)
    used(acme, LAST, "unresolved")
    listed = finance.get(f"{MONTHS}?q={acme.tenant.slug}").text
    assert f"{LAST:%B %Y}" in listed and "0.08 EUR" in listed and "1 unresolved call" in listed
    asked = finance.get(f"{CLOSE}?tenant={acme.tenant.slug}").text
    assert "1: not charged" in asked and "0.08 EUR" in asked
    assert not Statement.objects.filter(tenant=acme.tenant).exists(), "asking closes nothing"
    told = confirmed(finance, acme)
    statement = Statement.objects.get(tenant=acme.tenant)
    assert f"statement {statement.number}" in told
    shown = finance.get(page("usage_statement_change", statement.pk)).text
    assert statement.content_hash in shown and "0.08 EUR" in shown
    for name in FORMATS:
        got = finance.get(page("usage_statement_file", statement.pk, name))
        file = statement.files.get(format=name)
        content = b"".join(keeping.content(file))
        assert b"".join(got) == content
        assert got["X-Content-Type-Options"] == "nosniff" and statement.number in got["Content-Disposition"]
        assert got["Content-Length"] == str(len(content))
    downloads = AuditEntry.objects.filter(object_type="usage.statement", object_id=str(statement.pk), verb="exported")
    assert downloads.count() == len(FORMATS)
    assert downloads.first().tenant_id == acme.tenant.pk  # type: ignore[union-attr]


def test_what_is_blocked_is_named_with_what_to_do(acme: Books, finance: Client) -> None:
    used(acme, LAST)
    with reserved(acme, LAST):
        listed = finance.get(f"{MONTHS}?q={acme.tenant.slug}&state=blocked").text
        assert "1 call is under way" in listed and "within their lease" in listed
        told = finance.post(
            f"{CLOSE}?tenant={acme.tenant.slug}", {"month": f"{acme.tenant.pk}:{LAST:%Y-%m}"}, follow=True
        )
        assert "can&#x27;t be closed yet" in told.text or "can't be closed yet" in told.text
    assert not Statement.objects.filter(tenant=acme.tenant).exists()


def test_a_confirmation_is_for_the_month_that_was_shown(acme: Books, finance: Client) -> None:
    used(acme, LAST)
    told = finance.post(f"{CLOSE}?tenant={acme.tenant.slug}", {"month": f"{acme.tenant.pk}:2001-01"}, follow=True).text
    assert "has changed meanwhile" in told
    assert not Statement.objects.filter(tenant=acme.tenant).exists()


@pytest.mark.parametrize("meanwhile", ["another policy", "a call of unknown outcome"])
def test_a_confirmation_is_for_the_decisions_that_were_shown(acme: Books, finance: Client, meanwhile: str) -> None:
    used(acme, LAST, "exact" if meanwhile != "another policy" else "unresolved")
    address = f"{CLOSE}?tenant={acme.tenant.slug}"
    kept = dict(finance.get(address).context["kept"])
    if meanwhile == "another policy":
        acme.tenant.unresolved_policy = "estimate"
        acme.tenant.save()
    else:
        used(acme, LAST, "unresolved")
    assert "has changed meanwhile" in finance.post(address, kept, follow=True).text
    assert not Statement.objects.filter(tenant=acme.tenant).exists()
    assert "statement" in confirmed(finance, acme)


def test_all_that_is_ready_is_closed_together(finance: Client) -> None:
    mark = f"m{uuid.uuid4().hex[:10]}"
    customers = [Books() for _ in range(3)]
    for books in customers:
        books.tenant.name = f"{mark} {books.tenant.slug}"
        books.tenant.save()
        used(books, LAST)
    asked = finance.get(f"{CLOSE}?q={mark}")
    assert "Close 3 months?" in asked.text
    months = [value for _, value in asked.context["kept"]]
    told = finance.post(f"{CLOSE}?q={mark}", {"month": months}, follow=True).text
    assert "Closed 3 months" in told
    assert Statement.objects.filter(tenant__in=[books.tenant for books in customers]).count() == 3
    assert "No month is ready" in finance.get(f"{CLOSE}?q={mark}", follow=True).text


def test_a_tenants_people_see_their_own_statements_and_close_nothing(acme: Books) -> None:
    other = Books()
    for books in (acme, other):
        used(books, LAST)
    ours, theirs = closed(acme), closed(other)
    for role in (Role.VIEWER, Role.ADMINISTRATOR):
        person = hired(acme.tenant, role)
        assert [one.pk for one in person.get(page("usage_statement_changelist")).context["cl"].result_list] == [ours.pk]
        assert person.get(page("usage_statement_change", ours.pk)).status_code == 200
        assert person.get(page("usage_statement_file", ours.pk, "pdf")).status_code == 200
        said = person.get(page("usage_statement_change", ours.pk)).text
        taken = b"".join(person.get(page("usage_statement_csv"))).decode()
        assert "platform staff" in said and ',"platform staff",' in taken and "tests" not in taken
        assert person.get(page("usage_statement_change", theirs.pk)).status_code in {302, 404}
        assert person.get(page("usage_statement_file", theirs.pk, "pdf")).status_code == 404
        assert person.get(MONTHS).status_code == person.get(CLOSE).status_code == 403
        assert person.post(f"{CLOSE}?tenant={acme.tenant.slug}", {"month": ""}).status_code == 403


def test_nobody_changes_or_deletes_a_statement(acme: Books, admin: Client, finance: Client) -> None:
    used(acme, LAST)
    statement = closed(acme)
    for client in (admin, finance):
        assert client.get(page("usage_statement_add")).status_code == 403
        assert client.post(page("usage_statement_change", statement.pk), {"number": "x"}).status_code == 403
        assert client.post(page("usage_statement_delete", statement.pk), {"post": "yes"}).status_code == 403
    assert admin.get(page("usage_statement_file", statement.pk, "nonsense")).status_code == 404


def test_files_whose_making_was_interrupted_are_made_at_the_download(
    acme: Books,
    finance: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used(acme, LAST)
    with monkeypatch.context() as patched:
        patched.setattr(keeping, "_store", lambda *_: 1 / 0)
        statement = closed(acme)
    assert not StatementFile.objects.filter(statement=statement).exists()
    assert "made at the download" in finance.get(page("usage_statement_change", statement.pk)).text
    got = finance.get(page("usage_statement_file", statement.pk, "csv"))
    assert b"".join(got).startswith(b'"day"')
    assert statement.files.count() == len(FORMATS)


def test_the_files_of_much_usage_are_left_to_the_worker(
    acme: Books, finance: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for them, nor does the proxy before us."""
    used(acme, LAST)
    used(acme, LAST)
    monkeypatch.setattr(monthpages, "AT_ONCE", 1)
    assert "statement" in confirmed(finance, acme)
    statement = Statement.objects.get(tenant=acme.tenant)
    assert not statement.files.exists()
    make_exports()
    assert statement.files.count() == len(FORMATS)


def test_a_file_that_cant_be_made_keeps_no_other_back(
    acme: Books, finance: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that is too large for its format: it isn't tried again with each download of another."""
    used(acme, LAST)
    tried = []

    def fail(*_: Any) -> None:
        tried.append(1)
        raise ZeroDivisionError

    monkeypatch.setitem(FORMATS, "pdf", dataclasses.replace(FORMATS["pdf"], write=fail))
    statement = closed(acme)
    assert {file.format for file in statement.files.all()} == FORMATS.keys() - {"pdf"}
    assert finance.get(page("usage_statement_file", statement.pk, "csv")).status_code == 200
    assert len(tried) == 1
    told = finance.get(page("usage_statement_file", statement.pk, "pdf"), follow=True).text
    assert "There is no PDF statement of this statement" in told
    monkeypatch.undo()
    assert finance.get(page("usage_statement_file", statement.pk, "pdf")).status_code == 200
    assert [what for _, found in verify([statement]) for what in found] == []


def test_what_a_task_has_no_time_left_for_is_left_out(acme: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is kept: else it would be made anew with each tick, and other exports wait, for a day."""

    def take_too_long(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    used(acme, LAST)
    names = list(FORMATS)
    monkeypatch.setitem(FORMATS, names[2], dataclasses.replace(FORMATS[names[2]], write=take_too_long))
    statement = closed(acme)
    assert {file.format for file in statement.files.all()} == set(names[:2])
    monkeypatch.undo()
    keeping.keep(statement)
    assert statement.files.count() == len(names)


def test_a_month_without_charged_calls_has_no_unknown_amount(acme: Books, finance: Client) -> None:
    books = Books()
    used(books, LAST, "void")
    closed(books)
    shown = finance.get(f"{page('usage_statement_changelist')}?tenant__id__exact={books.tenant.pk}").text
    assert ">unknown<" not in shown


def test_no_more_queries_for_more_months(finance: Client, make: Callable[[int], str]) -> None:
    def queries(count: int) -> int:
        mark = make(count)
        with CaptureQueriesContext(connection) as captured:
            shown = finance.get(f"{MONTHS}?q={mark}")
        assert len(shown.context["rows"]) == count
        return len(captured)

    assert queries(1) == queries(20)


@pytest.fixture
def make() -> Callable[[int], str]:
    """Makes so many tenants with a month that is ready, and returns what finds them."""

    def of(count: int) -> str:
        mark = f"q{uuid.uuid4().hex[:10]}"
        for _ in range(count):
            books = Books()
            books.tenant.name = f"{mark} {books.tenant.slug}"
            books.tenant.save()
            used(books, LAST)
        return mark

    return of


def test_a_tenants_people_read_why_a_call_was_decided_and_not_who_of_the_platform_did(acme: Books) -> None:
    call = used(acme, LAST, "unresolved")
    resolve({call: NOTHING}, "nothing: in the account", "alice@platform.example")
    decision = acme.rows(call)[-1]
    assert decision.reason == "resolved by alice@platform.example: nothing: in the account"
    viewer = hired(acme.tenant, Role.VIEWER)
    shown = viewer.get(page("usage_usagerecord_change", decision.pk)).text
    taken = b"".join(viewer.get(page("usage_usagerecord_csv"))).decode()
    for text in (shown, taken):
        assert "resolved by platform staff: nothing: in the account" in text and "alice@platform" not in text

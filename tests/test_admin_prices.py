"""The price book in the admin: who sees it, what it says, and that a used price stays."""

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from tests.adminpages import page
from tests.bookkeeping import TODAY, Customer
from tokens import issuing, roles
from tokens.audit import AuditEntry
from tokens.models import Role, User
from usage.ledger import record
from usage.models import DailyUsage, Price

pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous iterators:Warning")

LONG_AGO = dt.date(2026, 1, 1)
ASKED = {"provider_per_image": "0.015", "provider_per_million_input": 0, "provider_per_million_output": 0}


@pytest.fixture
def alice() -> Customer:
    return Customer()


def signed_in(**rights: bool) -> Client:
    user = User.objects.create_user(f"{Customer().model}@prices.test")
    for name, value in rights.items():
        setattr(user, name, value)
    user.save()
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def admin() -> Client:
    return signed_in(is_superuser=True)


@pytest.fixture
def finance() -> Client:
    return signed_in(is_finance=True)


@pytest.fixture
def viewer(alice: Customer) -> Iterator[Client]:
    user = User.objects.create_user(f"viewer@{alice.model}.test")
    roles.set_role(issuing.add_member(alice.tenant, user.email), Role.ADMINISTRATOR)
    client = Client()
    client.force_login(user)
    yield client


def streamed(answer: Any) -> str:
    """A file's text."""
    return b"".join(answer).decode()


def price(customer: Customer, **values: Any) -> Price:
    return Price.objects.create(
        **{"model": customer.model, "currency": "EUR", "valid_from": LONG_AGO, "per_image": "0.04", **values}
    )


def test_the_list_marks_what_is_in_force(admin: Client, alice: Customer) -> None:
    today = now().date()
    price(alice)
    price(alice, valid_from=today, per_image="0.05")
    price(alice, valid_from=today + dt.timedelta(days=40), per_image="0.06")
    listed = admin.get(page("usage_price_changelist"), {"q": alice.model})
    states = {str(row.per_image.normalize()): row.state_on(today) for row in listed.context["cl"].result_list}
    assert states == {"0.04": "ended", "0.05": "in force", "0.06": "planned"}
    for state, amount in (("ended", "0.04"), ("force", "0.05"), ("planned", "0.06")):
        only = admin.get(page("usage_price_changelist"), {"q": alice.model, "state": state})
        assert [row.per_image for row in only.context["cl"].result_list] == [Decimal(amount)]


def test_the_list_asks_no_more_for_more_prices(admin: Client, alice: Customer) -> None:
    counts = []
    for rows in (1, 19):
        for number in range(rows):
            price(alice, tenant=Customer().tenant, valid_from=LONG_AGO + dt.timedelta(days=number))
        with CaptureQueriesContext(connection) as queries:
            assert admin.get(page("usage_price_changelist"), {"q": alice.model}).status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_adding_one_says_for_which_calls_it_is(admin: Client, alice: Customer) -> None:
    assert "goes before one for everybody" in " ".join(admin.get(page("usage_price_add")).text.split())
    data = {"model": alice.model, "tenant": alice.tenant.pk, "size": "512x512", "quality": "", "currency": "eur"}
    answer = admin.post(page("usage_price_add"), {**data, "valid_from": "2026-12-01", "per_image": "0.05"}, follow=True)
    told = (
        f"From 1 December 2026 on, calls of {alice.tenant.slug} to {alice.model}, 512x512, any quality, cost 0.05 EUR"
    )
    assert told in answer.text
    assert "at least one price" in admin.post(page("usage_price_add"), {**data, "valid_from": "2026-12-02"}).text


def test_a_used_price_can_only_be_followed(admin: Client, alice: Customer) -> None:
    used, free = price(alice, **ASKED), price(alice, size="256x256")
    record([alice.event()])
    change = page("usage_price_change", used.pk)
    shown = admin.get(change).text
    assert "Calls were charged at this price" in shown.replace("&#x27;", "'")
    assert f"{page('usage_price_add')}?model={alice.model}" in shown
    assert admin.post(change, {"per_image": "9"}).status_code == 403
    assert admin.post(page("usage_price_delete", used.pk), {"post": "yes"}).status_code == 403
    both = {"action": "delete_selected", "_selected_action": [used.pk, free.pk], "post": "yes"}
    assert "calls were charged at it" in admin.post(page("usage_price_changelist"), both).text
    assert Price.objects.filter(pk__in=[used.pk, free.pk]).count() == 2
    assert admin.post(page("usage_price_delete", free.pk), {"post": "yes"}).status_code == 302


def test_one_that_is_used_while_its_form_is_open_stays(admin: Client, alice: Customer) -> None:
    told = price(alice)
    values = {name: getattr(told, name) for name in ("model", "size", "quality", "currency", "valid_from")}
    assert admin.post(page("usage_price_change", told.pk), {**values, "per_image": "0.05"}).status_code == 302
    record([alice.event()])
    assert admin.post(page("usage_price_change", told.pk), {**values, "per_image": "0.06"}).status_code in {200, 403}
    told.refresh_from_db()
    assert told.per_image == Decimal("0.05")


def test_a_page_names_what_goes_before(admin: Client, alice: Customer) -> None:
    everybodys, own = price(alice), price(alice, tenant=alice.tenant)
    assert page("usage_price_change", own.pk) in admin.get(page("usage_price_change", everybodys.pk)).text
    assert "It goes before these" in admin.get(page("usage_price_change", own.pk)).text


def test_a_file_is_shown_first_and_then_imported_whole(admin: Client, alice: Customer) -> None:
    at = page("usage_price_import_file")
    text = f"model,size,currency,valid_from,per_image\n{alice.model},,EUR,2026-12-01,0.05\n"
    file = SimpleUploadedFile("prices.csv", text.encode("utf-8-sig"))
    shown = admin.post(at, {"file": file})
    assert "This would import 1 price" in shown.text
    assert not Price.objects.filter(model=alice.model).exists()
    bad = admin.post(at, {"text": f"{text}{alice.model},large,EUR,2026-12-01,1\n", "confirmed": "1"})
    assert "Nothing was imported" in bad.text or "Nothing would be imported" in bad.text
    assert not Price.objects.filter(model=alice.model).exists()
    assert admin.post(at, {"text": text, "confirmed": "1"}).status_code == 302
    assert Price.objects.get(model=alice.model).per_image == Decimal("0.05")
    assert AuditEntry.objects.filter(object_type="usage.price", verb="imported").exists()
    assert "there already" in admin.post(at, {"text": text}).text
    assert "Choose a file or give its text" in admin.post(at, {}).text or admin.post(at, {}).status_code == 200
    assert "must name columns" in admin.post(at, {"text": "colour\nred"}).text


def test_the_calculator_answers_and_says_by_which_price(admin: Client, finance: Client, alice: Customer) -> None:
    own = price(alice, tenant=alice.tenant, **ASKED)
    at = page("usage_price_calculate")
    asked = {"model": alice.model, "tenant": alice.tenant.slug, "size": "512x512", "images": "2"}
    for client in (admin, finance):
        answer = client.get(at, asked)
        assert (answer.context["cost"], answer.context["margin"]) == ("0.08", "0.05")
        assert page("usage_price_change", own.pk) in answer.text
    assert "no price for such a call" in admin.get(at, {**asked, "tenant": ""}).text
    assert "There is no tenant" in admin.get(at, {**asked, "tenant": "nobody"}).text
    apart = price(alice, per_million_input=1, per_million_output=2, valid_from=LONG_AGO + dt.timedelta(days=1))
    split = {"model": apart.model, "tokens": "10", "images": "1"}
    assert "only their sum is given" in admin.get(at, split).text


def test_finance_reads_prices_and_changes_none(finance: Client, alice: Customer) -> None:
    told = price(alice)
    assert finance.get(page("usage_price_export")).text.count(alice.model) == 1
    assert finance.get(page("usage_price_change", told.pk)).status_code == 200
    for at in (page("usage_price_add"), page("usage_price_import_file")):
        assert finance.get(at).status_code == 403
    assert finance.post(page("usage_price_change", told.pk), {"per_image": "9"}).status_code == 403


# Provider costs are nothing for a tenant's people


Ask = Callable[[Client], str]
OF_A_TENANT: dict[str, Ask] = {
    "the list": lambda client: client.get(page("usage_dailyusage_changelist")).text,
    "its file": lambda client: streamed(client.get(page("usage_dailyusage_csv"))),
    "the calls": lambda client: streamed(client.get(page("usage_usagerecord_csv"))),
    "the trail": lambda client: client.get(page("tokens_auditentry_changelist")).text,
}


@pytest.mark.parametrize("name", OF_A_TENANT)
def test_a_tenants_people_see_no_provider_cost(viewer: Client, alice: Customer, name: str) -> None:
    price(alice, tenant=alice.tenant, **{**ASKED, "provider_per_image": "0.01234567"})
    record([alice.event()])
    shown = OF_A_TENANT[name](viewer)
    assert alice.tenant.slug in shown or alice.model in shown
    for secret in ("0.02469134", "0.01234567", "0.05530866", "provider_cost"):
        assert secret not in shown
    if name == "its file":
        assert "0.02469134" in streamed(signed_in(is_finance=True).get(page("usage_dailyusage_csv")))


def test_they_cant_find_it_out_by_filters(viewer: Client, finance: Client, alice: Customer) -> None:
    price(alice, tenant=alice.tenant, **ASKED)
    record([alice.event(day=str(TODAY))])
    assert DailyUsage.objects.get(tenant=alice.tenant).provider_cost == Decimal("0.03")
    for at, name in (
        *(("usage_dailyusage", "provider_cost__gt"), ("usage_usagerecord", "price__provider_per_image__gt")),
        *(("usage_usagerecord", "price__id__exact"), ("usage_usagerecord", "price_id")),
    ):
        assert viewer.get(page(f"{at}_changelist"), {name: "1"}).status_code == 400, name
    assert finance.get(page("usage_usagerecord_changelist"), {"price__id__exact": "1"}).status_code == 200

"""Quarantined events: kept as they came, booked once the cause is mended, set aside, and open again when they recur."""

import io
import json
import uuid
from typing import Any

import msgspec
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from tests.adminpages import page
from tests.bookkeeping import Customer as Books
from tokens.audit import AuditEntry, Verb
from tokens.errors import Refused
from tokens.models import ProxyToken, User
from usage import events
from usage.events import BadEventError, parse
from usage.ledger import record
from usage.models import EventReceipt, QuarantinedEvent
from usage.quarantine import quarantine_entry, quarantine_event, stream_entry, whose
from usage.retrying import read, retry, set_aside

CALL = uuid.UUID("01a202d2-8c62-73a9-99b3-b0e52c5db036")


@pytest.fixture
def alice() -> Books:
    return Books()


@pytest.fixture
def operator() -> User:
    """An administrator without a password, which would take long to hash."""
    return User.objects.create(email=f"{uuid.uuid4().hex}@operators.test", is_staff=True, is_superuser=True)


def newest(alice: Books) -> QuarantinedEvent:
    """Of her events; others may be quarantined meanwhile."""
    return QuarantinedEvent.objects.filter(raw__generation=alice.generation).latest("id")


def of_a_token_to_come(alice: Books) -> tuple[QuarantinedEvent, int]:
    """An event that the database refused, and the id of the token it wants."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval(pg_get_serial_sequence('tokens_proxytoken', 'id'))")
        missing = int(cursor.fetchone()[0])
    record([alice.event(token=missing)])
    entry = newest(alice)
    assert (entry.error, alice.rows()) == ("IntegrityError", [])
    return entry, missing


def unreadable(alice: Books) -> QuarantinedEvent:
    """An event of a kind that this version doesn't know."""
    fields = {**alice.fields(), b"kind": b"exactly"}
    with pytest.raises(BadEventError) as bad:
        parse(fields)
    quarantine_entry(fields, bad.value)
    return newest(alice)


def test_an_event_that_the_database_refused_is_booked_once_the_data_are_right(alice: Books, operator: User) -> None:
    entry, missing = of_a_token_to_come(alice)
    with pytest.raises(Refused, match="can't be booked now either"):
        retry(entry, operator)
    ProxyToken.objects.create(pk=missing, tenant=alice.tenant, member=alice.member, name="late")
    retry(entry, operator)
    (row,) = alice.rows()
    assert (row.token_id, row.charged_tokens) == (missing, 4182)
    assert EventReceipt.objects.filter(tenant=alice.tenant, sequence=alice.sequence).exists()
    entry.refresh_from_db()
    assert (entry.resolution, entry.resolved_by) == ("booked", operator)
    assert AuditEntry.objects.filter(verb=Verb.BOOKED, object_id=str(entry.pk)).count() == 1
    with pytest.raises(Refused, match="dealt with already: booked"):
        retry(entry, operator)
    alice.check_books()


def test_an_event_that_couldnt_be_read_is_booked_once_the_code_can(
    alice: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = unreadable(alice)
    with pytest.raises(Refused):
        retry(entry, "tests")
    monkeypatch.setitem(events.KINDS, b"exactly", "exact")
    retry(entry, "tests")
    record([read(entry.raw)])  # it comes once more, by another way
    entry.refresh_from_db()
    assert (len(alice.rows()), entry.resolution, entry.resolved_by) == (1, "booked (tests)", None)
    alice.check_books()


@pytest.mark.parametrize("value", [b"\xff\x00\xfe", "é\0".encode(), "\ufffd ü".encode(), b"", b'{"base64": "AA=="}'])
def test_a_stream_entry_is_kept_byte_by_byte(alice: Books, value: bytes) -> None:
    fields = alice.fields() | {b"result": value, b"salt": uuid.uuid4().hex.encode()}
    quarantine_entry(fields, ValueError("bad"))
    assert stream_entry(newest(alice).raw) == fields


def test_control_what_was_replaced_on_the_way_doesnt_come_back() -> None:
    lossy = b"\xff\x00\xfe".decode("utf-8", "replace").replace("\0", "\ufffd")
    assert stream_entry({"result": lossy}) != {b"result": b"\xff\x00\xfe"}


@pytest.mark.parametrize(
    "raw",
    [
        {"result": 5},
        {"result": {"base64": "%"}},
        {"charged": 5},
        {"a": "b"},
        {"charged": "x", "request_id": "y"},
    ],
)
def test_what_is_no_event_stays_open_and_says_why(raw: dict[str, Any]) -> None:
    entry = QuarantinedEvent.objects.create(raw=raw, digest=uuid.uuid4().hex, error="bad", message="")
    with pytest.raises(Refused):
        retry(entry, "tests")
    entry.refresh_from_db()
    assert (entry.resolved_at, entry.error) == (None, "BadEventError")
    assert entry.message


def test_an_event_as_it_was_read_comes_back_the_same(alice: Books) -> None:
    event = alice.event(provider_request_id="ü" * 40, latency_ms=7)
    quarantine_event(event, "test", "")
    assert read(newest(alice).raw) == event
    assert msgspec.to_builtins(event) == newest(alice).raw


@pytest.mark.parametrize("end", ["booked", "set aside"])
def test_an_event_that_comes_again_is_open_again(alice: Books, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = unreadable(alice)
    if end == "booked":
        with monkeypatch.context() as fixed:
            fixed.setitem(events.KINDS, b"exactly", "exact")
            retry(entry, "tests")
    else:
        set_aside(entry, "a test", "tests")
    entry.refresh_from_db()
    assert entry.resolution.startswith(end)
    quarantine_entry(stream_entry(entry.raw), BadEventError("once more"))
    entry.refresh_from_db()
    assert (entry.resolved_at, entry.resolution, entry.message) == (None, "", "once more")


def test_a_number_that_came_twice_is_booked_already(alice: Books) -> None:
    first = alice.event()
    alice.sequence -= 1
    second = alice.event()
    record([first])
    record([second])
    entry = newest(alice)
    assert (entry.error, len(alice.rows())) == ("SequenceUsedTwice", 2)
    with pytest.raises(Refused, match="is in the books"):
        retry(entry, "tests")
    set_aside(entry, "the store was restored", "tests")
    entry.refresh_from_db()
    with pytest.raises(Refused, match="set aside: the store was restored"):
        set_aside(entry, "again", "tests")
    alice.check_books()


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({}, (None, None)),
        ({"request_id": {"base64": "AA=="}, "call": {"base64": "AA=="}}, (None, None)),
        ({"request_id": "nonsense", "call": "nonsense"}, (None, None)),
        ({"request_id": "01a202d2-8c62-73a9-99b3-b0e52c5db036", "call": '{"tenant": "x"}'}, (None, CALL)),
        ({"request_id": "nonsense", "call": '{"tenant": 7, "v": 9}'}, (7, None)),
        ({"request_id": "01a202d2-8c62-73a9-99b3-b0e52c5db036", "tenant": 7, "charged": 5}, (7, CALL)),
    ],
)
def test_whose_event_it_is_is_told_where_it_can_be_read(raw: dict[str, Any], found: object) -> None:
    assert whose(raw) == found


def run(*words: str) -> tuple[str, str]:
    out, errors = io.StringIO(), io.StringIO()
    call_command("usage", "quarantine", *words, stdout=out, stderr=errors)
    return out.getvalue(), errors.getvalue()


def test_the_command_lists_tries_again_and_sets_aside(alice: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = unreadable(alice), unreadable(alice)
    ids = [str(first.pk), str(second.pk)]
    assert {line.split("\t")[0] for line in run("list")[0].splitlines()} >= set(ids)
    (line,) = (line for line in run("list")[0].splitlines() if line.startswith(f"{first.pk}\t"))
    request = first.raw["request_id"]
    assert line.split("\t")[2:5] == [alice.tenant.slug, request, "BadEventError"]
    shown = json.loads(run("show", ids[0])[0])
    assert (shown["tenant"], shown["request_id"], shown["event"]) == (alice.tenant.slug, request, first.raw)
    with pytest.raises(CommandError, match="There is no such event"):
        run("show", "999999999")
    with pytest.raises(CommandError, match="0 booked, 3 not"):
        run("retry", *ids, "999999999")
    monkeypatch.setitem(events.KINDS, b"exactly", "exact")
    assert run("retry", ids[0])[0] == f"{ids[0]}\tbooked\n"
    run("dismiss", ids[1], "--reason", "a test")
    assert not {line.split("\t")[0] for line in run("list")[0].splitlines()} & set(ids)
    assert len(alice.rows()) == 1


def test_events_are_dealt_with_in_the_admin(
    admin: Client, operator: User, alice: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (unreadable(alice) for _ in range(3))
    change, listed = page("usage_quarantinedevent_change", first.pk), page("usage_quarantinedevent_changelist")
    html = admin.get(change).text
    assert "exactly" in html
    assert "Open: nobody has dealt with it" in html
    again = page("usage_quarantinedevent_retry", first.pk)
    assert "Try this event again?" in admin.get(again).text
    assert "can&#x27;t be booked now either" in admin.post(again, follow=True).text
    monkeypatch.setitem(events.KINDS, b"exactly", "exact")
    assert "it is in the books now" in admin.post(again, follow=True).text
    html = admin.get(change).text
    assert [str(operator) in html, again in html] == [True, False], "who did it; and nothing is left to do"
    assert "dealt with already: booked" in admin.get(again, follow=True).text
    assert "dealt with already" in admin.post(again, follow=True).text
    aside = page("usage_quarantinedevent_set_aside", second.pk)
    assert "This field is required" in admin.post(aside, {"reason": ""}).text
    assert "Set aside." in admin.post(aside, {"reason": "<b>"}, follow=True).text
    assert "Set aside: &lt;b&gt;" in admin.get(page("usage_quarantinedevent_change", second.pk)).text
    picked = {"action": "retry_selected", "_selected_action": [second.pk, third.pk]}
    assert "1 booked, 0 not" in admin.post(listed, picked, follow=True).text
    assert len(alice.rows()) == 2
    open_ones = {row.pk for row in admin.get(f"{listed}?open=1").context["cl"].result_list}
    assert not open_ones & {first.pk, second.pk, third.pk}


def test_selected_events_are_set_aside_with_a_reason(admin: Client, operator: User, alice: Books) -> None:
    entries = [unreadable(alice) for _ in range(3)]
    set_aside(entries[2], "before", "tests")
    listed = page("usage_quarantinedevent_changelist")
    html = admin.get(listed).text
    for shown in (alice.tenant.slug, str(whose(entries[0].raw)[1]), "Can&#x27;t be read", f"{entries[0].at:%H:%M:%S}"):
        assert shown in html, shown
    states = [row.resolved_at is None for row in admin.get(listed).context["cl"].result_list]
    assert states == sorted(states, reverse=True), "open ones first"
    picked = {"action": "set_aside_selected", "_selected_action": [entry.pk for entry in entries]}
    assert "Set 2 events aside?" in admin.post(listed, picked).text
    assert "This field is required" in admin.post(listed, picked | {"reason": ""}).text
    assert "2 set aside." in admin.post(listed, picked | {"reason": "a test"}, follow=True).text
    for entry in entries[:2]:
        entry.refresh_from_db()
        assert (entry.resolution, entry.resolved_by) == ("set aside: a test", operator)
    assert "dealt with already" in admin.post(listed, picked, follow=True).text


def test_strangers_and_those_who_only_look_deal_with_nothing(alice: Books) -> None:
    entry = unreadable(alice)
    urls = [page(f"usage_quarantinedevent_{name}", entry.pk) for name in ("retry", "set_aside")]
    assert [Client().post(url)["Location"].startswith("/admin/login/") for url in urls] == [True, True]
    person = User.objects.create(email=f"{uuid.uuid4().hex}@operators.test", is_finance=True)
    client = Client()
    client.force_login(person)
    assert [client.post(url, {"reason": "x"}).status_code for url in urls] == [403, 403]
    entry.refresh_from_db()
    assert entry.resolved_at is None


@pytest.mark.parametrize("query", ["q=%00", "open=%00", "error=%00"])
def test_a_query_that_postgresql_cannot_take_leads_back_to_the_list(admin: Client, query: str) -> None:
    for name in ("usage_quarantinedevent_changelist", "usage_alarm_changelist"):
        answer = admin.get(f"{page(name)}?{query}", follow=True)
        assert answer.status_code == 200, name

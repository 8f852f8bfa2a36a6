"""Alarms open, are told once, and close by themselves."""

import datetime as dt
import re
import socketserver
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from django.conf import settings as gateway_settings
from django.core.mail import EmailMessage
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.utils.timezone import now
from prometheus_client.parser import text_string_to_metric_families

from config.redis import store
from gateway import bookmetrics, metrics
from tests.adminpages import page
from tests.bookkeeping import Customer as Books
from tests.bookkeeping import request_id
from tests.ownbooks import own_books
from tests.ownvalkey import OwnValkey
from tests.processes import free_port
from tests.scriptcalls import EXACT, Caller
from tokens.admission import keys
from tokens.models import User
from usage import alarmchecks, alarms, drain
from usage.alarms import AlarmKind, clear_alarms, raise_alarm, send_mails
from usage.ledger import record
from usage.models import Alarm, QuarantinedEvent, UnsettledCall

ROOT = Path(__file__).resolve().parent.parent
KIND = AlarmKind.QUARANTINE
Sent = list[EmailMessage]


@pytest.fixture(scope="module")
def books(django_db_setup: None, django_db_blocker: Any) -> Iterator[OwnValkey]:
    with django_db_blocker.unblock(), own_books() as valkey:
        yield valkey


@pytest.fixture(autouse=True)
def _no_alarms(books: OwnValkey, settings: Any, tmp_path: Path) -> None:
    settings.ALARM_EMAILS = ["ops@example.com", "finance@example.com"]
    settings.SPOOL_ROOT = tmp_path / "spool"
    settings.SPOOL_ROOT.mkdir()
    Alarm.objects.all().delete()


def states() -> dict[str, bool]:
    """Subject -> whether it is open."""
    return {alarm.subject: alarm.closed_at is None for alarm in Alarm.objects.all()}


def test_an_alarm_opens_once_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    raise_alarm(KIND, "acme", "Two are missing.")
    raise_alarm(KIND, "acme", "Three are missing.")
    raise_alarm(KIND, "other", "One is missing.")
    assert states() == {"acme": True, "other": True}
    assert Alarm.objects.get(subject="acme").message == "Three are missing."
    errors = [line for line in caplog.records if line.levelname == "ERROR"]
    assert [(line.kind, line.subject) for line in errors] == [(KIND, "acme"), (KIND, "other")]  # type: ignore[attr-defined]
    clear_alarms(KIND, {"other"})
    assert states() == {"acme": False, "other": True}
    clear_alarms(AlarmKind.BACKLOG)
    assert states()["other"]


def test_one_that_comes_back_soon_is_the_same(mailoutbox: Sent) -> None:
    for _ in range(3):
        raise_alarm(KIND, "", "Some.")
        send_mails()
        clear_alarms(KIND)
    assert Alarm.objects.count() == len(mailoutbox) == 1
    Alarm.objects.update(closed_at=now() - dt.timedelta(hours=2))
    raise_alarm(KIND, "", "Some.")
    assert send_mails() == 1
    assert Alarm.objects.count() == len(mailoutbox) == 2


def test_two_processes_open_one(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_alarm(KIND, "", "Some.")
    real = Alarm.objects.filter
    blind = iter([Alarm.objects.none()])
    monkeypatch.setattr(Alarm.objects, "filter", lambda **by: next(blind, None) or real(**by))
    raise_alarm(KIND, "", "Some.")  # which didn't see the other's when it looked
    assert Alarm.objects.count() == 1


def test_a_check_that_fails_keeps_no_other_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise() -> dict[str, str]:
        raise PermissionError("a file that isn't ours")

    checks = {AlarmKind.SPOOL: surprise, KIND: lambda: {"": "Some."}}
    monkeypatch.setattr(alarmchecks, "CHECKS", checks)
    alarmchecks.check()
    assert states() == {"": True}


def test_a_burst_is_one_mail_that_tells_all(mailoutbox: Sent, settings: Any) -> None:
    for number in range(alarms.MOST_IN_A_MAIL + 5):
        raise_alarm(KIND, f"tenant-{number}", f"{number} missing.")
    raise_alarm(AlarmKind.BACKLOG, "", "Events wait.")
    assert send_mails() == alarms.MOST_IN_A_MAIL + 6
    assert send_mails() == 0
    (mail,) = mailoutbox
    assert mail.to == settings.ALARM_EMAILS
    assert mail.subject == "[Gem Heaven Gateway] 56 alarms: quarantine, backlog"
    assert "Events that couldn't be booked: tenant-7\n  7 missing.\n  What to do: See why" in mail.body
    assert "And 6 more." in mail.body


def test_only_one_process_mails(mailoutbox: Sent) -> None:
    raise_alarm(KIND, "", "Some.")
    with psycopg.connect(**{**psycopg_parameters(), "autocommit": True}) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [alarms.LOCK])
        assert send_mails() == 0
    assert len(mailoutbox) == 0


def psycopg_parameters() -> dict[str, Any]:
    known = ("host", "port", "user", "password", "dbname")
    return {name: value for name, value in connection.get_connection_params().items() if name in known}


class Sink(socketserver.StreamRequestHandler):
    """As much of an SMTP server as takes a mail (RFC 5321)."""

    mails: list[str] = []

    def handle(self) -> None:
        self.wfile.write(b"220 sink\r\n")
        data: list[str] | None = None
        for raw in self.rfile:
            line = raw.decode().rstrip("\r\n")
            if data is not None and line != ".":
                data.append(line)
                continue
            if data is not None:
                self.mails.append("\n".join(data))
                data = None
            elif line.lower() == "data":
                data = []
                self.wfile.write(b"354 go on\r\n")
                continue
            self.wfile.write(b"221 bye\r\n" if line.lower() == "quit" else b"250 yes\r\n")


def test_a_mail_server_that_fails_is_asked_again(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port()
    raise_alarm(KIND, "acme", "Two are missing.")
    clear_alarms(KIND)
    assert send_mails() == 0
    assert "Alarms can't be mailed (ConnectionRefusedError)" in caplog.text
    assert Alarm.objects.get().mailed_at is None
    with socketserver.TCPServer(("127.0.0.1", 0), Sink) as server:
        settings.EMAIL_PORT = server.server_address[1]
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert send_mails() == 1, "though it is over by now"
    assert "To: ops@example.com, finance@example.com" in Sink.mails[0]
    assert "Two are missing." in Sink.mails[0]
    assert send_mails() == 0


def test_without_addresses_nobody_is_mailed(settings: Any, mailoutbox: Sent) -> None:
    settings.ALARM_EMAILS = []
    raise_alarm(KIND, "", "Some.")
    assert (send_mails(), mailoutbox) == (0, [])


def away() -> None:
    raise OperationalError("away")


def test_an_alarm_that_cannot_be_kept_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transaction, "atomic", away)
    with pytest.raises(OperationalError):
        raise_alarm(KIND, "acme", "Two are missing.")
    assert "Two are missing." in caplog.text


def quarantined() -> Callable[[], object]:
    event = QuarantinedEvent.objects.create(raw={}, digest="alarm", error="BadEventError")
    return event.delete


def unsettled() -> Callable[[], object]:
    call = UnsettledCall.objects.create(request_id=request_id(), ending=b"{}", at=now() - dt.timedelta(minutes=6))
    return call.delete


def undecided() -> Callable[[], object]:
    books, of = Books(), request_id(now() - dt.timedelta(days=8))
    record([books.event("unresolved", of=of), books.event("unresolved")])
    return lambda: record([books.event("void", of=of)])


def bad_spool_file() -> Callable[[], object]:
    path = gateway_settings.SPOOL_ROOT / "a.bad"
    path.touch()
    (path.parent / "new.json").touch()
    return path.unlink


def exceeded() -> Callable[[], object]:
    store().set(keys.CATALOG, b'{"models": [{"name": "demo", "sizes": {"512x512": 100}, "key": ""}]}')
    store().hset(keys.EXCEEDED, "demo:512x512", 100)
    raised = b'{"models": [{"name": "demo", "sizes": {"512x512": 101}}]}'
    return lambda: store().set(keys.CATALOG, raised)


def waiting_event() -> Callable[[], object]:
    seconds, _ = store().time()
    Caller().calls(EXACT)
    store().xadd(keys.usage(0), {"old": 1}, id=f"{(seconds - 100) * 1000}-0")
    return lambda: store().delete(keys.usage(0))


def many_events() -> Callable[[], object]:
    gateway_settings.BACKLOG_LIMIT, before = 1, gateway_settings.BACKLOG_LIMIT
    store().xadd(keys.usage(1), {"new": 1})

    def over() -> None:
        gateway_settings.BACKLOG_LIMIT = before
        store().delete(keys.usage(1))

    return over


def filling_store() -> Callable[[], object]:
    """Over five sixths of what is allowed, under all of it: nobody is refused yet."""
    used = int(store().info("memory")["used_memory"])
    store().config_set("maxmemory", int(used / (0.9 * gateway_settings.MEMORY_LIMIT_SHARE)))
    return lambda: store().config_set("maxmemory", int(used / (0.6 * gateway_settings.MEMORY_LIMIT_SHARE)))


@pytest.mark.parametrize(
    ("kind", "subject", "cause"),
    [
        (AlarmKind.QUARANTINE, "", quarantined),
        (AlarmKind.UNSETTLED_OLD, "", unsettled),
        (AlarmKind.UNRESOLVED_OLD, "", undecided),
        (AlarmKind.SPOOL, "", bad_spool_file),
        (AlarmKind.BOUND_EXCEEDED, "demo 512x512", exceeded),
        (AlarmKind.BACKLOG, "", waiting_event),
        (AlarmKind.BACKLOG, "", many_events),
        (AlarmKind.STORE_FULL, "", filling_store),
    ],
)
def test_each_cause_has_its_alarm_until_it_is_gone(
    kind: AlarmKind, subject: str, cause: Callable[[], Callable[[], object]]
) -> None:
    drain.drain(claim_after_ms=0)
    alarmchecks.check()
    assert not Alarm.objects.filter(closed_at=None).exists(), "nothing is wrong yet"
    end = cause()
    alarmchecks.check()
    assert list(Alarm.objects.values_list("kind", "subject")) == [(kind, subject)]
    end()
    alarmchecks.check()
    assert not Alarm.objects.filter(closed_at=None).exists()


def test_with_the_store_down_the_rest_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raise_alarm(AlarmKind.BACKLOG, "", "Events wait.")
    end = quarantined()
    nobody = redis.Redis.from_url(f"unix://{tmp_path}/nobody")
    for module in (alarmchecks, drain):
        monkeypatch.setattr(module, "store", lambda: nobody)
    alarmchecks.check()
    end()
    opened = Alarm.objects.filter(closed_at=None).values_list("kind", flat=True)
    assert sorted(opened) == ["backlog", "quarantine", "store_down"], "what wasn't looked at stays as it was"


def test_the_metrics_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_alarm(AlarmKind.SEQUENCE_GAP, "a", "A gap.")
    raise_alarm(AlarmKind.SEQUENCE_GAP, "b", "A gap.")
    end = quarantined()
    before = figures()["gateway_unresolved_calls"]
    unsettled_end, books = unsettled(), Books()
    record([books.event("unresolved")])
    found = figures()
    assert found["gateway_database_up"] == 1
    assert found["gateway_sequence_gaps"] == found["gateway_alarms_open", "sequence_gap"] == 2
    assert found["gateway_alarms_open", "spool"] == 0
    assert found["gateway_quarantined_events"] == found["gateway_unsettled_calls"] == 1
    assert found["gateway_unresolved_calls"] == before + 1
    end(), unsettled_end()
    monkeypatch.setitem(connection.settings_dict, "PORT", str(free_port()))
    found = figures()
    assert found["gateway_database_up"] == 0
    assert not {name for name in found if name in bookmetrics.GAUGES or "alarms" in str(name)}


def figures() -> dict[Any, float]:
    """Name, with its label if there is one -> value."""
    families = text_string_to_metric_families(metrics.render()[0].decode())
    return {
        (sample.name, *sample.labels.values()) if sample.labels else sample.name: sample.value
        for family in families
        for sample in family.samples
    }


def test_people_see_them_and_close_what_cannot_come_right(admin: Client, operator: User) -> None:
    raise_alarm(AlarmKind.SEQUENCE_GAP, "acme 1-1", "One usage event never came in.")
    raise_alarm(AlarmKind.BACKLOG, "", "Events wait.")
    clear_alarms(AlarmKind.BACKLOG)
    listed = page("usage_alarm_changelist")
    assert [alarm.kind for alarm in admin.get(listed).context["cl"].result_list] == ["sequence_gap", "backlog"]
    assert [alarm.kind for alarm in admin.get(f"{listed}?state=closed").context["cl"].result_list] == ["backlog"]
    alarm = Alarm.objects.get(kind="sequence_gap")
    assert "One usage event never came in." in admin.get(page("usage_alarm_change", alarm.pk)).text
    assert "Alarms" in admin.get(page("index")).text
    picked = {"action": "close", "_selected_action": [alarm.pk]}
    asked = admin.post(listed, picked)
    assert "Mark 1 alarm as dealt with?" in asked.text
    assert f'name="_selected_action" value="{alarm.pk}"' in asked.text
    assert "This field is required" in admin.post(listed, picked | {"reason": " "}).text
    assert Alarm.objects.filter(pk=alarm.pk, closed_at=None).exists()
    assert "1 alarm closed." in admin.post(listed, picked | {"reason": "seen"}, follow=True).text
    alarm.refresh_from_db()
    assert alarm.closed_at
    assert f"Dealt with: seen ({operator})" in admin.get(page("usage_alarm_change", alarm.pk)).text
    assert "No open alarms." in admin.get(f"{listed}?state=open").text
    for refused in ("usage_alarm_delete", "usage_alarm_change"):
        assert admin.post(page(refused, alarm.pk), {"post": "yes"}).status_code == 403


def test_an_open_alarm_is_dealt_with_on_its_page(admin: Client, operator: User) -> None:
    subject = f"acme {uuid.uuid4()} 7-9"
    raise_alarm(AlarmKind.SEQUENCE_GAP, subject, "Some never came.")
    alarm = Alarm.objects.get()
    assert str(alarm) == "Lost usage events: acme 7-9"
    change, deal = page("usage_alarm_change", alarm.pk), page("usage_alarm_deal_with", alarm.pk)
    html = admin.get(change).text
    for shown in (
        "Open",
        "Lost usage events: acme 7-9",
        "usage reconcile --provider",
        page("usage_usagerecord_changelist"),
    ):
        assert shown in html, shown
    assert deal in html
    assert "&#x27;open&#x27;" not in html, "the label's two parts"
    assert 'id="submit-row"' not in html, "a button that says Close and only leaves"
    assert "This field is required" in admin.post(deal, {"reason": ""}).text
    landing = admin.get(page("index")).text
    assert (landing.count("gw-open-alarms"), "<strong>1</strong><span>open alarm</span>" in landing) == (1, True)
    assert "Dealt with." in admin.post(deal, {"reason": "a <b>test</b>"}, follow=True).text
    html = admin.get(change).text
    assert f"Dealt with: a &lt;b&gt;test&lt;/b&gt; ({operator})" in html
    assert deal not in html
    assert "over already" in admin.post(deal, {"reason": "again"}, follow=True).text
    assert "gw-open-alarms" not in admin.get(page("index")).text


def test_every_kind_has_its_advice() -> None:
    assert alarms.ADVICE.keys() == set(AlarmKind)
    for advice in alarms.ADVICE.values():
        assert not advice.page or page(advice.page)


def test_every_kind_is_documented() -> None:
    section = (ROOT / "docs" / "operations.md").read_text().partition("\n## Alarms")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [kind.value for kind in AlarmKind]

"""Large exports that a worker makes, and saved reports that are mailed: once, to whom they may be, and with words."""

import datetime as dt
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.core import mail
from django.db import connection
from django.test import Client, override_settings
from django.utils.timezone import now

from tests.bookkeeping import Customer, request_id
from tests.processes import wait_until
from tests.test_report_pages import DAYS, browser
from tokens import roles
from tokens.models import Role, User
from usage import exportjobs, reportmails
from usage.exporting import formats
from usage.exporting.formats import Format
from usage.ledger import record
from usage.models import ExportJob, Price, ReportSending, SavedReport
from usage.reportrows import JobStatus, Schedule, SendingStatus, Sharing
from usage.schedules import next_due

pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous iterators:Warning")

NOON = dt.datetime(2026, 10, 10, 12, tzinfo=dt.UTC)
LOCMEM = "django.core.mail.backends.locmem.EmailBackend"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path) -> Iterator[None]:
    ExportJob.objects.all().delete()
    SavedReport.objects.all().delete()
    with override_settings(EXPORT_ROOT=tmp_path / "exports", EMAIL_URL="smtp://localhost", EMAIL_BACKEND=LOCMEM):
        mail.outbox = []
        yield


@pytest.fixture
def alice() -> Customer:
    customer = Customer()
    record([customer.event(day="2026-10-10", of=request_id(NOON)) for _ in range(3)])
    return customer


@pytest.fixture
def order(alice: Customer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExportJob]:
    """Asks for an export that is too large to be made at once."""
    monkeypatch.setattr(exportjobs, "AT_ONCE", 0)

    def post(client: Client, name: str = "csv") -> ExportJob:
        asked = urlencode({**DAYS, "tenant": alice.tenant.slug})
        answer = client.post("/admin/exports/", {"question": asked, "format": name})
        job = ExportJob.objects.latest("created_at")
        assert answer["Location"] == f"/admin/exports/{job.pk}/"
        return job

    return post


def body(answer: Any) -> bytes:
    return b"".join(answer)


def test_a_large_export_is_made_and_fetched(alice: Customer, order: Callable[..., ExportJob]) -> None:
    viewer = browser(alice.tenant)
    job = order(viewer)
    state = f"/admin/exports/{job.pk}/state/"
    assert "data-export" in viewer.get(f"/admin/exports/{job.pk}/").text
    assert viewer.get(state).json()["over"] is False
    assert viewer.get(f"/admin/exports/{job.pk}/file/").status_code == 404, "not yet"
    assert exportjobs.run_one()
    assert not exportjobs.run_one(), "there is no other"
    assert viewer.get(state).json() == {"percent": 100, "over": True, "text": viewer_text(viewer, job), "rows": ""}
    answer = viewer.get(f"/admin/exports/{job.pk}/file/")
    content = body(answer)
    assert content.startswith(b'"day","requests"')
    assert int(answer["Content-Length"]) == len(content)
    assert answer["X-Content-Type-Options"] == "nosniff"
    job.refresh_from_db()
    path = exportjobs.path_of(job)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert str(job.pk) not in path.name
    assert len(path.stem) >= 32


def viewer_text(client: Client, job: ExportJob) -> str:
    assert "Download" in client.get(f"/admin/exports/{job.pk}/").text
    return "It is ready. The file is kept for a week."


def test_only_who_asked_and_finance_find_it(alice: Customer, order: Callable[..., ExportJob]) -> None:
    viewer, mate, stranger = (
        browser(alice.tenant),
        browser(alice.tenant, Role.ADMINISTRATOR),
        browser(Customer().tenant),
    )
    finance = browser(None, is_finance=True)
    job = order(viewer)
    exportjobs.run_one()
    for client, expected in ((viewer, 200), (finance, 200), (mate, 404), (stranger, 404)):
        for page in ("", "state/", "file/"):
            assert client.get(f"/admin/exports/{job.pk}/{page}").status_code == expected, page
        assert (str(job.pk) in client.get("/admin/exports/").text) == (expected == 200)
    assert stranger.post(f"/admin/exports/{job.pk}/cancel/").status_code == 404
    member = alice.tenant.members.get(user_id=job.owner_id)
    roles.set_role(member, Role.MEMBER)
    assert viewer.get(f"/admin/exports/{job.pk}/file/").status_code == 302, "to the sign-in: the role was taken"


def test_margins_aren_t_made_for_who_lost_the_right(alice: Customer, order: Callable[..., ExportJob]) -> None:
    finance = browser(None, is_finance=True)
    asked = urlencode({**DAYS, "tenant": alice.tenant.slug, "margins": 1})
    finance.post("/admin/exports/", {"question": asked, "format": "csv"})
    job = ExportJob.objects.get()
    user = User.objects.get(pk=job.owner_id)
    user.is_finance = False
    user.save()
    exportjobs.run_one()
    job.refresh_from_db()
    assert (job.status, job.file) == (JobStatus.FAILED, "")
    assert "may see" in job.error


def test_what_a_killed_worker_left_is_tried_once_more(alice: Customer, order: Callable[..., ExportJob]) -> None:
    job = order(browser(alice.tenant))
    ExportJob.objects.filter(pk=job.pk).update(status=JobStatus.RUNNING, attempts=1)
    assert exportjobs.run_one()
    job.refresh_from_db()
    assert (job.status, job.attempts) == (JobStatus.DONE, 2)
    ExportJob.objects.filter(pk=job.pk).update(status=JobStatus.RUNNING, attempts=2)
    assert not exportjobs.run_one()
    job.refresh_from_db()
    assert job.status == JobStatus.FAILED
    assert "stopped, twice" in job.error


# A worker whose export stops half way, as long as nobody kills it.
HALF_A_WORKER = """
import dataclasses, time, django
django.setup()
from usage import exportjobs
from usage.exporting.formats import FORMATS

def half(snapshot, out):
    out.write(b"half of it")
    out.flush()
    print(len(list(snapshot.rows())), flush=True)
    time.sleep(60)

FORMATS["csv"] = dataclasses.replace(FORMATS["csv"], write=half)
exportjobs.run_one()
"""


def test_a_worker_is_killed_half_way(alice: Customer, order: Callable[..., ExportJob]) -> None:
    viewer = browser(alice.tenant)
    job = order(viewer)
    environment = {**os.environ, "EXPORT_ROOT": str(settings.EXPORT_ROOT), "DJANGO_SETTINGS_MODULE": "config.settings"}
    with subprocess.Popen([sys.executable, "-c", HALF_A_WORKER], stdout=subprocess.PIPE, env=environment) as worker:
        assert worker.stdout and worker.stdout.readline() == b"1\n"
        assert not exportjobs.run_one(), "it is at work"
        worker.kill()
    (half,) = settings.EXPORT_ROOT.iterdir()
    assert viewer.get(f"/admin/exports/{job.pk}/file/").status_code == 404
    wait_until(exportjobs.run_one, 10, "PostgreSQL to see that it is gone")
    job.refresh_from_db()
    assert (job.status, job.attempts) == (JobStatus.DONE, 2)
    assert body(viewer.get(f"/admin/exports/{job.pk}/file/")).count(b"\r\n") == 2
    os.utime(half, (0, 0))
    exportjobs.delete_old()
    assert list(settings.EXPORT_ROOT.iterdir()) == [exportjobs.path_of(job)], "nothing of the first one stays"


def test_one_is_made_at_a_time(alice: Customer, order: Callable[..., ExportJob]) -> None:
    job = order(browser(alice.tenant))
    ExportJob.objects.filter(pk=job.pk).update(status=JobStatus.RUNNING, attempts=1)
    made: list[bool] = []

    def meanwhile() -> None:
        try:
            made.append(exportjobs.run_one())
        finally:
            connection.close()

    with exportjobs.alone() as mine:
        assert mine
        other = threading.Thread(target=meanwhile)
        other.start()
        other.join()
    job.refresh_from_db()
    assert (made, job.status) == ([False], JobStatus.RUNNING), "whoever holds the lock is still at it"


def test_cancelled_while_it_is_made(
    alice: Customer, order: Callable[..., ExportJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = browser(alice.tenant)
    job = order(viewer)
    monkeypatch.setattr(exportjobs, "TOLD_EVERY", 0)

    def write(snapshot: Any, out: Any) -> None:
        out.write(b"begun")
        seen = iter(snapshot.rows())
        next(seen)

        def click() -> None:
            try:
                exportjobs.cancel(job)
            finally:
                connection.close()

        other = threading.Thread(target=click)
        other.start()
        other.join()
        list(snapshot.rows())

    monkeypatch.setitem(formats.FORMATS, "csv", Format("CSV", ".csv", "text/csv", write))
    assert exportjobs.run_one()
    job.refresh_from_db()
    assert (job.status, job.read > 0, job.file) == (JobStatus.CANCELLED, True, "")
    assert not list(exportjobs.path_of(ExportJob(file="x")).parent.iterdir()), "nothing is left"
    assert "cancelled" in viewer.get(f"/admin/exports/{job.pk}/").text


def test_a_failure_is_told(alice: Customer, order: Callable[..., ExportJob], monkeypatch: pytest.MonkeyPatch) -> None:
    def write(snapshot: Any, out: Any) -> None:
        raise RuntimeError("secret details")

    viewer = browser(alice.tenant)
    job = order(viewer)
    monkeypatch.setitem(formats.FORMATS, "csv", Format("CSV", ".csv", "text/csv", write))
    exportjobs.run_one()
    html = viewer.get(f"/admin/exports/{job.pk}/").text
    assert "It could not be made (RuntimeError)" in html
    assert "secret details" not in html


def test_files_go_after_a_week(alice: Customer, order: Callable[..., ExportJob]) -> None:
    viewer = browser(alice.tenant)
    job = order(viewer)
    exportjobs.run_one()
    job.refresh_from_db()
    path = exportjobs.path_of(job)
    assert exportjobs.delete_old(now() + dt.timedelta(days=6)) == 0
    assert path.exists()
    assert exportjobs.delete_old(now() + dt.timedelta(days=8)) == 1
    assert not path.exists()
    assert "kept for a week" in viewer.get(f"/admin/exports/{job.pk}/").text
    assert viewer.get(f"/admin/exports/{job.pk}/file/").status_code == 404
    exportjobs.delete_old(now() + dt.timedelta(days=31))
    assert not ExportJob.objects.filter(pk=job.pk).exists()


def test_only_our_own_files_are_deleted(alice: Customer, order: Callable[..., ExportJob]) -> None:
    """Whoever has EXPORT_ROOT point at a folder with other files finds them there the next day."""
    order(browser(alice.tenant))
    exportjobs.run_one()
    root = settings.EXPORT_ROOT
    (root / "images").mkdir()
    left = root / f"{'0a' * 24}.focus.csv"
    others = [root / "statement.pdf", root / f"{'0a' * 23}.csv", root / "images"]
    for path in (left, *others[:2]):
        path.write_text("x")
    for path in (left, *others):
        os.utime(path, (0, 0))
    exportjobs.delete_old()
    assert not left.exists(), "a worker that was killed has left it"
    assert all(path.exists() for path in others)


def test_so_many_and_no_more(alice: Customer, order: Callable[..., ExportJob]) -> None:
    viewer = browser(alice.tenant)
    for _ in range(exportjobs.MOST_OPEN):
        order(viewer)
    asked = urlencode({**DAYS, "tenant": alice.tenant.slug})
    answer = viewer.post("/admin/exports/", {"question": asked, "format": "csv"}, follow=True)
    assert "wait until one is ready" in answer.text
    assert ExportJob.objects.count() == exportjobs.MOST_OPEN


# Saved reports


SENT = {"name": "Ours", "sharing": "owner", "weekday": 1, "month_day": 1, "hour": 6, "format": "csv", "recipients": ""}


def save(client: Client, question: dict[str, Any], **sent: Any) -> SavedReport | None:
    address = f"/admin/usage/savedreport/add/?{urlencode({'question': urlencode(question)})}"
    assert client.get(address).status_code == 200
    client.post(address, {**SENT, "schedule": "", **sent})
    return SavedReport.objects.order_by("-pk").first()


def due(report: SavedReport) -> dt.datetime:
    """Make it due now."""
    at = now() - dt.timedelta(minutes=1)
    SavedReport.objects.filter(pk=report.pk).update(next_due_at=at)
    return at


def daily(client: Client, alice: Customer) -> SavedReport:
    report = save(
        client, {**DAYS, "tenant": alice.tenant.slug}, schedule="daily", recipients="a@example.com, b@example.com"
    )
    assert report is not None
    return report


@pytest.mark.parametrize(
    ("zone", "schedule", "after", "expected"),
    [
        ("UTC", {"schedule": "daily"}, "2026-11-22T05:59:59", "2026-11-22T06:00"),
        ("UTC", {"schedule": "daily"}, "2026-11-22T06:00:00", "2026-11-23T06:00"),
        ("UTC", {"schedule": "weekly", "weekday": 1}, "2026-11-22T05:00:00", "2026-11-23T06:00"),
        ("UTC", {"schedule": "monthly", "month_day": 31}, "2026-02-01T00:00:00", "2026-02-28T06:00"),
        ("UTC", {"schedule": "monthly", "month_day": 1}, "2026-12-01T07:00:00", "2027-01-01T06:00"),
        ("Pacific/Auckland", {"schedule": "daily"}, "2026-11-22T12:00:00", "2026-11-22T17:00"),
        ("Europe/Berlin", {"schedule": "daily", "hour": 2}, "2026-03-28T12:00:00", "2026-03-29T01:00"),
        ("Europe/Berlin", {"schedule": "daily", "hour": 2}, "2026-03-29T01:00:00", "2026-03-30T00:00"),
        ("UTC", {}, "2026-11-22T05:00:00", None),
    ],
)
def test_when_a_report_is_due(zone: str, schedule: dict[str, Any], after: str, expected: str | None) -> None:
    report = SavedReport(tenant=Customer(zone).tenant, **{"hour": 6, **schedule})
    found = next_due(report, dt.datetime.fromisoformat(f"{after}+00:00"))
    assert (f"{found:%Y-%m-%dT%H:%M}" if found else None) == expected


def test_it_is_saved_as_it_was_asked(alice: Customer) -> None:
    viewer = browser(alice.tenant)
    report = daily(viewer, alice)
    assert (report.tenant, report.owner.email) == (alice.tenant, User.objects.get(pk=report.owner_id).email)
    assert report.next_due_at is not None
    assert f"tenant={alice.tenant.slug}" in report.question
    listed = viewer.get("/admin/usage/savedreport/").text
    assert "Ours" in listed
    assert f"/admin/reports/?{report.question}".replace("&", "&amp;") in listed
    save(viewer, DAYS, schedule="daily")
    assert SavedReport.objects.count() == 1, "it says nobody to send it to"


def test_a_tenants_person_saves_nothing_of_others(alice: Customer) -> None:
    viewer = browser(alice.tenant)
    save(viewer, {**DAYS, "tenant": Customer().tenant.slug})
    assert not SavedReport.objects.exists()
    report = save(viewer, DAYS)
    assert report is not None
    assert report.tenant == alice.tenant, "without a name it is one's own"


def test_who_finds_and_changes_it(alice: Customer) -> None:
    owner, mate = browser(alice.tenant), browser(alice.tenant, Role.ADMINISTRATOR)
    stranger, finance = browser(Customer().tenant), browser(None, is_finance=True)
    report = daily(owner, alice)
    change = f"/admin/usage/savedreport/{report.pk}/change/"

    def finds(client: Client) -> bool:
        return client.get(change).status_code == 200

    assert [finds(client) for client in (owner, mate, stranger, finance)] == [True, False, False, False]
    for sharing, found in ((Sharing.FINANCE, [False, False, True]), (Sharing.TENANT, [True, False, True])):
        report.sharing = sharing
        report.save()
        assert [finds(client) for client in (mate, stranger, finance)] == found
    for client in (mate, finance, stranger):
        client.post(change, {**SENT, "schedule": "", "name": "stolen"})
        client.post(f"/admin/usage/savedreport/{report.pk}/delete/", {"post": "yes"})
    report.refresh_from_db()
    assert report.name == "Ours"
    owner.post(change, {**SENT, "schedule": "", "name": "Mine"})
    report.refresh_from_db()
    assert (report.name, report.next_due_at) == ("Mine", None)


def test_it_is_sent_once_for_each_time(alice: Customer) -> None:
    report = daily(browser(alice.tenant), alice)
    at = due(report)
    report.name = "Two\r\nBcc: lines@example.com"
    report.save(update_fields=["name"])
    assert (reportmails.note_due(), reportmails.note_due()) == (1, 0)
    assert (reportmails.send_one(), reportmails.send_one()) == (True, False)
    (sent,) = mail.outbox
    assert sent.to == ["a@example.com", "b@example.com"]
    assert sent.subject.endswith(": Two Bcc: lines@example.com")
    ((name, content, kind),) = sent.attachments
    assert name == f"usage-{alice.tenant.slug}-2026-10-01-to-2026-10-31.csv"
    assert content.startswith('"day","requests"')
    assert kind == "text/csv"
    sending = ReportSending.objects.get()
    assert (sending.status, sending.attempts, sending.due_at) == (SendingStatus.SENT, 1, at)
    assert str(sending.message_id) in sent.extra_headers["Message-ID"]
    report.refresh_from_db()
    assert report.next_due_at is not None
    assert report.next_due_at > now()
    assert "Sent" in browser_of(report).get(f"/admin/usage/savedreport/{report.pk}/change/").text


def test_the_mail_says_what_it_comes_to_and_leads_to_the_same_days(alice: Customer) -> None:
    Price.objects.create(model="sold", per_image="0.123", currency="EUR", valid_from=dt.date(2026, 1, 1))
    day = dt.datetime(2026, 10, 10, 12, tzinfo=dt.UTC)
    about: dict[str, Any] = {"day": "2026-10-10"}
    record([alice.event(of=request_id(day), model=model, **about) for model in ("sold", "sold", "unsold")])
    record([alice.event("unresolved", of=request_id(day), model="sold", **about)])
    report = save(
        browser(alice.tenant), {"period": "last-month", "by": "model"}, schedule="daily", recipients="a@b.test"
    )
    assert report is not None
    due(report)
    at = dt.datetime(2026, 11, 22, 6, tzinfo=dt.UTC)
    SavedReport.objects.filter(pk=report.pk).update(next_due_at=at)
    reportmails.note_due(at)
    assert reportmails.send_one()
    text = mail.outbox[0].body
    assert f"1 October 2026 to 31 October 2026, {alice.tenant.slug}, by model" in text
    assert "Cost:   0.49 EUR" in text and "Calls:  6" in text
    assert "in no amount: 4 calls\n" in text and "in no figure above: 1 call\n" in text
    assert "/admin/reports/?period=days&from=2026-10-01&to=2026-10-31&tenant=" in text


def browser_of(report: SavedReport) -> Client:
    client = Client()
    client.force_login(report.owner)
    return client


def test_times_that_were_missed_become_one_mail_of_the_newest(alice: Customer) -> None:
    report = daily(browser(alice.tenant), alice)
    monday = dt.datetime(2026, 10, 5, 6, tzinfo=dt.UTC)
    report.next_due_at, report.question, report.name = monday, "period=7d", "Ours\nBcc: all"
    report.save()
    assert reportmails.note_due(monday + dt.timedelta(days=5, hours=1)) == 1
    assert ReportSending.objects.get().due_at == monday + dt.timedelta(days=5)
    assert reportmails.send_one()
    (sent,) = mail.outbox
    assert sent.subject.endswith(": Ours Bcc: all")
    assert "4 October 2026 to 10 October 2026" in sent.body


def test_two_workers_send_one_mail(alice: Customer) -> None:
    report = daily(browser(alice.tenant), alice)
    due(report)

    def work() -> None:
        try:
            reportmails.note_due()
            reportmails.send_one()
        finally:
            connection.close()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(mail.outbox) == ReportSending.objects.count() == 1


def test_control_a_claim_without_its_count_sends_twice(alice: Customer, monkeypatch: pytest.MonkeyPatch) -> None:
    due(daily(browser(alice.tenant), alice))
    monkeypatch.setattr(reportmails, "CLAIMED_FOR", dt.timedelta(0))
    monkeypatch.setattr(reportmails, "_note", lambda *_: None)
    reportmails.note_due()
    reportmails.send_one()
    reportmails.send_one()
    assert len(mail.outbox) == 2


def test_who_lost_the_role_has_nothing_sent(alice: Customer) -> None:
    report = daily(browser(alice.tenant), alice)
    roles.set_role(alice.tenant.members.get(user_id=report.owner_id), Role.MEMBER)
    due(report)
    reportmails.note_due()
    reportmails.send_one()
    assert not mail.outbox
    sending = ReportSending.objects.get()
    assert sending.status == SendingStatus.FAILED
    assert "may no longer see" in sending.error


def test_who_is_no_longer_finance_sends_nothing_of_all_tenants(alice: Customer) -> None:
    finance = browser(None, is_finance=True)
    report = save(finance, DAYS, schedule=Schedule.DAILY, recipients="a@example.com")
    assert report is not None
    user = report.owner
    user.is_finance = False
    user.save()
    roles.set_role(alice.tenant.members.create(user=user), Role.VIEWER)
    due(report)
    reportmails.note_due()
    reportmails.send_one()
    assert not mail.outbox
    assert ReportSending.objects.get().status == SendingStatus.FAILED


def test_a_mail_server_that_is_down_is_tried_again(alice: Customer) -> None:
    due(daily(browser(alice.tenant), alice))
    reportmails.note_due()
    at = now()
    with override_settings(EMAIL_BACKEND="django.core.mail.backends.smtp.EmailBackend", EMAIL_PORT=1):
        for attempt, pause in enumerate([*reportmails.PAUSES, None], 1):
            assert reportmails.send_one(at)
            sending = ReportSending.objects.get()
            assert sending.attempts == attempt
            assert "did not take it" in sending.error
            if pause is not None:
                at = sending.next_attempt_at
        assert sending.status == SendingStatus.FAILED


def test_a_mail_tells_of_calls_of_unknown_outcome_only_where_there_are_some() -> None:
    """Below 0 are those of earlier days that came to be known."""
    row = {"currency": "EUR", "cost": Decimal(1), "requests": 1, "images": 1, "tokens": 1, "unpriced_requests": 0}
    assert not [text for text in reportmails._sums([{**row, "unresolved_requests": -1}]) if "unknown" in text]
    assert [text for text in reportmails._sums([{**row, "unresolved_requests": 2}]) if "2 calls" in text]

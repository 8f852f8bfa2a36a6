"""Quota alerts: found once, signed, sent only where they may go, tried again, and never lost."""

import contextlib
import datetime as dt
import ipaddress
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.core import mail
from django.core.exceptions import ValidationError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from config.redis import store
from tests.bookkeeping import Customer as Books
from tests.conftest import Customer, Gateway
from tests.processes import wait_until
from tokens import issuing
from tokens.admission import keys
from tokens.models import AuditEntry, Limit, Tenant
from tokens.records import shard_of
from usage import drain
from usage.alerting import addresses, delivering, quotas, sending, signing
from usage.alerting.addresses import Forbidden
from usage.alertrows import DeliveryStatus
from usage.counters import owner
from usage.ledger import record
from usage.models import Alert, AlertDelivery, AlertSetting, DailyUsage, Webhook

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")]


@dataclass
class Receiver:
    """A webhook's other side on this machine: what it was sent, and what it answers."""

    url: str = ""
    status: int = 200
    answer: bytes = b"thank you"
    headers: dict[str, str] = field(default_factory=dict)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told.answer)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who doesn't read all of it has gone
                self.wfile.write(told.answer)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/hook?key=private"
    yield told
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _local(settings: Any) -> Iterator[None]:
    """Webhooks may call this machine, mail goes to a list, and no other test's alerts are due."""
    settings.WEBHOOK_NETWORKS = LOOPBACK
    settings.EMAIL_URL = "smtp://localhost"
    yield
    for model in (AlertDelivery, Alert, Webhook, AlertSetting):
        model.objects.all().delete()


@pytest.fixture
def books() -> Books:
    """A tenant with usage today."""
    books = Books()
    record([books.event(day=dt.datetime.now(dt.UTC).date().isoformat())])
    return books


def add_webhook(tenant: Tenant, url: str) -> tuple[Webhook, str]:
    hook = Webhook(tenant=tenant, url=url)
    secret = hook.new_secret()
    hook.save()
    return hook, secret


def use(limit: Limit, used: int, at: float | None = None) -> None:
    """Let the store say that so much of a quota is used now."""
    scope, number = owner(limit)
    moment = dt.datetime.fromtimestamp(at or time.time(), dt.UTC)
    names = {"day": f"day:{moment:%Y-%m-%d}", "month": f"month:{moment:%Y-%m}", "total": f"total:{limit.pk}"}
    key = keys.use(shard_of(limit.tenant_id), f"{scope}:{number}", names[limit.period])
    store().hset(key, limit.metric, used)


def told(tenant: Tenant) -> list[tuple[str, str, int]]:
    rows = Alert.objects.filter(tenant=tenant).order_by("id")
    return [(row.scope, f"{row.metric}/{row.period}", row.threshold) for row in rows]


# Finding


@pytest.mark.parametrize("period", ["day", "month", "total"])
def test_each_threshold_is_told_once_in_a_period(books: Books, period: str) -> None:
    AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com"])
    (limit,) = issuing.set_limits(books.tenant, [f"images:200/{period}"])
    expected: list[int] = []
    for used, reaches in ((159, []), (160, [80]), (199, []), (200, [100]), (200, [])):
        use(limit, used)
        assert quotas.check() == len(reaches)
        expected += reaches
        assert told(books.tenant) == [("tenant", f"images/{period}", threshold) for threshold in expected]
    assert quotas.check() == 0


def test_the_next_period_is_another_one(books: Books) -> None:
    AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com"])
    day, total = issuing.set_limits(books.tenant, ["images:10/day", "images:10/total"])
    tomorrow = time.time() + 86_400
    for limit in (day, total):
        use(limit, 10)
    assert quotas.check() == 4
    use(day, 10, tomorrow)
    assert quotas.check(tomorrow) == 2, "of the day; the total goes on"
    assert quotas.check(tomorrow) == 0


def test_quotas_of_tenant_member_and_token_are_told_and_rates_are_not(books: Books) -> None:
    AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com"], thresholds=[50])
    for scope in (books.tenant, books.member, books.token):
        for limit in issuing.set_limits(scope, ["tokens:1000/month", "images:5/minute", "concurrent:2"]):
            if limit.period == "month":
                use(limit, 500)
    assert quotas.check() == 3
    assert sorted(told(books.tenant)) == [(scope, "tokens/month", 50) for scope in ("member", "tenant", "token")]
    names = set(Alert.objects.filter(tenant=books.tenant).values_list("scope_name", flat=True))
    slug = books.tenant.slug
    assert names == {
        f"Tenant {slug}",
        f"Member {books.user.email} of {slug}",
        f"Token first (id {books.token.pk}) of {slug}",
    }


def test_a_tenant_chooses_its_thresholds(books: Books) -> None:
    AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com"], thresholds=[50, 100])
    (limit,) = issuing.set_limits(books.tenant, ["images:100/day"])
    use(limit, 99)
    quotas.check()
    assert told(books.tenant) == [("tenant", "images/day", 50)]


def test_who_has_only_a_webhook_is_told_at_80_and_100(books: Books, receiver: Receiver) -> None:
    add_webhook(books.tenant, receiver.url)
    (limit,) = issuing.set_limits(books.tenant, ["images:100/day"])
    use(limit, 100)
    quotas.check()
    assert [threshold for *_, threshold in told(books.tenant)] == [80, 100]


def test_nobody_is_looked_at_who_is_told_nowhere(books: Books) -> None:
    (limit,) = issuing.set_limits(books.tenant, ["images:100/day"])
    use(limit, 100)
    hook, _ = add_webhook(books.tenant, "https://hooks.example.com/")
    hook.active = False
    hook.save()
    AlertSetting.objects.create(tenant=books.tenant, emails=[])
    quotas.check()
    assert told(books.tenant) == []


def test_many_checks_at_once_tell_once(books: Books) -> None:
    AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com", "b@example.com"])
    (limit,) = issuing.set_limits(books.tenant, ["images:100/day"])
    use(limit, 100)
    barrier = threading.Barrier(6)

    def check() -> None:
        barrier.wait()
        try:
            quotas.check()
        finally:
            connection.close()

    threads = [threading.Thread(target=check) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told(books.tenant)) == 2
    assert AlertDelivery.objects.filter(tenant=books.tenant).count() == 4


def test_control_without_the_constraint_it_would_be_told_twice(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds is the constraint: a check that believes that nothing was told is stopped by it."""
    AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com"])
    (limit,) = issuing.set_limits(books.tenant, ["images:100/day"])
    reached = quotas.Reached(limit, "day:2026-11-22", 100, (80,))
    monkeypatch.setattr(type(Alert.objects.all()), "exists", lambda self: False)
    assert quotas._tell(books.tenant, reached, 80, ["a@example.com"])
    assert not quotas._tell(books.tenant, reached, 80, ["a@example.com"])
    monkeypatch.undo()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE usage_alert DROP CONSTRAINT one_alert_per_threshold_and_period")
        try:
            monkeypatch.setattr(type(Alert.objects.all()), "exists", lambda self: False)
            assert quotas._tell(books.tenant, reached, 80, ["a@example.com"])
        finally:
            monkeypatch.undo()
            Alert.objects.filter(tenant=books.tenant).delete()
            cursor.execute(
                "ALTER TABLE usage_alert ADD CONSTRAINT one_alert_per_threshold_and_period"
                " UNIQUE (tenant_id, scope, scope_id, metric, period_name, threshold)"
            )


def test_a_check_costs_no_more_queries_for_more_tokens(books: Books) -> None:
    AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com"])

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            quotas.check()
        return len(captured)

    issuing.set_limits(books.token, ["images:100/day"])
    few = queries()
    for number in range(20):
        token, _ = books.add_token(f"t{number}")
        issuing.set_limits(token, ["images:100/day"])
        DailyUsage.objects.create(
            tenant=books.tenant, member=books.member, token=token, model="m", booked_day=dt.datetime.now(dt.UTC).date()
        )
    assert queries() == few


def test_calls_over_http_are_found(customer: Customer, gateway: Gateway, receiver: Receiver) -> None:
    add_webhook(customer.tenant, receiver.url)
    customer.limit("images:2/day", scope="token")
    assert gateway.post(customer.secret, {"prompt": "a gem", "size": "256x256", "n": 2}).status_code == 200
    wait_until(lambda: (drain.drain(), DailyUsage.objects.filter(tenant=customer.tenant).exists())[1])
    assert quotas.check() >= 2
    delivering.send_due()
    bodies = [json.loads(body)["data"] for _, body in receiver.got]
    # They are sent side by side, so they come in either order.
    assert sorted((data["threshold"], data["used"], data["scope_id"]) for data in bodies) == [
        (80, 2, customer.token.pk),
        (100, 2, customer.token.pk),
    ]


def test_old_alerts_go_and_those_of_totals_stay(books: Books) -> None:
    AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com"])
    for limit in issuing.set_limits(books.tenant, ["images:10/day", "images:10/total"]):
        use(limit, 10)
    quotas.check()
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=quotas.KEPT_DAYS + 1)
    Alert.objects.filter(tenant=books.tenant).update(at=long_ago)
    quotas.forget_old()
    assert {period for _, period, _ in told(books.tenant)} == {"images/total"}


# Webhooks


def one_delivery(tenant: Tenant, hook: Webhook) -> AlertDelivery:
    delivery = quotas.to_webhook(hook, None)
    delivery.save()
    return delivery


def test_messages_are_signed_by_standard_webhooks(books: Books, receiver: Receiver) -> None:
    _, secret = add_webhook(books.tenant, receiver.url)
    (limit,) = issuing.set_limits(books.tenant, ["images:100/month"])
    use(limit, 85)
    quotas.check()
    delivering.send_due()
    ((headers, body),) = receiver.got
    assert "webhook-signature" in headers
    data = Verifier(secret).verify(body, headers)
    assert data["type"] == "quota.threshold_reached"
    assert data["data"] | {"tenant": books.tenant.slug, "threshold": 80, "used": 85, "amount": 100} == data["data"]
    assert headers["content-type"] == "application/json"
    # The control: another secret, another body or another id doesn't pass.
    for verifier, told_body, told_id in (
        (Verifier(signing.make_secret()), body, headers["webhook-id"]),
        (Verifier(secret), body.replace(b"85", b"15"), headers["webhook-id"]),
        (Verifier(secret), body, "msg_other"),
    ):
        with pytest.raises(WebhookVerificationError):
            verifier.verify(told_body, {**headers, "webhook-id": told_id})
    delivery = AlertDelivery.objects.get(tenant=books.tenant)
    assert (delivery.status, delivery.attempts, delivery.last_status) == ("sent", 1, 200)
    assert delivery.answer == "thank you"
    assert "private" not in delivery.target, "the query may hold a secret of theirs"


def test_a_failure_is_tried_again_for_about_a_day_with_the_same_id(books: Books, receiver: Receiver) -> None:
    receiver.status, receiver.answer = 500, b"nein\n\x00" * 500
    hook, secret = add_webhook(books.tenant, receiver.url)
    delivery = one_delivery(books.tenant, hook)
    waited = dt.timedelta()
    for attempt in range(1, 100):
        delivering.send_due()
        delivery.refresh_from_db()
        assert (delivery.attempts, delivery.last_status) == (attempt, 500)
        assert len(delivery.answer) <= 200
        assert delivery.answer.isprintable()
        if delivery.status != DeliveryStatus.WAITING:
            break
        pause = delivery.next_attempt_at - dt.datetime.now(dt.UTC)
        assert pause > dt.timedelta(seconds=55)
        waited += pause
        assert delivering.send_due() == 0, "not before its time"
        AlertDelivery.objects.filter(pk=delivery.pk).update(next_attempt_at=dt.datetime.now(dt.UTC))
    assert (delivery.status, delivery.attempts) == ("failed", 8)
    assert dt.timedelta(hours=20) < waited < dt.timedelta(hours=28)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({body for _, body in receiver.got}) == 1
    for headers, body in receiver.got:
        Verifier(secret).verify(body, headers)
    assert delivering.try_again(delivery)
    receiver.status = 204
    delivering.send_due()
    delivery.refresh_from_db()
    assert (delivery.status, delivery.attempts, delivery.error) == ("sent", 1, "")


def test_a_worker_that_dies_leaves_it_to_the_next(books: Books, receiver: Receiver) -> None:
    hook, _ = add_webhook(books.tenant, receiver.url)
    delivery = one_delivery(books.tenant, hook)
    at = dt.datetime.now(dt.UTC)
    assert len(delivering._claim(at)) == 1  # and no more is heard of it
    assert delivering._claim(at + delivering.CLAIMED_FOR - dt.timedelta(seconds=1)) == []
    (again,) = delivering._claim(at + delivering.CLAIMED_FOR + dt.timedelta(seconds=1))
    assert (again.pk, again.message_id, again.attempts) == (delivery.pk, delivery.message_id, 2)
    delivery.attempts = 1
    delivering._note(delivery, delivering.Outcome(False, "late"))
    delivery.refresh_from_db()
    assert delivery.error == "", "what the first one says comes too late"


def test_a_redirect_is_not_followed(books: Books, receiver: Receiver) -> None:
    receiver.status, receiver.headers = 307, {"Location": receiver.url}
    hook, _ = add_webhook(books.tenant, receiver.url)
    delivery = one_delivery(books.tenant, hook)
    delivering.send_due()
    delivery.refresh_from_db()
    assert len(receiver.got) == 1
    assert (delivery.status, delivery.last_status) == ("waiting", 307)
    assert "redirect" in delivery.error


def test_410_switches_it_off(books: Books, receiver: Receiver) -> None:
    receiver.status = 410
    hook, _ = add_webhook(books.tenant, receiver.url)
    delivery = one_delivery(books.tenant, hook)
    delivering.send_due()
    delivery.refresh_from_db()
    hook.refresh_from_db()
    assert (delivery.status, hook.active) == ("failed", False)
    assert AuditEntry.objects.filter(object_type="usage.webhook", object_id=str(hook.pk), verb="changed").exists()


def test_one_that_hangs_holds_up_no_other(books: Books, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending.post, "__defaults__", (1.0,))
    with silent_server() as url:
        slow, _ = add_webhook(books.tenant, url)
        fast, _ = add_webhook(books.tenant, receiver.url)
        deliveries = [one_delivery(books.tenant, slow), one_delivery(books.tenant, fast)]
        begun = time.monotonic()
        delivering.send_due()
        assert time.monotonic() - begun < sending.SECONDS
    for delivery in deliveries:
        delivery.refresh_from_db()
    assert [delivery.status for delivery in deliveries] == ["waiting", "sent"]
    assert deliveries[0].error == "It did not answer within 1 seconds."


@contextlib.contextmanager
def silent_server(drip: bytes = b"") -> Iterator[str]:
    """Takes a request and answers nothing, or a byte now and then without end."""
    stop = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.1):
                    if drip:
                        self.request.sendall(drip)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("drip", [b"", b"H", b"HTTP/1.1 200 OK\r\nX: y\r\n"])
def test_an_answer_that_never_ends_is_cut_off(drip: bytes) -> None:
    with silent_server(drip) as url:
        begun = time.monotonic()
        with contextlib.suppress(sending.NoAnswer):  # whose status came in time has answered
            assert sending.post(url, b"{}", {}, seconds=0.5).status == 200
        assert time.monotonic() - begun < sending.SECONDS


def test_a_large_answer_is_not_read(receiver: Receiver) -> None:
    receiver.answer = b"x" * 50_000_000
    begun = time.monotonic()
    assert len(sending.post(receiver.url, b"{}", {}).text) <= sending.READ_BYTES
    assert time.monotonic() - begun < sending.SECONDS


# Where they may go

INSIDE = [
    *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
    *("224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1"),
    *("ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1"),
]


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_that_are_not_public_are_never_called(
    address: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WEBHOOK_NETWORKS = []
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("it was called"))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ValidationError):
        addresses.validate_url(f"https://{host}/hook")
    with pytest.raises(Forbidden):
        sending.post(f"https://{host}/hook", b"{}", {})
    answers(monkeypatch, address)
    with pytest.raises(Forbidden, match="public internet"):
        sending.post("https://hooks.example.com/", b"{}", {})
    answers(monkeypatch, "93.184.216.34", address)
    with pytest.raises(Forbidden, match="public internet"):  # not even as one of several
        sending.post("https://hooks.example.com/", b"{}", {})


def answers(monkeypatch: pytest.MonkeyPatch, *found: str) -> list[str]:
    """Let every name have these addresses; returns the names that are asked for."""
    asked: list[str] = []
    original = socket.getaddrinfo

    def look_up(host: str, port: int, *_rest: Any, **_kwargs: Any) -> list[Any]:
        if host in found:  # an address is no name
            return original(host, port, *_rest, **_kwargs)
        asked.append(host)
        return [(0, 0, 0, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "017700000001"])
def test_other_spellings_of_an_address_are_seen_through(host: str, settings: Any) -> None:
    settings.WEBHOOK_NETWORKS = []
    with pytest.raises(Forbidden):
        sending.post(f"https://{host}/", b"{}", {})


def test_the_connection_goes_to_the_address_that_was_judged(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that changes its address between the look and the call gains nothing."""
    asked = answers(monkeypatch, "127.0.0.1")
    url = receiver.url.replace("127.0.0.1", "hooks.example.com")
    assert sending.post(url, b"{}", {}).status == 200
    assert asked == ["hooks.example.com"], "the name is looked up once"
    assert receiver.got[0][0]["host"].startswith("hooks.example.com:")


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1"])
def test_control_public_addresses_are_allowed(address: str, settings: Any) -> None:
    settings.WEBHOOK_NETWORKS = []
    assert addresses.is_public(ipaddress.ip_address(address))
    addresses.validate_url(f"https://{f'[{address}]' if ':' in address else address}/hook")


@pytest.mark.parametrize(
    "url",
    [
        *("", "hooks.example.com", "ftp://hooks.example.com/", "http://hooks.example.com/", "https://", "https:///x"),
        *(
            "https://user:password@hooks.example.com/",
            "https://hooks.example.com/#part",
            "https://hooks.example.com:x/",
        ),
        *("https://hooks.example.com:99999/", "https://höoks.example.com/", "https://hooks.example.com/a b"),
        *("https://hooks.example.com/\r\nX: y", "//hooks.example.com/", "javascript:alert(1)", "https://[::1/"),
    ],
)
def test_what_is_no_webhooks_url_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        addresses.validate_url(url)


def test_plain_http_is_for_this_machine_only(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.WEBHOOK_NETWORKS = [*LOOPBACK, ipaddress.ip_network("10.0.0.0/8")]
    addresses.validate_url("http://localhost:8080/hook")
    addresses.validate_url("https://10.0.0.7/hook")
    with pytest.raises(ValidationError, match="https"):
        addresses.validate_url("http://10.0.0.7/hook")
    answers(monkeypatch, "93.184.216.34")
    with pytest.raises(Forbidden, match="https"):
        sending.post("http://localhost/", b"{}", {})


def test_a_certificate_that_isnt_the_hosts_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                context.wrap_socket(client, server_side=True)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with pytest.raises(sending.NoAnswer, match="certificate"):
        sending.post(f"https://127.0.0.1:{listener.getsockname()[1]}/", b"{}", {})
    listener.close()
    thread.join(5)


def self_signed(folder: Any) -> tuple[str, str]:
    from_now = dt.datetime.now(dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.example.com")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(from_now)
        .not_valid_after(from_now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, private, plain))
    return str(folder / "cert.pem"), str(folder / "key.pem")


# Mail


def test_mails_say_what_follows(books: Books) -> None:
    AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com", "b@example.com"])
    (limit,) = issuing.set_limits(books.token, ["images:1000/month"])
    use(limit, 1000)
    quotas.check()
    mail.outbox.clear()
    delivering.send_due()
    assert sorted(message.to[0] for message in mail.outbox) == ["a@example.com"] * 2 + ["b@example.com"] * 2
    (full, *_) = [message for message in mail.outbox if "100 %" in message.subject]
    assert full.subject == f"[Gem Heaven Gateway] {books.tenant.slug}: 100 % of images per month used"
    assert "has used 1,000 of 1,000 images per month: 100 %." in full.body
    assert "refused (429, quota_exceeded) until the month ends" in full.body


def test_a_mail_server_that_fails_is_asked_again(books: Books, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    setting = AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com"])
    (delivery,) = quotas.deliveries(books.tenant, None, setting.emails)
    delivery.save()

    def fail(*args: Any) -> None:
        raise ConnectionRefusedError("smtp.internal:25 said hunter2")

    monkeypatch.setattr(delivering, "send_mail", fail)
    delivering.send_due()
    delivery.refresh_from_db()
    assert (delivery.status, delivery.attempts) == ("waiting", 1)
    assert "hunter2" not in delivery.error
    settings.EMAIL_URL = ""
    AlertDelivery.objects.update(next_attempt_at=dt.datetime.now(dt.UTC))
    delivering.send_due()
    delivery.refresh_from_db()
    assert "EMAIL_URL" in delivery.error


def test_a_mail_that_cant_be_made_holds_up_no_other(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = AlertSetting.objects.create(tenant=books.tenant, emails=["a@example.com", "b@example.com"])
    AlertDelivery.objects.bulk_create(quotas.deliveries(books.tenant, None, setting.emails))

    def fail(subject: str, text: str, sender: str, to: list[str]) -> int:
        if to == ["a@example.com"]:
            raise UnicodeError("no such domain")
        return mail.send_mail(subject, text, sender, to)

    monkeypatch.setattr(delivering, "send_mail", fail)
    delivering.send_due()
    states = {one.target: one.status for one in AlertDelivery.objects.filter(tenant=books.tenant)}
    assert states == {"a@example.com": "waiting", "b@example.com": "sent"}
    assert len(mail.outbox) == 1


# Secrets


def test_a_webhooks_secret_is_kept_encrypted_and_told_nowhere(
    books: Books, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    hook, secret = add_webhook(books.tenant, receiver.url)
    receiver.status = 500
    one_delivery(books.tenant, hook)
    delivering.send_due()
    row = Webhook.objects.filter(pk=hook.pk).values()[0]
    whole = str(row) + str(bytes(row["encrypted"])) + str(list(AuditEntry.objects.filter(tenant=books.tenant).values()))
    assert secret not in whole
    assert secret.removeprefix("whsec_") not in whole + caplog.text
    assert "private" not in caplog.text


def test_a_secret_that_cant_be_opened_is_said(books: Books, receiver: Receiver, settings: Any) -> None:
    hook, _ = add_webhook(books.tenant, receiver.url)
    settings.ENCRYPTION_KEYS = ["MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDI="]
    delivery = one_delivery(books.tenant, hook)
    delivering.send_due()
    delivery.refresh_from_db()
    assert "ENCRYPTION_KEYS" in delivery.error
    assert receiver.got == []


def test_the_specifications_example_is_signed_as_it_says() -> None:
    """From the test vectors of the specification's reference libraries."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    found = signing.signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

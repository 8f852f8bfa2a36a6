"""Links to choose a password by, for who is invited and who forgot: once, not for long, and for nobody else."""

import logging
import re
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.test import Client
from django.urls import reverse

from config.celery import app
from config.signin import passwords, passwordviews, sessions
from tests.adminpages import PASSWORD, page
from tests.conftest import Customer
from tests.test_commands import refusal, run
from tests.test_signin import INDEX, LOGIN, sign_in, with_factor
from tokens import issuing, roles
from tokens.models import AuditEntry, Membership, User

FORGOTTEN = "/admin/password/forgotten/"


@pytest.fixture(autouse=True)
def _mail(settings: Any) -> Iterator[None]:
    cache.clear()
    settings.EMAIL_URL = "smtp://localhost"
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    app.conf.task_always_eager = True
    mail.outbox = []
    yield
    app.conf.task_always_eager = False
    cache.clear()


def address() -> str:
    return f"{uuid.uuid4().hex}@invited.test"


def person(password: str | None = PASSWORD, **roles: bool) -> User:
    return User.objects.create_user(address(), password, **({"is_finance": True} | roles))


def link() -> str:
    """The path of the link in the mail that was sent last."""
    found = re.search(r"http://[^/]+(/admin/password/choose/\S+)", str(mail.outbox[-1].body))
    assert found, mail.outbox[-1].body
    return found[1]


def choose(path: str, password: str, client: Client | None = None) -> Any:
    """Open a link in a browser that nobody has signed in with, and choose a password."""
    client = client or Client()
    opened = client.get(path)
    if opened.status_code == 200:
        return opened
    assert opened["Location"].endswith("/set-password/"), "the link must not stay in the address"
    return client.post(opened["Location"], {"new_password1": password, "new_password2": password})


def age(monkeypatch: pytest.MonkeyPatch, **by: float) -> None:
    now = passwords.links._now()
    monkeypatch.setattr(passwords.Links, "_now", lambda self: now + timedelta(**by))


def test_an_administrator_invites_somebody_who_then_signs_in(admin: Client, operator: User) -> None:
    email = address()
    data = {"email": email, "usable_password": "true", "password1": "", "password2": "", "is_finance": "on"}
    done = admin.post(page("tokens_user_add"), data | {"invite": "on"}, follow=True)
    assert f"A link to choose a password by was mailed to {email}" in done.text
    assert mail.outbox[0].to == [email]
    invited = User.objects.get(email=email)
    assert not invited.has_usable_password()
    path = link()
    weak = choose(path, "password")
    assert weak.status_code == 200 and "too common" in weak.text
    answer = choose(path, PASSWORD)
    assert answer["Location"] == LOGIN
    assert sign_in(Client(), invited)["Location"] == INDEX
    told = [
        (entry.actor, entry.sentence)
        for entry in AuditEntry.objects.filter(object_type="tokens.user", object_id=str(invited.pk)).order_by("pk")
    ]
    assert told[0][1].startswith("created user")
    assert told[1:] == [
        (str(operator), f"mailed a password link to user {email}"),
        (email, f"changed user {email}: password"),
        (email, "signed in"),
    ]
    assert path.split("/")[-2] not in str(
        AuditEntry.objects.filter(object_type="tokens.user", object_id=str(invited.pk)).values()
    )


def test_a_link_works_once(operator: User) -> None:
    invited = person(None)
    passwords.invite(invited)
    path, second = link(), Client()
    form = second.get(path)["Location"]  # opened in a second browser before it was used in the first
    assert choose(path, PASSWORD)["Location"] == LOGIN
    late = second.post(form, {"new_password1": "another one, later", "new_password2": "another one, later"})
    assert "This link has ended" in late.text
    assert "This link has ended" in choose(path, "another one, later").text
    invited.refresh_from_db()
    assert invited.check_password(PASSWORD)


def test_who_has_a_password_has_an_hour_and_who_is_invited_a_week(monkeypatch: pytest.MonkeyPatch) -> None:
    known, invited = person(), person(None)
    links = {
        user: passwords.link_to_choose(user).removeprefix("http://").partition("/")[2] for user in (known, invited)
    }
    for by, works in (({"minutes": 59}, {known, invited}), ({"minutes": 61}, {invited}), ({"days": 8}, set())):
        with monkeypatch.context() as later:
            age(later, **by)
            opened = {user for user, path in links.items() if Client().get(f"/{path}").status_code == 302}
        assert opened == works


def test_who_forgot_gets_a_link_and_is_signed_out_elsewhere() -> None:
    known = person()
    elsewhere = Client()
    sign_in(elsewhere, known)
    for number in range(3):
        answer = Client().post(FORGOTTEN, {"email": known.email.upper()})
        assert (answer.status_code, len(mail.outbox)) == (200, number + 1)
    first, last = re.findall(r"/choose/\S+", str(mail.outbox[0].body)), link()
    assert choose(last, "another good long one")["Location"] == LOGIN
    assert "This link has ended" in choose(f"/admin/password{first[0]}", PASSWORD).text
    assert elsewhere.get(INDEX).status_code == 302
    entry = AuditEntry.objects.filter(
        object_type="tokens.user", object_id=str(known.pk), verb__startswith="mailed"
    ).latest("pk")
    assert entry.reason == "asked for from 127.0.0.1"


def test_the_answer_is_the_same_whoever_is_asked_for() -> None:
    without_role, left = person(is_finance=False), person(is_active=False)
    texts = set()
    for asked in (person().email, address(), without_role.email, left.email):
        answer = Client().post(FORGOTTEN, {"email": asked})
        texts.add((answer.status_code, re.sub(r"<input[^>]*csrf[^>]*>", "", answer.text.replace(asked, ""))))
    assert len(texts) == 1
    assert len(mail.outbox) == 1
    for user in (without_role, left):
        assert "This link has ended" in Client().get(f"/{passwords.link_to_choose(user).split('/', 3)[3]}").text


@pytest.mark.parametrize("known", [True, False])
def test_mails_to_an_address_are_counted_known_or_not(known: bool, operator: User) -> None:
    email = person().email if known else address()
    assert [Client().post(FORGOTTEN, {"email": email}).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert len(mail.outbox) == (3 if known else 0)
    run("signin", "unlock", email)
    assert Client().post(FORGOTTEN, {"email": email}).status_code == 200


def test_a_link_begins_with_the_public_url_and_not_with_what_the_request_says(settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    settings.PUBLIC_URL = "https://gateway.example"
    Client().post(FORGOTTEN, {"email": person().email}, headers={"Host": "evil.example"})
    assert "https://gateway.example/admin/password/choose/" in str(mail.outbox[0].body)
    assert "evil" not in str(mail.outbox[0].message())


def test_a_new_password_does_not_replace_the_second_factor() -> None:
    known = person()
    with_factor(known)
    passwords.invite(known)
    browser = Client()
    assert choose(link(), "another good long one", browser)["Location"] == LOGIN
    browser.post(LOGIN, {"username": known.email, "password": "another good long one"})
    assert browser.get(INDEX)["Location"].startswith("/admin/second-factor/verify/")


def test_a_tenants_administrator_invites_members_with_a_role_only(customer: Customer) -> None:
    boss = issuing.add_member(customer.tenant, address())
    roles.set_role(boss, "administrator")
    client = Client()
    client.force_login(boss.user)
    viewer, caller = (issuing.add_member(customer.tenant, address()) for _ in range(2))
    roles.set_role(viewer, "viewer")
    invite = page("tokens_membership_invite", viewer.pk)
    assert invite in client.get(page("tokens_membership_change", viewer.pk)).text
    assert (
        page("tokens_membership_invite", caller.pk) not in client.get(page("tokens_membership_change", caller.pk)).text
    )
    assert f"Invite {viewer.user.email}?" in client.get(invite).text
    assert mail.outbox == [], "looking sends nothing"
    for _ in range(4):
        last = client.post(invite, follow=True)
    assert "several links within the hour" in last.text
    assert [message.to for message in mail.outbox] == [[viewer.user.email]] * 3
    client.post(page("tokens_membership_invite", caller.pk))
    assert len(mail.outbox) == 3
    choose(link(), PASSWORD)
    assert client.post(invite).status_code == 403, "a new password is between them and their mailbox"


def test_what_keeps_somebody_from_being_invited_is_said(admin: Client, settings: Any, customer: Customer) -> None:
    add, data = page("tokens_user_add"), {"email": address(), "usable_password": "true", "invite": "on"}
    assert "Without a role there is nothing to sign in to" in admin.post(add, data).text
    typed = {"is_finance": "on", "password1": PASSWORD, "password2": PASSWORD}
    assert "Either they choose their password themselves" in admin.post(add, data | typed).text
    assert not User.objects.filter(email=data["email"]).exists()
    assert "has no role" in refusal("user", "invite", Membership.objects.get(pk=customer.member.pk).user.email)
    assert "There is no user" in refusal("user", "invite", address())
    someone = person(None)
    assert "mailed to" in run("user", "invite", someone.email)[0]
    settings.EMAIL_BACKEND, settings.EMAIL_PORT = "django.core.mail.backends.smtp.EmailBackend", 1
    assert "The mail server did not take it (ConnectionRefusedError)." in refusal("user", "invite", someone.email)
    failed = admin.post(page("tokens_user_invite", someone.pk), follow=True)
    assert "was not invited" in failed.text
    settings.EMAIL_URL = ""
    with pytest.raises(CommandError, match="no mail server"):
        call_command("user", "invite", someone.email)
    for answer in (Client().get(FORGOTTEN), Client().post(FORGOTTEN, {"email": someone.email})):
        assert "This gateway sends no mail" in answer.text
    assert FORGOTTEN in Client().get(LOGIN).text


def test_without_the_broker_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    app.conf.task_always_eager = False
    monkeypatch.setitem(app.conf, "broker_write_url", "redis://127.0.0.1:1/0")
    answer = Client().post(FORGOTTEN, {"email": address()})
    assert (answer.status_code, "can&#x27;t be sent just now" in answer.text) == (503, True)


@pytest.mark.parametrize("session", ["that is over", "without its second step"])
def test_a_link_is_opened_whatever_session_the_browser_has(session: str) -> None:
    known, browser = person(), Client()
    if session == "without its second step":
        with_factor(known)
    sign_in(browser, known)
    if session == "that is over":
        stored = browser.session
        stored[sessions.SEEN] = 0
        stored.save()
    assert browser.get(FORGOTTEN).status_code == 200
    passwords.invite(User.objects.get(pk=known.pk))  # as it is since that sign-in
    assert choose(link(), "another good long one", browser)["Location"] == LOGIN
    assert browser.get(INDEX).status_code == 302


def test_a_link_is_in_no_log(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def gone(*_words: Any) -> None:
        raise OperationalError("the database is away")

    passwords.invite(person())
    monkeypatch.setattr(passwordviews.Choose, "get_user", gone)
    written: list[str] = []
    handler = next(
        one for one in logging.getLogger().handlers if type(one.formatter).__module__.startswith("structlog")
    )
    monkeypatch.setattr(handler, "emit", lambda record: written.append(handler.format(record)))
    assert Client(raise_request_exception=False).get(link()).status_code == 503
    assert "/password/choose/" in "".join(written)
    assert link().split("/")[-2] not in "".join(written)


def test_a_password_that_was_ended_is_not_replaced_by_mail(admin: Client, customer: Customer) -> None:
    known, never = person(), person(None)
    sign_in(Client(), known)
    ended = {"usable_password": "false", "password1": "", "password2": "", "unset-password": "1"}
    admin.post(reverse("admin:auth_user_password_change", args=[known.pk]), ended)
    known.refresh_from_db()
    assert not known.has_usable_password()
    for user in (known, never):
        assert Client().post(FORGOTTEN, {"email": user.email}).status_code == 200
    assert [message.to for message in mail.outbox] == [[never.email]]
    assert "was ended" in refusal("user", "invite", known.email)


def test_inviting_many_uses_up_no_tries_to_sign_in(customer: Customer, settings: Any) -> None:
    settings.SIGN_IN_RATE_OF_AN_ADDRESS = "2/15m"
    boss = issuing.add_member(customer.tenant, address())
    roles.set_role(boss, "administrator")
    client = Client()
    client.force_login(boss.user)
    for _ in range(3):
        viewer = issuing.add_member(customer.tenant, address())
        roles.set_role(viewer, "viewer")
        client.post(page("tokens_membership_invite", viewer.pk))
    assert len(mail.outbox) == 3
    assert Client().post(LOGIN, {"username": boss.user.email, "password": "x"}).status_code == 200

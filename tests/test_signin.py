"""Signing in: the second factor, guessing, and how long a session lasts."""

import datetime as dt
import ipaddress
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.cookies import Morsel
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils import timezone
from django_otp.oath import TOTP
from django_otp.plugins.otp_static.models import StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice

from config import throttling
from config.signin import factors, sealing, sessions
from config.signin.models import Authenticator, RecoveryCodes
from tests.adminpages import PASSWORD, page
from tokens.models import AuditEntry, User

ROOT = Path(__file__).resolve().parent.parent
LOGIN, INDEX = "/admin/login/", "/admin/"
VERIFY, ENROL = "/admin/second-factor/verify/", "/admin/second-factor/set-up/"
OWN, CODES, REMOVE = "/admin/second-factor/", "/admin/second-factor/codes/", "/admin/second-factor/remove/"


def code_of(device: Authenticator, steps: int = 0) -> str:
    """The code that the app shows, or would show so many steps of 30 s from now."""
    totp = TOTP(device.bin_key)
    totp.time, totp.drift = time.time(), steps
    return f"{totp.token():06d}"


def with_factor(user: User) -> tuple[Authenticator, list[str]]:
    """Set up an authenticator, and let what it showed be usable again."""
    begun = factors.pending(user)
    checked, codes = factors.confirm(user, code_of(begun))
    assert checked.device, checked.why
    Authenticator.objects.filter(pk=begun.pk).update(last_t=-1)
    begun.refresh_from_db()
    return begun, codes


def forgive(user: User) -> None:
    """Let the next code be looked at without the wait that wrong ones bring."""
    for model in (Authenticator, RecoveryCodes):
        model.objects.filter(user=user).update(throttling_failure_count=0, throttling_failure_timestamp=None)


def sign_in(client: Client, user: User, **headers: str) -> Any:
    return client.post(LOGIN, {"username": user.email, "password": PASSWORD}, headers=headers)


def enter(client: Client, code: str, path: str = VERIFY, **data: str) -> Any:
    return client.post(path, {"code": code, **data})


@pytest.fixture
def required(settings: Any) -> None:
    settings.SECOND_FACTOR_REQUIRED = frozenset({"platform", "finance"})


@pytest.fixture
def device(operator: User) -> Authenticator:
    return with_factor(operator)[0]


@pytest.fixture
def browser(operator: User, device: Authenticator) -> Client:
    """A browser in which the operator has shown password and code."""
    client = Client()
    sign_in(client, operator)
    assert enter(client, code_of(device)).headers["Location"] == INDEX
    Authenticator.objects.filter(pk=device.pk).update(last_t=-1)
    assert client.get(INDEX).status_code == 200
    return client


# The second factor


def test_without_a_factor_the_password_is_enough_where_none_is_required(operator: User) -> None:
    client = Client()
    assert sign_in(client, operator).headers["Location"] == INDEX
    assert client.get(INDEX).status_code == 200
    assert "You have none" in client.get(OWN).text


@pytest.mark.usefixtures("required")
def test_whoever_must_have_one_is_led_to_set_it_up_and_reaches_nothing_else(operator: User) -> None:
    client = Client()
    sign_in(client, operator)
    for path in (INDEX, page("tokens_tenant_changelist"), "/admin/password_change/", OWN, CODES, "/nothing/"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Location"].partition("?")[0]) == (302, ENROL), path
    assert client.post(page("tokens_tenant_add"), {"slug": "x"}).headers["Location"] == ENROL
    shown = client.get(ENROL).text
    assert re.search(r"<svg[^>]* viewBox=", shown), "otherwise the picture would be cut, not shrunk"
    assert "Your role needs a second factor" in shown
    secret = re.search(r'class="gw-key">([A-Z2-7 ]+)<', shown)
    assert secret
    assert secret[1].replace(" ", "") == factors.pending(operator).secret_text().replace(" ", "")
    wrong = enter(client, "000000", ENROL)
    assert "isn&#x27;t right" in wrong.text or "clock" in wrong.text
    forgive(operator)
    key = client.session.session_key
    done = enter(client, code_of(factors.pending(operator)), ENROL)
    codes = re.findall(r"^(?:.*>)?([a-z2-9]{5}-[a-z2-9]{5})", done.text, re.MULTILINE)
    assert len(set(codes)) == factors.RECOVERY_CODES
    assert done.headers["Cache-Control"] == "no-store"
    assert client.session.session_key != key, "the session's key changes with its rights"
    assert client.get(INDEX).status_code == 200


@pytest.mark.usefixtures("required")
def test_others_are_not_made_to(customer: Any) -> None:
    person = User.objects.create_user(f"{uuid.uuid4().hex}@x.test", PASSWORD, is_staff=True)
    assert not factors.is_required(person)
    person.is_superuser = True
    assert factors.is_required(person)
    person.is_superuser, person.is_finance = False, True
    assert factors.is_required(person)


def test_after_the_password_only_the_second_step_is_open(operator: User, device: Authenticator) -> None:
    client = Client()
    sign_in(client, operator)
    first_key = client.session.session_key
    for path in (INDEX, page("tokens_tenant_changelist"), OWN, ENROL, CODES, REMOVE, "/admin/jsi18n/", "/"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers.get("Location", "").partition("?")[0]) == (302, VERIFY), path
    assert "authenticator app" in client.get(VERIFY).text
    answer = enter(client, code_of(device), next=page("tokens_tenant_changelist"))
    assert answer.headers["Location"] == page("tokens_tenant_changelist")
    assert client.session.session_key != first_key
    assert client.get(INDEX).status_code == 200
    assert Client().get(VERIFY).status_code == 302, "and without the password not even that"


def test_control_without_the_gate_the_password_is_enough(operator: User, device: Authenticator, settings: Any) -> None:
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "SignIn" not in name]
    client = Client()
    sign_in(client, operator)
    assert client.get(INDEX).status_code == 200


def test_a_way_back_leads_nowhere_else(operator: User, device: Authenticator) -> None:
    for foreign in ("https://attacker.example/", "//attacker.example/", "javascript:alert(1)"):
        client = Client()
        sign_in(client, operator)
        assert enter(client, code_of(device), next=foreign).headers["Location"] == INDEX
        Authenticator.objects.update(last_t=-1)


def test_a_code_is_good_once(operator: User, device: Authenticator) -> None:
    code = code_of(device)
    assert factors.check(operator, code).device == device
    again = factors.check(operator, code)
    assert again.device is None
    assert "used already" in again.why
    forgive(operator)
    Authenticator.objects.filter(pk=device.pk).update(last_t=-1)

    def send(_: int) -> bool:
        with closing(connection):  # each thread has its own
            return factors.check(operator, code).device is not None

    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(send, range(4)))
    assert sum(taken) == 1, "also when it is sent several times at once"


@pytest.mark.parametrize(("steps", "taken"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_a_clock_may_be_off_by_one_step(operator: User, device: Authenticator, steps: int, taken: bool) -> None:
    at = time.time() % 30
    if at > 28:  # the step would change in between
        time.sleep(30.1 - at)
    assert (factors.check(operator, code_of(device, steps)).device is not None) == taken


@pytest.mark.parametrize(
    ("steps", "words"), [(-20, "10 minutes behind"), (20, "10 minutes ahead"), (120, "60 minutes ahead")]
)
def test_a_wrong_clock_is_explained_while_setting_up(operator: User, steps: int, words: str) -> None:
    checked, codes = factors.confirm(operator, code_of(factors.pending(operator), steps))
    assert checked.device is None
    assert words in checked.why
    assert codes == []


def test_a_code_in_use_is_never_told_to_be_of_another_time(operator: User, device: Authenticator) -> None:
    why = factors.check(operator, code_of(device, 20)).why
    assert "ahead" not in why
    assert timezone.now().strftime("%H:%M") in why, "the time here is told instead"


def test_wrong_codes_bring_a_wait(operator: User, device: Authenticator) -> None:
    for _ in range(3):
        factors.check(operator, "000000" if code_of(device) != "000000" else "111111")
        Authenticator.objects.filter(pk=device.pk).update(
            throttling_failure_timestamp=timezone.now() - dt.timedelta(minutes=5)
        )
    Authenticator.objects.filter(pk=device.pk).update(throttling_failure_timestamp=timezone.now())
    refused = factors.check(operator, code_of(device))
    assert refused.device is None
    assert re.search(r"looked at in [34] seconds", refused.why)
    Authenticator.objects.filter(pk=device.pk).update(throttling_failure_count=10)
    refused = factors.check(operator, code_of(device))
    assert re.search(r"looked at in 51[012] seconds", refused.why), "and never for longer than minutes"


def test_codes_are_counted_by_person_too(operator: User, device: Authenticator, settings: Any) -> None:
    settings.SIGN_IN_RATE = "3/15m"
    client = Client()
    sign_in(client, operator)
    assert [enter(client, "000000").status_code for _ in range(3)] == [200, 200, 200]
    answer = enter(client, code_of(device))
    assert answer.status_code == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 900


def test_a_recovery_code_signs_in_once(operator: User) -> None:
    _, codes = with_factor(operator)
    client = Client()
    sign_in(client, operator)
    assert enter(client, f"  {codes[0].upper().replace('-', ' ')} ").headers["Location"] == INDEX
    assert "9 are left" in client.get(INDEX).text
    other = Client()
    sign_in(other, operator)
    assert "none of your unused codes" in enter(other, codes[0]).text
    assert factors.codes_left(operator) == 9


def test_nothing_that_is_stored_is_a_secret(operator: User) -> None:
    device, codes = with_factor(operator)
    row = TOTPDevice.objects.get(pk=device.pk)
    assert device.bin_key.hex() not in row.key
    with pytest.raises(ValueError, match="hex"):
        _ = row.bin_key
    stored = set(StaticToken.objects.filter(device__user=operator).values_list("token", flat=True))
    assert not stored & {form for code in codes for form in (code, code.replace("-", ""))}
    other = User.objects.create_user(f"{uuid.uuid4().hex}@x.test", PASSWORD)
    with pytest.raises(sealing.Unreadable):
        sealing.unseal(row.key, other.pk)


def test_encryption_keys_can_be_changed(operator: User, settings: Any) -> None:
    device, codes = with_factor(operator)
    old, new = settings.ENCRYPTION_KEYS, ["bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctbmV3LW5ldzA="]
    settings.ENCRYPTION_KEYS = new + old
    before = device.bin_key
    assert factors.check(operator, code_of(device)).device
    settings.ENCRYPTION_KEYS = new
    device.refresh_from_db()
    assert device.bin_key == before, "sealed anew with the first key when it was used"
    settings.ENCRYPTION_KEYS = old
    assert "use a recovery code" in factors.check(operator, "123456").why
    assert factors.check(operator, codes[0]).device


def test_a_factor_is_only_changed_with_a_code_of_late(browser: Client, device: Authenticator, operator: User) -> None:
    for path in (ENROL, CODES, REMOVE):
        assert browser.get(path).status_code == 200
    session = browser.session
    session[sessions.CONFIRMED] = int(time.time()) - sessions.FRESH_FOR - 1
    session.save()
    for path in (ENROL, CODES, REMOVE):
        for answer in (browser.get(path), browser.post(path, {"code": code_of(device)})):
            assert answer.headers["Location"].startswith(VERIFY), path
    assert browser.get(INDEX).status_code == 200
    assert enter(browser, code_of(device), next=CODES).headers["Location"] == CODES
    assert browser.get(CODES).status_code == 200


def test_another_app_replaces_the_first_and_ends_other_sessions(
    browser: Client, device: Authenticator, operator: User
) -> None:
    other = Client()
    sign_in(other, operator)
    enter(other, code_of(device))
    assert other.get(INDEX).status_code == 200
    assert "stops working" in browser.get(ENROL).text
    assert "Your recovery codes" in enter(browser, code_of(factors.pending(operator)), ENROL).text
    assert browser.get(INDEX).status_code == 200
    answer = other.get(INDEX)
    assert answer.headers["Location"].startswith(LOGIN)
    assert "second factor has changed" in other.get(answer.headers["Location"]).text
    assert not Authenticator.objects.filter(pk=device.pk).exists()


def test_removing_it_ends_other_sessions(browser: Client, device: Authenticator, operator: User) -> None:
    other = Client()
    sign_in(other, operator)
    enter(other, code_of(device))
    assert browser.post(REMOVE).headers["Location"] == OWN
    assert "You have none" in browser.get(OWN).text
    assert other.get(INDEX).headers["Location"].startswith(LOGIN)
    assert factors.codes_left(operator) == 0


@pytest.mark.usefixtures("required")
def test_it_stays_where_it_is_required(browser: Client, operator: User) -> None:
    assert browser.post(REMOVE).headers["Location"] == OWN
    assert "Your role needs a second factor" in browser.get(OWN).text
    assert factors.authenticator_of(operator)


def test_a_new_password_ends_other_sessions(browser: Client, device: Authenticator, operator: User) -> None:
    other = Client()
    sign_in(other, operator)
    enter(other, code_of(device))
    new = "another horse battery staple"
    data = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    assert browser.post("/admin/password_change/", data).status_code == 302
    assert browser.get(INDEX).status_code == 200
    assert other.get(INDEX).headers["Location"].startswith(LOGIN)


def test_an_administrator_resets_anothers(admin: Client, operator: User) -> None:
    person = User.objects.create_superuser(f"{uuid.uuid4().hex}@x.test", PASSWORD)
    device, _ = with_factor(person)
    theirs = Client()
    sign_in(theirs, person)
    enter(theirs, code_of(device))
    path = f"/admin/second-factor/reset/{person.pk}/"
    assert "really them" in admin.get(path).text
    assert factors.authenticator_of(person), "looking changes nothing"
    assert admin.post(path).status_code == 302
    assert factors.authenticator_of(person) is None
    assert theirs.get(INDEX).headers["Location"].startswith(LOGIN)
    entry = AuditEntry.objects.get(user=operator, verb="removed", object_id=str(person.pk))
    assert "second factor" in str(entry)
    assert admin.post(f"/admin/second-factor/reset/{operator.pk}/").headers["Location"] == OWN
    staff = User.objects.create_user(f"{uuid.uuid4().hex}@x.test", PASSWORD, is_finance=True)
    clerk = Client()
    clerk.force_login(staff)
    assert clerk.post(path).status_code == 403


def test_nobody_finds_the_tables_in_the_admin(admin: Client) -> None:
    for table in ("otp_totp/totpdevice", "otp_static/staticdevice", "signin/authenticator"):
        assert admin.get(f"/admin/{table}/").status_code == 404


# Guessing


def guess(name: str, address: str = "198.51.100.7", password: str = "wrong") -> Any:
    return Client(REMOTE_ADDR=address).post(LOGIN, {"username": name, "password": password})


@pytest.mark.parametrize("exists", [True, False])
def test_a_name_is_closed_after_ten_guesses(operator: User, exists: bool) -> None:
    name = operator.email if exists else f"{uuid.uuid4().hex}@nobody.test"
    answers = [guess(name, f"198.51.100.{number}") for number in range(10)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({re.sub(r'value="[^"]*"', "", answer.text).replace(name, "") for answer in answers}) == 1
    closed = guess(f"  {name.upper()} ", "198.51.100.99", PASSWORD)
    assert closed.status_code == 429, "in another spelling, from another address, with the right password"
    assert 0 < int(closed.headers["Retry-After"]) <= 900
    assert "tried to sign in too often" in closed.text
    assert guess(f"{uuid.uuid4().hex}@other.test").status_code == 200


def test_the_answer_is_the_same_for_a_name_that_is_and_one_that_is_not(operator: User) -> None:
    known, unknown = guess(operator.email), guess(f"{uuid.uuid4().hex}@nobody.test")
    assert known.status_code == unknown.status_code == 200
    clean = [re.sub(r"[\w.]+@[\w.]+|csrfmiddlewaretoken\" value=\"\w+", "", answer.text) for answer in (known, unknown)]
    assert clean[0] == clean[1]


def test_a_name_that_is_not_takes_as_long(operator: User, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    original = PBKDF2PasswordHasher.encode

    def counted(self: PBKDF2PasswordHasher, *args: Any, **kwargs: Any) -> str:
        hashed.append("one")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PBKDF2PasswordHasher, "encode", counted)
    suspended = User.objects.create_user(f"{uuid.uuid4().hex}@x.test", PASSWORD, is_active=False)
    without = User.objects.create_user(f"{uuid.uuid4().hex}@x.test")
    for name in (operator.email, f"{uuid.uuid4().hex}@nobody.test", suspended.email, without.email):
        hashed.clear()
        guess(name)
        assert len(hashed) == 1, name


def test_an_address_is_closed_whatever_names_it_tries(settings: Any) -> None:
    settings.SIGN_IN_RATE_OF_AN_ADDRESS = "5/15m"
    assert [guess(f"{number}@nobody.test").status_code for number in range(6)] == [200] * 5 + [429]
    assert guess("6@nobody.test", "198.51.100.8").status_code == 200


def test_the_address_is_the_one_that_cannot_be_made_up(settings: Any) -> None:
    settings.SIGN_IN_RATE_OF_AN_ADDRESS = "2/15m"
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]

    def through(proxy: str, made_up: str) -> int:
        data = {"username": f"{uuid.uuid4().hex}@nobody.test", "password": "wrong"}
        forwarded = {"X-Forwarded-For": f"{made_up}, 203.0.113.9"}
        return int(Client(REMOTE_ADDR=proxy).post(LOGIN, data, headers=forwarded).status_code)

    assert [through("127.0.0.1", f"10.0.0.{number}") for number in range(3)] == [200, 200, 429]
    assert through("192.0.2.1", "203.0.113.9") == 200, "who is no proxy of ours speaks for nobody else"


def test_of_ipv6_a_whole_subscriber_counts_as_one(settings: Any) -> None:
    settings.SIGN_IN_RATE_OF_AN_ADDRESS = "3/15m"
    tries = [guess(f"{number}@nobody.test", f"2001:db8:0:7::{number:x}") for number in range(5)]
    assert [answer.status_code for answer in tries] == [200] * 3 + [429] * 2
    assert guess("5@nobody.test", "2001:db8:0:8::1").status_code == 200
    call_command("signin", "unlock", "2001:db8:0:7::99")
    assert guess("6@nobody.test", "2001:db8:0:7::6").status_code == 200


def test_nobody_is_shut_out_of_a_browser_they_have_signed_in_with(operator: User) -> None:
    mine, wrong = Client(), {"username": operator.email, "password": "wrong"}
    sign_in(mine, operator)
    cookie = mine.cookies["browser"]
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")
    mine.post("/admin/logout/")
    assert [guess(operator.email).status_code for _ in range(11)][-1] == 429
    assert sign_in(mine, operator).status_code == 302, "somebody else's guesses close it to others only"
    assert guess(operator.email, password=PASSWORD).status_code == 429, "and don't begin anew by that"
    assert [mine.post(LOGIN, wrong).status_code for _ in range(11)] == [200] * 10 + [429], "it has no more tries itself"
    other = User.objects.create_superuser(f"{uuid.uuid4().hex}@operators.test", PASSWORD)
    mine.cookies["browser"] = cookie.value
    tries = [mine.post(LOGIN, {**wrong, "username": other.email}).status_code for _ in range(11)]
    assert tries == [200] * 10 + [429], "for another name it is nobody's browser"


def test_getting_it_right_starts_anew(operator: User) -> None:
    for _ in range(3):
        for _ in range(6):
            guess(operator.email)
        assert guess(operator.email, password=PASSWORD).status_code == 302


def test_the_command_opens_a_name_and_an_address(
    operator: User, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.SIGN_IN_RATE = "2/15m"
    settings.SIGN_IN_RATE_OF_AN_ADDRESS = "4/15m"
    assert [guess(operator.email).status_code for _ in range(3)] == [200, 200, 429]
    call_command("signin", "unlock", operator.email)
    assert guess(operator.email).status_code == 200
    assert guess(operator.email).status_code == 429
    call_command("signin", "unlock", "198.51.100.7")
    call_command("signin", "unlock", operator.email)
    assert guess(operator.email).status_code == 200
    assert "198.51.100.7 may try again." in capsys.readouterr().out


def test_the_command_resets_a_factor(operator: User, capsys: pytest.CaptureFixture[str]) -> None:
    with_factor(operator)
    call_command("signin", "reset", operator.email.upper())
    assert factors.authenticator_of(operator) is None
    assert "signed out everywhere" in capsys.readouterr().out
    with pytest.raises(CommandError, match="has no second factor"):
        call_command("signin", "reset", operator.email)
    with pytest.raises(CommandError, match="There is no"):
        call_command("signin", "reset", "nobody@nobody.test")


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def down(*_args: Any, **_kwargs: Any) -> None:
        raise ConnectionError("down")

    for name in ("get", "add", "incr", "set"):
        monkeypatch.setattr(cache, name, down, raising=False)
    monkeypatch.setattr(throttling, "get_usage", down)
    monkeypatch.setattr(throttling, "_own", throttling.OwnCounters())
    yield


@pytest.mark.usefixtures("no_cache")
def test_without_the_cache_people_get_in_and_guessing_stays_bounded(operator: User) -> None:
    assert guess(operator.email, password=PASSWORD).status_code == 302
    name = f"{uuid.uuid4().hex}@nobody.test"
    assert [guess(name, f"198.51.100.{number}").status_code for number in range(11)] == [200] * 10 + [429]


def test_own_counters_forget_the_oldest() -> None:
    counters = throttling.OwnCounters(most=3)
    assert [counters.count("g", "a", "1/15m") > 0 for _ in range(2)] == [False, True]
    for key in "bcd":
        counters.count("g", key, "1/15m")
    assert counters.count("g", "a", "1/15m") == 0


@pytest.mark.parametrize("rate", ["10/15m", "5/s", "100/7d"])
def test_rates_that_are_taken(rate: str) -> None:
    assert throttling.checked_rate("SIGN_IN_RATE", rate) == rate


@pytest.mark.parametrize("rate", ["", "10", "0/m", "10/15", "ten/m", "10/0m", "10/8d", "-1/m"])
def test_rates_that_are_refused(rate: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="SIGN_IN_RATE"):
        throttling.checked_rate("SIGN_IN_RATE", rate)


# Sessions


def test_the_session_key_changes_at_sign_in(operator: User) -> None:
    client = Client()
    session = client.session
    session["planted"] = 1
    session.save()
    planted = session.session_key
    client.cookies["sessionid"] = str(planted)
    sign_in(client, operator)
    assert client.session.session_key != planted


@pytest.mark.parametrize(
    ("name", "seconds", "words"),
    [(sessions.SEEN, 61 * 60, "away for a while"), (sessions.STARTED, 12 * 3600 + 1, "half a day ago")],
)
def test_a_session_ends(admin: Client, name: str, seconds: int, words: str) -> None:
    session = admin.session
    session[name] = int(time.time()) - seconds
    session.save()
    answer = admin.get(INDEX)
    assert answer.headers["Location"].startswith(LOGIN)
    assert words in admin.get(answer.headers["Location"]).text


def test_being_there_keeps_it_up(admin: Client) -> None:
    session = admin.session
    session[sessions.SEEN] = int(time.time()) - 59 * 60
    session.save()
    assert admin.get(INDEX).status_code == 200
    assert time.time() - admin.session[sessions.SEEN] < 5


def test_a_password_alone_does_not_wait_for_its_code(operator: User, device: Authenticator) -> None:
    client = Client()
    sign_in(client, operator)
    session = client.session
    session[sessions.STARTED] = int(time.time()) - sessions.SECOND_STEP_WITHIN - 1
    session.save()
    assert enter(client, code_of(device)).headers["Location"] == LOGIN
    assert "didn&#x27;t come in time" in client.get(LOGIN).text


def test_cookies_and_headers_of_a_page(operator: User) -> None:
    client = Client()
    answer = sign_in(client, operator)
    cookie: Morsel[str] = answer.cookies["sessionid"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"
    headers = client.get(INDEX).headers
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "camera=()" in headers["Permissions-Policy"]


def test_a_forged_form_gets_a_page_that_says_what_to_do() -> None:
    client = Client(enforce_csrf_checks=True)
    answer = client.post(LOGIN, {"username": "a", "password": "b"})
    assert answer.status_code == 403
    assert "load the page again" in answer.text


# A production-like environment


def in_production(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the settings of a gateway that is reached over https."""
    settings = {"PUBLIC_URL": "https://gateway.example", "TRUSTED_PROXIES": "10.0.0.0/8", "ALLOWED_HOSTS": ""}
    variables = {name: value for name, value in {**os.environ, **settings, **environment}.items() if value}
    return subprocess.run(
        [sys.executable, *command], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_the_deployment_check_is_clean() -> None:
    done = in_production("manage.py", "check", "--deploy", "--fail-level", "WARNING")
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_behind_https_all_is_strict_and_a_second_factor_required() -> None:
    names = "SESSION_COOKIE_NAME CSRF_COOKIE_NAME SESSION_COOKIE_SECURE CSRF_COOKIE_SECURE SECURE_HSTS_SECONDS"
    script = (
        "from django.conf import settings as s;"
        f"print(*[getattr(s, name) for name in '{names}'.split()], *sorted(s.SECOND_FACTOR_REQUIRED))"
    )
    done = in_production("-c", script)
    assert done.stdout.split() == ["__Host-session", "__Host-csrf", "True", "True", "31536000", "finance", "platform"]
    assert in_production("-c", script, SECOND_FACTOR_REQUIRED="finance").stdout.split()[5:] == ["finance"]
    assert in_production("-c", script, SECOND_FACTOR_REQUIRED="none").stdout.split()[5:] == []


@pytest.mark.parametrize("words", ["everybody", "platform,none"])
def test_a_misspelt_requirement_stops_the_start(words: str) -> None:
    done = in_production("-c", "import config.settings", SECOND_FACTOR_REQUIRED=words)
    assert done.returncode != 0
    assert "SECOND_FACTOR_REQUIRED must list" in done.stderr

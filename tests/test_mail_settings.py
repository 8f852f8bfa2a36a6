"""Where alarms are mailed to: settings that can't be right stop the start."""

import re

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.mail import MailServer, checked_addresses, parse_mail_url
from tests.test_settings import manage


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail.example", MailServer("mail.example", 25)),
        ("smtp://me:p%2Fw@mail.example/?tls=yes", MailServer("mail.example", 587, "me", "p/w", upgraded=True)),
        ("smtps://me:pw@mail.example:2465", MailServer("mail.example", 2465, "me", "pw", over_tls=True)),
        ("smtp://me:pw@localhost:1025", MailServer("localhost", 1025, "me", "pw")),
    ],
)
def test_mail_urls(url: str, server: MailServer) -> None:
    assert parse_mail_url(url) == server


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://mail.example", "must read smtp://"),
        ("mail.example:25", "must read smtp://"),
        ("smtp://mail.example/path", "must read smtp://"),
        ("smtp://mail.example?tls=maybe", "takes one option"),
        ("smtp://mail.example?timeout=5", "takes one option"),
        ("smtp://me:hidden-word@mail.example", "nothing would protect"),
        ("smtp://me:hid#den@mail.example", "can't be read"),
    ],
)
def test_bad_mail_urls_are_refused_without_repeating_them(url: str, sentence: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(sentence)) as refusal:
        parse_mail_url(url)
    assert "hid" not in str(refusal.value)


def test_addresses() -> None:
    assert checked_addresses("ALARM_EMAILS", ["ops@mail", "a.b@example.com"]) == ["ops@mail", "a.b@example.com"]
    for wrong in ("ops", "a b@example.com", "Ops <ops@example.com>", "a@b@c", "ops@example.com\nBcc: x@y"):
        with pytest.raises(ImproperlyConfigured, match="ALARM_EMAILS must hold e-mail addresses"):
            checked_addresses("ALARM_EMAILS", [wrong])


def test_addresses_without_a_mail_server_stop_the_start() -> None:
    finished = manage("check", ALARM_EMAILS="ops@example.com")
    assert finished.returncode != 0
    assert "ALARM_EMAILS is set and EMAIL_URL is not" in finished.stderr

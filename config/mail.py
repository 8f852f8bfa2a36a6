"""`EMAIL_URL` in its parts, and the addresses of those who get alarms."""

import re
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from django.core.exceptions import ImproperlyConfigured

from config.serverurls import split_url

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}
YES, NO = {"yes", "true", "1"}, {"no", "false", "0"}
ADDRESS = re.compile(r"[^@\s<>,;\"]+@[^@\s<>,;\"]+")


class MailServer(NamedTuple):
    """Where mail goes. `upgraded`: by STARTTLS; `over_tls`: from the first byte on."""

    host: str = "localhost"
    port: int = 25
    user: str = ""
    password: str = ""
    upgraded: bool = False
    over_tls: bool = False


def parse_mail_url(url: str) -> MailServer:
    """Parse ``smtp://user:password@host:587/?tls=yes`` (STARTTLS) or ``smtps://...`` (TLS throughout).

    Ports, unless given: 25, with ``tls=yes`` 587, with smtps 465. Raises ImproperlyConfigured for any other form, and
    for a password that would cross the network in the clear.
    """
    parts = split_url("EMAIL_URL", url)
    if parts.scheme not in {"smtp", "smtps"} or not parts.hostname or parts.path not in {"", "/"}:
        raise ImproperlyConfigured("EMAIL_URL must read smtp://user:password@host:587/?tls=yes, or smtps://...")
    options = parse_qs(parts.query, keep_blank_values=True)
    tls = options.pop("tls", ["no"])[-1].lower()
    if options or tls not in YES | NO:
        raise ImproperlyConfigured("EMAIL_URL takes one option, tls=yes or tls=no.")
    over_tls, upgraded = parts.scheme == "smtps", parts.scheme == "smtp" and tls in YES
    if parts.password and not (over_tls or upgraded or parts.hostname in LOCAL_HOSTS):
        text = "EMAIL_URL has a password, which nothing would protect: add ?tls=yes, or use smtps://."
        raise ImproperlyConfigured(text)
    port = parts.port or (465 if over_tls else 587 if upgraded else 25)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return MailServer(parts.hostname, port, user, password, upgraded, over_tls)


def checked_addresses(name: str, addresses: list[str]) -> list[str]:
    """The addresses that the setting `name` lists. Raises ImproperlyConfigured when one is none."""
    for address in addresses:
        if not ADDRESS.fullmatch(address):
            raise ImproperlyConfigured(f"{name} must hold e-mail addresses such as ops@example.com, not {address!r}.")
    return addresses

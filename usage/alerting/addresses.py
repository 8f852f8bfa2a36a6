"""Where a webhook may go: the public internet, and networks that ``WEBHOOK_NETWORKS`` allows.

A webhook is an address that a tenant's administrator types in and that our server then calls. Without this rule they
could have it call what only our server reaches: itself, the database's host, a cloud's metadata service. So the host's
addresses are looked up and judged for every attempt, and the connection goes to one of those that were judged.
"""

import ipaddress
import re
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError

from config.addresses import Address, is_within

# IPv6 addresses that lead on to an IPv4 address: NAT64 (RFC 6052, RFC 8215), 6to4 and Teredo.
TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))
PORTS = {"https": 443, "http": 80}
_URL = re.compile(r"[\x21-\x7e]+")


class Forbidden(Exception):
    """A URL that no webhook may have, or a host that none may call. The message is for whoever set it up."""


class Target(NamedTuple):
    """A URL in the parts that a request needs; `path` with the query."""

    tls: bool
    host: str
    port: int
    path: str


def parse(url: str) -> Target:
    """Read a webhook's URL. Raises Forbidden."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise Forbidden("This is not a URL.") from None
    if not _URL.fullmatch(url):
        raise Forbidden("A URL holds no blanks and only ASCII characters; write others percent-encoded.")
    if parts.scheme not in PORTS or not host:
        raise Forbidden("It must begin with https:// and name a host.")
    if parts.username is not None or parts.password is not None:
        raise Forbidden("It must not hold a user name or a password: the signature says who calls.")
    if parts.fragment or url.endswith("#"):
        raise Forbidden("It must not have a part after #, which is never sent.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme == "https", host, port or PORTS[parts.scheme], path)


def validate_url(url: str) -> None:
    """The same for a form: raises ValidationError. A host given by its address is judged at once, names when called."""
    try:
        target = parse(url)
        literal = _literal(target.host)
        if literal is not None:
            _judge(target, [literal])
        elif not target.tls and target.host != "localhost":
            raise Forbidden("It must begin with https://.")
    except Forbidden as exc:
        raise ValidationError(str(exc)) from exc


def resolve(target: Target) -> str:
    """The address to connect to: one of the host's, when all of them are allowed. Raises Forbidden.

    Blocks for as long as the system's resolver takes.
    """
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Forbidden("The host's name can't be resolved.") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    _judge(target, addresses)
    return str(addresses[0])


def shown(url: str) -> str:
    """A URL for lists: without its path and query, which may hold a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "")


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet's, for one receiver, and doesn't lead on elsewhere."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if is_within(address, TRANSLATED):
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _judge(target: Target, addresses: list[Address]) -> None:
    for address in addresses:
        plain = getattr(address, "ipv4_mapped", None) or address
        if not is_public(plain) and not is_within(plain, settings.WEBHOOK_NETWORKS):
            raise Forbidden(f"{target.host} is not on the public internet, and WEBHOOK_NETWORKS doesn't allow it.")
        if not target.tls and not plain.is_loopback:
            raise Forbidden("It must begin with https://: only this machine itself may be called without.")


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None

"""Whose call it is: the client's address, behind however many proxies of ours.

Each proxy appends the address that it was called from to ``X-Forwarded-For``, so the list is to be believed from its
right end, and only as far as the addresses are our own proxies'. What stands further left a client may have made up.
"""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK = "127.0.0.1"
LONGEST = 45  # characters: eight groups of IPv6, the last two written as IPv4


def client_address(peer: str, forwarded: str | None, trusted: Sequence[Network]) -> str:
    """The right-most hop that is not a trusted proxy.

    Args:
        peer: who opened the connection; "" for a unix socket, which counts as 127.0.0.1.
        forwarded: the ``X-Forwarded-For`` header, several ones joined by commas; None without.
        trusted: the networks of our own proxies (``TRUSTED_PROXIES``).

    Returns:
        An address in its shortest form, IPv4 also for one that is mapped into IPv6. A hop that is no address ends
        the walk at the last good one. When every hop is a trusted proxy, the left-most of them.
        A peer that is no address (no server of ours gives one) comes back as it is.
    """
    if not (forwarded and trusted):
        return _shortest(peer or LOOPBACK)
    current = parse(peer or LOOPBACK)
    if current is None:
        return peer
    for hop in reversed(forwarded.split(",")):
        if not is_within(current, trusted):
            break
        further = parse(hop.strip())
        if further is None:
            break
        current = further
    return str(current)


def subscriber(address: str) -> str:
    """What tries are counted under: an IPv4 address as it is, of IPv6 the /64, which one subscriber has whole."""
    parsed = parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address if parsed is None else str(parsed)


@lru_cache(maxsize=4096)  # its keys come from the server, which has them from the kernel
def _shortest(peer: str) -> str:
    address = parse(peer)
    return peer if address is None else str(address)


def parse(text: str) -> Address | None:
    """The address that `text` spells; None for anything else, and for one with a zone (``fe80::1%eth0``)."""
    return _parse(text) if len(text) <= LONGEST else None


@lru_cache(maxsize=4096)  # its keys come from anybody, so `parse` bounds their length
def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address


def is_within(address: Address, networks: Sequence[Network]) -> bool:
    """Whether one of the networks holds the address."""
    return any(address in network for network in networks)

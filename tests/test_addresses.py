"""Whose call it is, behind proxies that are ours and headers that anybody can send."""

import ipaddress

import pytest

from config import addresses
from config.addresses import client_address

TRUSTED = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "127.0.0.0/8", "fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        pytest.param("203.0.113.9", None, "203.0.113.9", id="no proxy"),
        pytest.param("203.0.113.9", "198.51.100.1", "203.0.113.9", id="a stranger's header counts for nothing"),
        pytest.param("10.0.0.1", None, "10.0.0.1", id="a proxy's own call"),
        pytest.param("10.0.0.1", "", "10.0.0.1", id="an empty header"),
        pytest.param("10.0.0.1", "198.51.100.1", "198.51.100.1", id="one proxy"),
        pytest.param("10.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1", id="what the client made up stands left"),
        pytest.param("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1", id="two proxies"),
        pytest.param("10.0.0.1", "1.1.1.1,198.51.100.1,10.0.0.2", "198.51.100.1", id="without spaces"),
        pytest.param("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3", id="all are proxies: the left-most"),
        pytest.param("10.0.0.1", "198.51.100.1, nonsense", "10.0.0.1", id="a malformed hop ends the walk"),
        pytest.param("10.0.0.1", "198.51.100.1, x, 10.0.0.2", "10.0.0.2", id="at the last good one"),
        pytest.param("10.0.0.1", "198.51.100.1,", "10.0.0.1", id="an empty hop is malformed"),
        pytest.param("10.0.0.1", "fe80::1%eth0", "10.0.0.1", id="a zone is malformed"),
        pytest.param("10.0.0.1", "127.0.0.1:80", "10.0.0.1", id="a port is malformed"),
        pytest.param("", None, "127.0.0.1", id="a unix socket is this machine"),
        pytest.param("", "198.51.100.1", "198.51.100.1", id="a proxy on a unix socket"),
        pytest.param("fd00::1", "2001:DB8:0:0::1", "2001:db8::1", id="IPv6, in its shortest form"),
        pytest.param("::ffff:10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1", id="IPv4 mapped into IPv6"),
        pytest.param("testclient", "198.51.100.1", "testclient", id="a peer that is no address"),
    ],
)
def test_client_address(peer: str, forwarded: str | None, expected: str) -> None:
    assert client_address(peer, forwarded, TRUSTED) == expected


def test_without_trusted_proxies_the_header_is_never_read() -> None:
    assert client_address("127.0.0.1", "198.51.100.1", []) == "127.0.0.1"
    assert client_address("", "198.51.100.1", []) == "127.0.0.1"


@pytest.mark.parametrize("text", ["1" * 46, "::" + "0" * 65_536, "198.51.100.1%" + "x" * 1_000_000])
def test_what_is_too_long_for_an_address_is_never_kept(text: str) -> None:
    addresses.parse("10.0.0.1")
    before = addresses._parse.cache_info().currsize
    assert addresses.parse(text) is None
    assert client_address("10.0.0.1", text, TRUSTED) == "10.0.0.1"
    assert addresses._parse.cache_info().currsize == before


def test_the_longest_address_is_read() -> None:
    longest = "0000:0000:0000:0000:0000:ffff:255.255.255.255"
    assert len(longest) == addresses.LONGEST
    assert str(addresses.parse(longest)) == "255.255.255.255"

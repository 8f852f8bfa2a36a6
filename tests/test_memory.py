"""Connections that do nothing, and some that drip: little memory, other calls answered at once, drippers cut."""

import contextlib
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests import processes
from tests.conftest import PATH, Customer, Gateway
from tests.contract import SMALL, assert_images, raw_post

IDLE = 2000
DRIPPING = 200
DRIP_SECONDS = 0.5
BODY_SECONDS = 3.0
HEAD_SECONDS = 5.0  # idle connections are closed after as long
MOST_GROWTH = 50 << 10  # KB
DESCRIPTORS = 2 * (IDLE + DRIPPING)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Enough open files for this process and for those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory(pid: int, name: str) -> int:
    """A figure of a process's memory in KB: VmRSS now, VmHWM at its most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0])


def connect(url: str, number: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 0)
    return [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(number)]


def dripping(url: str, token: str, stack: contextlib.ExitStack) -> tuple[list[socket.socket], list[socket.socket]]:
    """Connections within their head, and within a body that a good token sends."""
    heads, bodies = (connect(url, DRIPPING // 2, stack) for _ in range(2))
    for connection in heads:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: a\r\nX-Drip: ".encode())
    for connection in bodies:
        connection.sendall(raw_post(token, b'{"prompt":"', length=200_000))
    return heads, bodies


def drip(connections: list[socket.socket], seconds: float) -> dict[socket.socket, float]:
    """Send a byte over each every half second until the server has answered or closed; when each was, in seconds."""
    begun, cut = time.monotonic(), {}
    poll = select.poll()
    by_number = {connection.fileno(): connection for connection in connections}
    for number in by_number:
        poll.register(number, select.POLLIN)
    while by_number and time.monotonic() - begun < seconds:
        for connection in by_number.values():
            with contextlib.suppress(OSError):
                connection.send(b"a")
        until = time.monotonic() + DRIP_SECONDS
        while (left := until - time.monotonic()) > 0:
            for number, _ in poll.poll(left * 1000):
                poll.unregister(number)
                cut[by_number.pop(number)] = time.monotonic() - begun
    return cut


@pytest.mark.usefixtures("many_descriptors")
def test_idle_and_dripping_connections_take_little_and_hold_up_nobody(
    provider: Path, customer: Customer, record_property: Callable[[str, object], None]
) -> None:
    milliseconds = str(int(HEAD_SECONDS * 1000))
    times: dict[str, Any] = {"BODY_TIMEOUT": str(BODY_SECONDS), "GRANIAN_HTTP1_HEADER_READ_TIMEOUT": milliseconds}
    with (
        processes.web(provider, **times) as (url, process),
        httpx.Client(timeout=20) as client,
        contextlib.ExitStack() as stack,
    ):
        gateway, (worker,) = Gateway(url, provider, client), process.children()
        for _ in range(20):  # what the first calls take for good isn't a connection's
            assert_images(gateway.post(customer.secret, SMALL))
        before = memory(worker, "VmRSS")
        connect(url, IDLE // 2, stack)  # never a byte
        kept = connect(url, IDLE // 2, stack)
        for connection in kept:  # between two requests
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert all(connection.recv(4096).startswith(b"HTTP/1.1 200") for connection in kept)
        heads, bodies = dripping(url, customer.secret, stack)
        answered = best_of_three(gateway, customer)
        open_now = len(list(Path(f"/proc/{worker}/fd").iterdir()))
        cut = drip([*heads, *bodies], 4 * HEAD_SECONDS)
        growth = memory(worker, "VmHWM") - before
        record_property("growth in KB", growth)
        record_property("seconds of a call", answered)
        assert open_now > IDLE, "the control: they were open all at once"
        assert growth <= MOST_GROWTH
        assert answered < 1
        assert len(cut) == DRIPPING, "every dripper was cut"
        assert [connection.recv(4096)[9:12] for connection in bodies] == [b"400"] * len(bodies)
        assert_images(gateway.post(customer.secret, SMALL))
        assert process.children() == [worker]


def best_of_three(gateway: Gateway, customer: Customer) -> float:
    """The seconds that a call takes; the best of three, as the machine has other things to do, too."""
    taken = []
    for _ in range(3):
        begun = time.monotonic()
        assert_images(gateway.post(customer.secret, SMALL))
        taken.append(time.monotonic() - begun)
    return min(taken)


@pytest.mark.usefixtures("many_descriptors")
def test_control_a_server_without_time_outs_never_cuts_a_dripper(provider: Path, customer: Customer) -> None:
    with (
        processes.web(provider, BODY_TIMEOUT="600", GRANIAN_HTTP1_HEADER_READ_TIMEOUT="60000") as (url, _),
        contextlib.ExitStack() as stack,
    ):
        assert drip([connections[0] for connections in dripping(url, customer.secret, stack)], 1.5) == {}

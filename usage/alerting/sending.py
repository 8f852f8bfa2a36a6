"""One POST to a webhook: to the address that was judged, within ten seconds, no redirect followed.

The one module of the gateway that calls addresses which customers choose, so it uses the standard library's client:
it does what it is told and nothing else (no proxies from the environment, no redirects, no cookies, no decompression).
"""

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from usage.alerting import addresses
from usage.alerting.addresses import Target

SECONDS = 10.0  # for everything after the host's name was looked up
READ_BYTES = 800  # of the answer: 200 characters take no more


class Answer(NamedTuple):
    """What came back: the HTTP status and the beginning of the body."""

    status: int
    text: str


class NoAnswer(Exception):
    """Nothing came back; the message says why, for whoever set the webhook up."""


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that is known already; the host's name serves the Host header and TLS."""

    def __init__(self, target: Target, address: str, seconds: float) -> None:
        super().__init__(target.host, target.port, timeout=seconds)
        self._target, self._address = target, address
        self.default_port = addresses.PORTS["https" if target.tls else "http"]  # a Host header needn't name it

    def connect(self) -> None:
        """Open it."""
        self.sock = socket.create_connection((self._address, self._target.port), self.timeout)

    def secure(self) -> None:
        """Agree on TLS, if the URL says so. The certificate must be the host's."""
        if self._target.tls:
            self.sock = _tls().wrap_socket(self.sock, server_hostname=self._target.host)


def post(url: str, body: bytes, headers: dict[str, str], seconds: float = SECONDS) -> Answer:
    """POST `body` as JSON. Raises NoAnswer, and addresses.Forbidden for where no webhook may go."""
    target = addresses.parse(url)
    address = addresses.resolve(target)
    connection = _Pinned(target, address, seconds)
    ends = time.monotonic() + seconds
    try:
        connection.connect()
        with _cut_off(connection.sock, ends - time.monotonic()):
            connection.secure()
            sent = {"Content-Type": "application/json", "User-Agent": "gem-heaven-gateway", "Connection": "close"}
            connection.request("POST", target.path, body, {**sent, **headers})
            response = connection.getresponse()
            text = response.read(READ_BYTES).decode("utf-8", "replace")
            return Answer(response.status, text)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise NoAnswer(_why(exc, time.monotonic() >= ends, seconds)) from exc
    finally:
        connection.close()


@contextlib.contextmanager
def _cut_off(sock: socket.socket, seconds: float) -> Iterator[None]:
    """End the connection when the time is over: a socket's own time-out begins anew with each byte that comes."""
    number = sock.fileno()
    watched = socket.socket(fileno=socket.dup(number))  # TLS takes the first one over

    def end() -> None:
        with contextlib.suppress(OSError):
            watched.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, seconds), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        watched.close()


def _why(exc: Exception, late: bool, seconds: float) -> str:
    if late or isinstance(exc, TimeoutError):
        return f"It did not answer within {seconds:g} seconds."
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"Its certificate is not accepted: {exc.verify_message}."
    if isinstance(exc, ssl.SSLError):
        return "It does not speak TLS as it should."
    if isinstance(exc, ConnectionRefusedError):
        return "Nothing listens there: the connection was refused."
    return f"The connection failed ({type(exc).__name__})."


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()

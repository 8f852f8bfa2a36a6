"""Providers that break off, hang or answer nonsense: small raw servers on 127.0.0.1, a thread a connection."""

import contextlib
import datetime as dt
import gzip
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

IMAGE = b'{"created": 1, "data": [{"url": "https://images.example/1.png"}], "usage": {"total_tokens": 700}}'


class RawServer:
    """Listens, hands each connection to `behave`, and counts the complete requests that arrived."""

    def __init__(self, behave: Callable[["RawServer", socket.socket], None], scheme: str = "http") -> None:
        self.behave, self.scheme, self.requests = behave, scheme, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.stopping = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(30)
        with connection, contextlib.suppress(OSError):
            self.behave(self, connection)

    def read_request(self, connection: socket.socket) -> bool:
        """Read one whole request; False when the other side closed before."""
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = connection.recv(65536)
            if not chunk:
                return False
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(body) < length:
            chunk = connection.recv(65536)
            if not chunk:
                return False
            body += chunk
        self.requests += 1
        return True

    def close(self) -> None:
        self.stopping.set()
        self.listener.close()


def answer(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """The bytes of an answer; `length` lies about its body."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def reset(connection: socket.socket) -> None:
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def reset_on_accept(server: RawServer, connection: socket.socket) -> None:
    reset(connection)


def close_after_reading(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)


def reset_after_reading(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    reset(connection)


def hang_after_reading(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    server.stopping.wait(30)


def hang_before_reading(server: RawServer, connection: socket.socket) -> None:
    server.stopping.wait(30)


def half_an_answer(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(answer("200 OK", IMAGE[:40], length=len(IMAGE)))


def half_a_chunked_answer(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n28\r\n" + IMAGE[:40] + b"\r\n")


def garbage(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(b"\x00\x01 this is not HTTP\r\n\r\n")


def one_huge_header(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(answer("200 OK", IMAGE, f"X-Padding: {'x' * (1 << 20)}"))


def many_headers(server: RawServer, connection: socket.socket) -> None:
    """About 1 MB of them."""
    server.read_request(connection)
    connection.sendall(answer("200 OK", IMAGE, *[f"X-Padding-{number}: {'x' * 80}" for number in range(10_000)]))


def endless_headers(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not server.stopping.is_set():
        connection.sendall(b"X-Padding: " + b"x" * 8000 + b"\r\n")


def endless_interim_answers(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    while not server.stopping.wait(0.001):
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" * 100)


def longer_than_declared(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(answer("200 OK", IMAGE, length=len(IMAGE) - 20))


@cache
def bomb() -> bytes:
    """About 400 KB that would be 100 MB; packing them takes longer than an impatient gateway waits."""
    return gzip.compress(b"\0" * (100 << 20), compresslevel=1)


def zip_bomb(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(answer("200 OK", bomb(), "Content-Encoding: gzip", "Content-Type: application/json"))


def html(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(answer("503 Service Unavailable", b"<html>a proxy's page</html>"))


def redirect(server: RawServer, connection: socket.socket) -> None:
    """To itself: a second request would be counted."""
    server.read_request(connection)
    connection.sendall(answer("307 Temporary Redirect", b"", f"Location: {server.url}/v1/images/generations"))


def no_tls(server: RawServer, connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def close_when_idle(server: RawServer, connection: socket.socket) -> None:
    """Answer once, promise to keep the connection, close it a moment later."""
    if server.read_request(connection):
        connection.sendall(answer("200 OK", IMAGE, "Connection: keep-alive"))
        time.sleep(0.1)


def close_on_second(server: RawServer, connection: socket.socket) -> None:
    """Answer a connection's first request; read its second and close."""
    if server.read_request(connection):
        connection.sendall(answer("200 OK", IMAGE, "Connection: keep-alive"))
        server.read_request(connection)


def well(server: RawServer, connection: socket.socket) -> None:
    while server.read_request(connection):
        connection.sendall(answer("200 OK", IMAGE))


def untrusted(folder: Path) -> Callable[[RawServer, socket.socket], None]:
    """A TLS server whose certificate nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(1))
    path = folder / "untrusted.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    def behave(server: RawServer, connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            server.read_request(wrapped)

    return behave


@contextlib.contextmanager
def blackhole() -> Iterator[str]:
    """A port where connecting never ends: its queue of connections is full."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = waiting.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"

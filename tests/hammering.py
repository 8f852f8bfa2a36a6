"""Many clients at once, each on a connection of its own that it keeps."""

import http.client
import itertools
import json
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import PATH


@dataclass(frozen=True)
class Reply:
    """One call: when it was begun and ended (epoch seconds), and what came back."""

    begun: float
    ended: float
    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    n: int


class Client:
    """A client with one kept connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)

    def call(self, secret: str, n: int = 1, prompt: str = "a gem") -> Reply:
        body = json.dumps({"prompt": prompt, "size": "256x256", "n": n})
        headers = {"Content-Type": "application/json", "X-Proxy-Token": secret}
        begun = time.time()
        try:
            answer = self._exchange(body, headers)
        except (ConnectionError, http.client.RemoteDisconnected):
            # A refusal before the body was read ends its connection, which one learns at the next call.
            self.connection.close()
            answer = self._exchange(body, headers)
        content = json.loads(answer.read())
        return Reply(begun, time.time(), answer.status, {k.lower(): v for k, v in answer.getheaders()}, content, n)

    def _exchange(self, body: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        self.connection.request("POST", PATH, body, headers)
        return self.connection.getresponse()


def hammer(url: str, jobs: Iterable[tuple[str, int]], clients: int = 64) -> list[Reply]:
    """Carry out all jobs (secret, n) as fast as `clients` clients can."""
    waiting, lock = iter(jobs), threading.Lock()

    def take() -> Iterator[tuple[str, int]]:
        while True:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            yield job

    def work(_: int) -> list[Reply]:
        client = Client(url)
        try:
            return [client.call(secret, n) for secret, n in take()]
        finally:
            client.connection.close()

    with ThreadPoolExecutor(clients) as pool:
        return list(itertools.chain.from_iterable(pool.map(work, range(clients))))


class Hammering:
    """Calls with one secret, again and again, from `clients` threads until the block ends; `replies` holds them."""

    def __init__(self, url: str, secret: str, clients: int = 16) -> None:
        self.url, self.secret = url, secret
        self.replies: list[Reply] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(clients)]

    def _work(self) -> None:
        client = Client(self.url)
        while not self._stop.is_set():
            self.replies.append(client.call(self.secret))
        client.connection.close()

    def __enter__(self) -> "Hammering":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

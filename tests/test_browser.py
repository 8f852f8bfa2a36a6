"""The clients that exist already: curl, node and a page of another origin in Chromium, each as it is written down."""

import contextlib
import http.server
import io
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image as Picture
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, Playwright, sync_playwright

from tests.conftest import PATH, Customer, Gateway
from tests.contract import assert_images, drawings, read_raw
from tests.processes import wait_until

CURL = r"""
curl https://gateway.example/wp-json/my-proxy/v1/generate-image -X POST \
  -H "Content-Type: application/json" -H "X-Proxy-Token: $TOKEN" \
  -d '{"prompt": "a lighthouse at dusk, oil on canvas", "size": "512x512", "n": 2}'
"""
FETCH = """
const answer = await fetch(endpoint, {method: "POST",
  headers: {"Content-Type": "application/json", "X-Proxy-Token": token},
  body: JSON.stringify({prompt: "a lighthouse at dusk", size: "512x512", n: 1})});
"""
SHOW_IN_A_PAGE = """
new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
  image.onerror = () => reject(new Error("the image can't be shown"));
  image.src = url;
  document.body.append(image);
})
"""


def test_curl_as_it_is_written_down(gateway: Gateway, customer: Customer) -> None:
    command = CURL.strip().replace("https://gateway.example", gateway.url).replace("curl ", "curl -sS -i ", 1)
    done = subprocess.run(
        ["/bin/sh", "-c", command], env={"TOKEN": customer.secret, "PATH": "/usr/bin:/bin"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    answer = read_raw(done.stdout)
    for entry in assert_images(answer, 2)["data"]:
        shown = subprocess.run(["curl", "-sS", entry["url"]], capture_output=True, check=True)
        assert Picture.open(io.BytesIO(shown.stdout)).size == (512, 512)
    assert drawings(gateway, answer) == 1


@pytest.mark.node
def test_node_as_it_is_written_down(gateway: Gateway, customer: Customer) -> None:
    names = {"endpoint": gateway.url + PATH, "token": customer.secret}
    lines = [f"const {name} = {json.dumps(value)};" for name, value in names.items()]
    script = "\n".join([*lines, FETCH, "console.log((await answer.json()).data[0].url);"])
    done = subprocess.run(["node", "--input-type=module", "-"], input=script.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr
    shown = gateway.client.get(done.stdout.decode().strip())
    assert Picture.open(io.BytesIO(shown.content)).size == (512, 512)


class Blank(http.server.BaseHTTPRequestHandler):
    """Serves an empty page at every path: all that matters is its origin."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a client app</title><body></body>")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def site() -> Iterator[str]:
    """A web site of its own; yields its origin."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Blank) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(5)


class Browser:
    """Headless Chromium with one page, in a thread of its own: Playwright's loop must not be the tests' own."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._playwright, self._chromium, self._page = thread.submit(self._open).result(60)

    def _open(self) -> tuple[Playwright, Chromium, Page]:
        playwright = sync_playwright().start()
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        return playwright, chromium, chromium.new_page()

    def close(self) -> None:
        """End the program."""
        self._thread.submit(self._chromium.close).result(60)
        self._thread.submit(self._playwright.stop).result(60)

    def goto(self, url: str) -> int:
        """Open a URL as a document; its status."""
        answer = self._thread.submit(self._page.goto, url).result(60)
        assert answer
        return answer.status

    def evaluate(self, script: str, argument: Any) -> Any:
        """What a function in JavaScript returns, called in the page."""
        return self._thread.submit(self._page.evaluate, script, argument).result(60)

    def fetch(self, gateway: Gateway, token: str, then: str) -> Any:
        """Run the documented `fetch` in the page, then the expression `then`, which may use `answer`.

        A new tenant's origins reach the preflight within a second, like all that the catalog holds.
        """
        headers = {"Origin": self.evaluate("() => location.origin", None), "Access-Control-Request-Method": "POST"}
        with contextlib.suppress(AssertionError):
            wait_until(lambda: allows(httpx.options(gateway.url + PATH, headers=headers)), 2)
        script = f"async ([endpoint, token]) => {{ {FETCH} return {then}; }}"
        return self.evaluate(script, [gateway.url + PATH, token])


def allows(preflight: httpx.Response) -> bool:
    """Whether a preflight's answer lets the page call."""
    return "access-control-allow-origin" in preflight.headers


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for this file; each test goes to the origin that it needs."""
    with ThreadPoolExecutor(1) as thread:
        browser = Browser(thread)
        yield browser
        browser.close()


@pytest.mark.browser
def test_a_page_of_another_origin_as_it_is_written_down(gateway: Gateway, browser: Browser, customer: Customer) -> None:
    customer.limit("images:100/day")
    with site() as origin:
        browser.goto(origin)
        then = '[answer.status, await answer.json(), answer.headers.get("x-ratelimit-remaining-images")]'
        status, content, remaining = browser.fetch(gateway, customer.secret, then)
        assert (status, remaining) == (200, "99")
        assert list(content) == ["created", "data", "output_format", "usage"]
        url = content["data"][0]["url"]
        assert browser.evaluate(f"url => {SHOW_IN_A_PAGE}", url) == [512, 512]
        assert browser.goto(url) == 200, "and it opens as a document of its own"
        with pytest.raises(PlaywrightError, match="can't be shown"):
            browser.goto(origin)
            browser.evaluate(f"url => {SHOW_IN_A_PAGE}", url.replace("signature=", "signature=x"))


@pytest.mark.browser
def test_a_page_can_read_why_it_was_refused(gateway: Gateway, browser: Browser, customer: Customer) -> None:
    customer.limit("images:1/day")
    names = ["retry-after", "x-request-id", "ratelimit"]
    then = f"[answer.status, (await answer.json()).error?.type, ...{names}.map(name => answer.headers.get(name))]"
    with site() as origin:
        browser.goto(origin)
        assert browser.fetch(gateway, customer.secret, then)[0] == 200
        status, kind, retry_after, request_id, ratelimit = browser.fetch(gateway, customer.secret, then)
        assert (status, kind) == (429, "quota_exceeded")
        assert int(retry_after) > 0
        assert request_id
        assert '"tenant-images-day";r=0' in ratelimit
        assert browser.fetch(gateway, "wrong-token", then)[:2] == [403, "invalid_token"]


@pytest.mark.browser
def test_a_page_of_an_origin_that_is_not_allowed_learns_nothing(
    gateway: Gateway, browser: Browser, make_customer: Callable[..., Customer]
) -> None:
    with site() as own, site() as other:
        customer = make_customer(origins=[own])
        browser.goto(own)
        assert browser.fetch(gateway, customer.secret, "answer.status") == 200
        browser.goto(other)
        with pytest.raises(PlaywrightError, match="Failed to fetch"):
            browser.fetch(gateway, customer.secret, "answer.status")

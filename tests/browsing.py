"""The admin in headless Chromium: tabs with people signed in, and all that went wrong in them.

Tests import the fixtures that they use: one web process and one Chromium for each file, a tab for each test.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from django.conf import settings
from django.core.management import call_command
from django.test import Client, override_settings
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, sync_playwright

from tests import processes
from tests.adminpages import PASSWORD
from tokens.models import User

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
ROLES: tuple[Literal["button"], Literal["link"]] = ("button", "link")
# Violations are also written to the console, but only an event names the directive.
LISTEN = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""


@contextmanager
def static_files(folder: Path) -> Iterator[dict[str, Any]]:
    """The admin's static files in `folder`; yields what a web process must be told to serve them."""
    with override_settings(STATIC_ROOT=str(folder)):
        call_command("collectstatic", interactive=False, verbosity=0)
    yield {
        "STATIC_ROOT": str(folder),
        "GRANIAN_STATIC_PATH_ROUTE": "/static",
        "GRANIAN_STATIC_PATH_MOUNT": str(folder),
    }


@pytest.fixture(scope="module")
def gateway_url(provider: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web process that serves the admin with its static files."""
    with (
        static_files(tmp_path_factory.mktemp("static")) as environment,
        processes.web(provider, **environment) as (url, _),
    ):
        yield url


class Chromium:
    """One headless Chromium, in a thread of its own: Playwright's loop must not be the tests' own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._playwright, self._browser = self.run(self._open)

    def _open(self) -> tuple[Playwright, Browser]:
        playwright = sync_playwright().start()
        return playwright, playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--lang=en-GB"]
        )

    def run(self, action: Callable[[], Any]) -> Any:
        """Do something in that thread, at most two minutes long."""
        return self._thread.submit(action).result(120)

    def context(self, **options: Any) -> BrowserContext:
        """A new browser profile, so to speak; to be used and closed in `run`."""
        context: BrowserContext = self._browser.new_context(**options)
        return context

    def close(self) -> None:
        """End the program."""
        self.run(self._browser.close)
        self.run(self._playwright.stop)
        self._thread.shutdown()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    """One Chromium for this file."""
    chromium = Chromium()
    yield chromium
    chromium.close()


def _named(page: Page, name: str, whole: bool = False) -> Locator:
    """What a person would press who is told to press this: the last of the page, as the first are the sidebar's.

    Of something with just this name (an icon may stand before it), else unless `whole` of what has it as a part.
    """
    for text in (re.compile(rf"(^|\s){re.escape(name)}$"), name):
        buttons, links = (page.get_by_role(role, name=text) for role in ROLES)
        found = buttons.or_(links).or_(page.get_by_title(text)).filter(visible=True)
        if whole or found.count():
            break
    return found.last


class Tab:
    """One tab with cookies of its own, and all that went wrong in it."""

    def __init__(self, chromium: Chromium, url: str, **options: Any) -> None:
        """`options` are those of Playwright's contexts, such as the window's size."""
        self.chromium, self.url = chromium, url
        self.complaints: list[str] = []

        def start() -> tuple[BrowserContext, Page]:
            context = chromium.context(**{"viewport": WIDE, **options})
            context.add_init_script(LISTEN)
            page = context.new_page()
            page.on("console", lambda message: self._note(message.type, message.text))
            page.on("pageerror", lambda error: self.complaints.append(f"{page.url}: {error}"))
            page.set_default_timeout(20_000)  # a slow machine's patience
            return context, page

        self.context, self.page = chromium.run(start)

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(f"{self.page.url}: {text}")

    def close(self) -> None:
        self.chromium.run(self.context.close)

    def do(self, action: Callable[[Page], Any]) -> Any:
        """Do something with the page; what the page complains of meanwhile is kept."""

        def run() -> Any:
            result = action(self.page)
            self.complaints += [f"{self.page.url}: {text}" for text in self.page.evaluate("window.violations ?? []")]
            return result

        return self.chromium.run(run)

    def go(self, path: str) -> int:
        """Open a page of the admin; its status."""

        def visit(page: Page) -> int:
            answer = page.goto(self.url + path, wait_until="load")
            assert answer
            return answer.status

        return int(self.do(visit))

    def text(self, path: str = "") -> str:
        """All that the page says, of the one at `path` or the one that is open."""
        if path:
            assert self.go(path) == 200, path
        return str(self.do(lambda page: page.inner_text("body")))

    def press(self, name: str, leads: bool = True) -> str:
        """Press the button or link of that name, or title, or which it is a part of; the text of where it leads."""

        def click(page: Page) -> str:
            found = _named(page, name)
            if leads:
                with page.expect_navigation():
                    found.click()
            else:
                found.click()
            return page.inner_text("body")

        return str(self.do(click))

    def offers(self, name: str) -> bool:
        """Whether there is anything of just that name, or title, to press."""
        return bool(self.do(lambda page: _named(page, name, whole=True).count()))

    def fill(self, **values: str) -> None:
        """Write into fields by their names."""

        def write(page: Page) -> None:
            for name, value in values.items():
                page.fill(f"[name='{name}']:visible", value)

        self.do(write)

    def select(self, **values: str) -> None:
        """Choose in lists by their names; the options by their values."""

        def choose(page: Page) -> None:
            for name, value in values.items():
                page.select_option(f"select[name='{name}']", value)

        self.do(choose)

    def choose(self, name: str, text: str) -> None:
        """Choose in a list that is searched as one types."""

        def search(page: Page) -> None:
            page.click(f"select[name='{name}'] + .select2")
            page.keyboard.type(text)
            page.locator(".select2-results__option", has_text=text).first.click()

        self.do(search)

    def download(self, name: str) -> bytes:
        """The file that comes when the button or link of that name is pressed."""

        def fetch(page: Page) -> bytes:
            with page.expect_download() as told:
                _named(page, name).click()
            return Path(told.value.path()).read_bytes()

        content: bytes = self.do(fetch)
        return content

    def sign_in(self, name: str, password: str = PASSWORD) -> None:
        """As people do: name and password, on the page where one does."""

        def fill(page: Page) -> None:
            page.goto(f"{self.url}/admin/login/")
            page.fill("[name=username]", name)
            page.fill("[name=password]", password)
            with page.expect_navigation():
                page.click("#login-form [type=submit]")

        self.do(fill)

    def let_in(self, user: User) -> None:
        """Give the tab a session of that person, without the pages of sign-in."""
        client = Client()
        client.force_login(user)
        name = settings.SESSION_COOKIE_NAME
        cookie: Any = {"name": name, "value": client.cookies[name].value, "url": self.url}
        self.chromium.run(lambda: self.context.add_cookies([cookie]))


@pytest.fixture
def tab(gateway_url: str, chromium: Chromium) -> Iterator[Tab]:
    """A tab in which nobody has signed in."""
    tab = Tab(chromium, gateway_url)
    yield tab
    tab.close()


@pytest.fixture
def signed_in(tab: Tab, operator: User) -> Tab:
    """A tab of an administrator."""
    tab.let_in(operator)
    return tab

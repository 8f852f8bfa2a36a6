"""Taking the pictures: the pages, who looks at them, how large, and the files."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page

from tests.browsing import Chromium, Tab

PHONE = {"width": 390, "height": 844}
WIDTH, HEIGHT = 1280, 800
MOST_BYTES = 150_000
COLOURS = (256, 128, 64, 32)  # tried in this order until the file is small enough


def nothing(_: Page) -> None:
    """The page as it opens."""


@dataclass(frozen=True)
class Picture:
    """One picture: its file's name, the page, what is done there first, and how it is looked at.

    `height` is in pixels; `phone` takes a phone's window instead.
    """

    name: str
    path: str
    prepare: Callable[[Page], None] = nothing
    height: int = HEIGHT
    dark: bool = False
    phone: bool = False
    signed_in: bool = True

    @property
    def window(self) -> dict[str, int]:
        """The browser's window."""
        return PHONE if self.phone else {"width": WIDTH, "height": self.height}


@dataclass
class Album:
    """A folder of pictures of one gateway, as one person sees it. A page that complains ends it."""

    chromium: Chromium
    url: str
    folder: Path
    complaints: list[str] = field(default_factory=list)
    sessions: dict[str, Any] = field(default_factory=dict)

    def take(self, picture: Picture, person: str) -> int:
        """Take one as that person (an address) sees it; returns the file's size in bytes."""
        with self._tab(picture, person) as tab:
            status = tab.go(picture.path)
            assert status == 200, f"{picture.path} answers {status}"
            content = tab.do(lambda page: self._shoot(page, picture))
            self.complaints += tab.complaints
        file = self.folder / f"{picture.name}.png"
        file.write_bytes(_compressed(content))
        return file.stat().st_size

    @contextmanager
    def _tab(self, picture: Picture, person: str) -> Iterator[Tab]:
        scheme = "dark" if picture.dark else "light"
        tab = Tab(self.chromium, self.url, viewport=picture.window, color_scheme=scheme)
        try:
            if picture.signed_in and person in self.sessions:
                self.chromium.run(lambda: tab.context.add_cookies(self.sessions[person]))
            elif picture.signed_in:  # once: each is an entry in the audit trail
                tab.sign_in(person)
                self.sessions[person] = self.chromium.run(tab.context.cookies)
            yield tab
        finally:
            tab.close()

    def _shoot(self, page: Page, picture: Picture) -> bytes:
        picture.prepare(page)
        page.evaluate("document.fonts.ready.then(() => null)")
        page.mouse.move(0, 0)
        return page.screenshot(animations="disabled", caret="hide")


def _compressed(content: bytes) -> bytes:
    """The picture with a palette, as few colours as its size demands."""
    picture: Any = Image.open(io.BytesIO(content)).convert("RGB")
    for colours in COLOURS:
        small = io.BytesIO()
        picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            small, "PNG", optimize=True
        )
        if small.tell() <= MOST_BYTES:
            break
    return small.getvalue()

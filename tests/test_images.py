"""Kept images: only real ones, durable, behind signed URLs that end, gone after their time."""

import base64
import datetime as dt
import io
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import AsyncRequestFactory, override_settings
from PIL import Image as Picture

from gateway.errors import MethodNotAllowed, NotAllowed, NotFound
from gateway.imageforms import NotAnImage
from gateway.images import ImageStore, StorageFailed, image_store
from gateway.imageviews import image
from tests.conftest import Customer, Gateway

NOW = 1_790_000_000.9


def drawn(form: str) -> bytes:
    """A real picture in one of Pillow's forms."""
    out = io.BytesIO()
    Picture.new("RGB", (64, 48), (200, 30, 90)).save(out, form)
    return out.getvalue()


def encoded(form: str = "PNG") -> bytes:
    return base64.b64encode(drawn(form))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", b"a secret of the installation", "https://gateway.example/", 7)


@pytest.mark.parametrize(
    ("form", "kind", "ending", "media_type"),
    [("PNG", "png", "png", "image/png"), ("JPEG", "jpeg", "jpg", "image/jpeg"), ("WEBP", "webp", "webp", "image/webp")],
)
async def test_it_keeps_and_reads_back(
    store: ImageStore, tmp_path: Path, form: str, kind: str, ending: str, media_type: str
) -> None:
    kept = await store.keep(encoded(form))
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d/[0-9A-Za-z]{{22}}\.{ending}", kept.name)
    assert (kept.form, kept.length) == (kind, len(drawn(form)))
    found = await store.read(kept.name)
    assert found is not None
    assert (found.content, found.media_type) == (drawn(form), media_type)
    file = tmp_path / "images" / kept.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o700
    assert list(file.parent.iterdir()) == [file], "a temporary file stayed"


@pytest.mark.parametrize(
    "dressed",
    [
        lambda text: text.replace(b"/", rb"\/"),
        lambda text: text[:40] + rb"\n" + text[40:80] + rb"\r\n" + text[80:],
        lambda text: text[:76] + b"\r\n" + text[76:] + b"\n",
        lambda text: text.replace(b"+", rb"\u002b"),
    ],
    ids=["escaped slashes", "escaped line breaks", "line breaks", "escaped plus"],
)
async def test_it_understands_json_strings(store: ImageStore, dressed: Callable[[bytes], bytes]) -> None:
    plain = encoded("JPEG")
    assert b"/" in plain and b"+" in plain
    kept = await store.keep(dressed(plain))
    found = await store.read(kept.name)
    assert found is not None
    assert found.content == drawn("JPEG")


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"!" * 40,
        encoded()[:-2],
        encoded() + b"=",
        encoded()[:20] + b" " + encoded()[20:],
        encoded() + b"AAAA",
        encoded().replace(b"A", b"\xc3\xa4", 1),
        b'iVBOR"\\n"',
        encoded()[:8] + b"\\",
        base64.urlsafe_b64encode(b"\xff\xd8\xff\xfb\xef" * 9),
        base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
        base64.b64encode(b"<html>" + drawn("PNG")),
        base64.b64encode(drawn("GIF")),
        base64.b64encode(b"RIFF1234WAVE" + bytes(50)),
        base64.b64encode(b"\x89PNG"),
    ],
)
async def test_it_refuses_what_is_no_image(store: ImageStore, tmp_path: Path, bad: bytes) -> None:
    with pytest.raises(NotAnImage):
        await store.keep(bad)
    assert not (tmp_path / "images").exists()


async def test_several_at_once_keep_their_order_and_have_names_of_their_own(store: ImageStore) -> None:
    forms = ["PNG", "JPEG", "WEBP", "PNG"]
    kept = await store.keep_all([encoded(form) for form in forms])
    assert [one.form for one in kept] == ["png", "jpeg", "webp", "png"]
    assert len({one.name for one in kept}) == 4
    with pytest.raises(NotAnImage):
        await store.keep_all([encoded(), b"????", encoded()])


async def test_a_disk_that_refuses_is_reported(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "images").write_text("a file where the folder should be")
    with pytest.raises(StorageFailed) as raised:
        await store.keep(encoded())
    assert str(tmp_path) not in str(raised.value)


async def test_it_never_follows_symbolic_links(store: ImageStore, tmp_path: Path) -> None:
    kept = await store.keep(encoded())
    file = tmp_path / "images" / kept.name
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = outside / file.name
    secret.write_bytes(drawn("PNG"))
    file.unlink()
    file.symlink_to(secret)
    assert await store.read(kept.name) is None, "it read through a linked file"
    file.unlink()
    file.parent.rmdir()
    file.parent.symlink_to(outside)
    assert await store.read(kept.name) is None, "it read through a linked folder"
    with pytest.raises(StorageFailed):
        await store.keep(encoded())
    assert len(list(outside.iterdir())) == 1, "it wrote through a linked folder"


@pytest.mark.parametrize("name", ["../etc/passwd", "2026-11-22/../../x.png", "2026-11-22/x.png", "", "\x00", "a/b/c"])
async def test_other_names_are_not_there(store: ImageStore, name: str) -> None:
    assert await store.read(name) is None


async def test_a_file_that_is_no_image_any_more_is_not_read(store: ImageStore, tmp_path: Path) -> None:
    kept = await store.keep(encoded())
    (tmp_path / "images" / kept.name).write_bytes(b"<html>")
    assert await store.read(kept.name) is None
    (tmp_path / "images" / kept.name).unlink()
    (tmp_path / "images" / kept.name).mkdir()
    assert await store.read(kept.name) is None


def test_a_url_is_valid_for_its_name_and_until_it_expires(store: ImageStore, tmp_path: Path) -> None:
    name = "2026-11-22/0123456789abcdefABCDEF.png"
    url, expires = store.url(name, NOW)
    assert expires == int(NOW) + 7 * 86_400
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", "gateway.example", f"/images/{name}")
    query = parse_qs(parts.query)
    assert query["expires"] == [str(expires)]
    (signature,) = query["signature"]
    assert store.check(name, str(expires), signature, NOW)
    assert store.check(name, str(expires), signature, expires - 0.1)
    assert not store.check(name, str(expires), signature, expires)
    assert not store.check(name, str(expires + 1), signature, NOW)
    assert not store.check(name.replace("0", "1"), str(expires), signature, NOW)
    assert not store.check(name, str(expires), signature[:-1] + ("A" if signature[-1] != "A" else "E"), NOW)
    other = ImageStore(tmp_path, b"another secret", "https://gateway.example", 7)
    assert not other.check(name, str(expires), signature, NOW)
    for odd in ("", "-1", "1e12", "٣", f"{expires}\n", "9" * 4000):
        assert not store.check(name, odd, signature, NOW)
    for odd in ("", "é", "\ud800", "=" * 5000):
        assert not store.check(name, str(expires), odd, NOW)


def filled(root: Path, day: dt.date, files: int = 3) -> Path:
    folder = root / day.isoformat()
    folder.mkdir(parents=True)
    for k in range(files):
        (folder / f"{k:022d}.png").write_bytes(b"x")
    return folder


def test_old_images_are_deleted_and_nothing_else(store: ImageStore, tmp_path: Path) -> None:
    root, today = tmp_path / "images", dt.datetime.now(dt.UTC).date()
    assert store.delete_older_than(30) == 0
    old, limit, new = (filled(root, today - dt.timedelta(days=days)) for days in (31, 30, 0))
    (old / f"{9:022d}.jpg.part").write_bytes(b"left by a crash")
    odd = filled(root, today - dt.timedelta(days=40), files=1)
    (odd / "notes.txt").write_text("not ours")
    outside = filled(tmp_path / "outside", today)
    (odd / f"{5:022d}.png").symlink_to(outside / f"{0:022d}.png")
    (root / (today - dt.timedelta(days=50)).isoformat()).symlink_to(outside)
    for name in ("2020-13-01", "20200101", "2020-W01-1", "keep me", "2020-01-01 "):
        (root / name).mkdir()
    assert store.delete_older_than(30) == 4 + 2
    assert not old.exists()
    assert len(list(limit.iterdir())) == len(list(new.iterdir())) == len(list(outside.iterdir())) == 3
    assert [path.name for path in odd.iterdir()] == ["notes.txt"]
    assert {"2020-13-01", "20200101", "2020-W01-1", "keep me", "2020-01-01 "} <= {path.name for path in root.iterdir()}
    assert store.delete_older_than(30) == 0


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ImageStore]:
    """The store that the view uses, in a folder of the test's own."""
    with override_settings(IMAGE_ROOT=tmp_path / "served"):
        image_store.cache_clear()
        yield image_store()
        image_store.cache_clear()


async def test_the_view_serves_images_as_nothing_but_images(served: ImageStore) -> None:
    kept = await served.keep(encoded("WEBP"))
    url, _ = served.url(kept.name, dt.datetime.now(dt.UTC).timestamp())
    day, file = kept.name.split("/")
    for method in ("GET", "HEAD"):
        answer = await image(AsyncRequestFactory().generic(method, url), day, file)
        assert answer.status_code == 200
        assert answer.content == (drawn("WEBP") if method == "GET" else b"")
        age = re.fullmatch(r"private, max-age=(\d+), immutable", answer["Cache-Control"])
        assert age is not None
        assert 7 * 86_400 - 5 <= int(age[1]) <= 7 * 86_400
        assert dict(answer.headers) == {
            "Cache-Control": age[0],
            "Content-Type": "image/webp",
            "Content-Length": str(len(drawn("WEBP"))),
            "Content-Disposition": f'inline; filename="{file}"',
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox",
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Access-Control-Allow-Origin": "*",
        }


async def test_the_view_refuses_what_it_must(served: ImageStore) -> None:
    kept = await served.keep(encoded())
    now = dt.datetime.now(dt.UTC).timestamp()
    day, file = kept.name.split("/")
    factory = AsyncRequestFactory()
    good, _ = served.url(kept.name, now)
    for bad in (f"/images/{kept.name}", served.url(kept.name, now - 7 * 86_400 - 1)[0], good[:-2]):
        with pytest.raises(NotAllowed):
            await image(factory.get(bad), day, file)
    with pytest.raises(MethodNotAllowed):
        await image(factory.post(good), day, file)
    with pytest.raises(NotAllowed):
        await image(factory.get(good), day, file.swapcase())
    (Path(served._root) / kept.name).unlink()
    with pytest.raises(NotFound):
        await image(factory.get(good), day, file)


def test_an_answered_url_can_be_opened(gateway: Gateway, customer: Customer) -> None:
    answer = gateway.post(customer.secret, {"prompt": "a ruby at dawn", "size": "256x256", "n": 2})
    assert answer.status_code == 200, answer.text
    for entry in answer.json()["data"]:
        parts = urlsplit(entry["url"])
        url = f"{gateway.url}{parts.path}?{parts.query}"
        shown = gateway.client.get(url)
        assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
        assert shown.headers["access-control-allow-origin"] == "*"
        assert Picture.open(io.BytesIO(shown.content)).size == (256, 256)
        head = gateway.client.head(url)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(shown.content))
    refused = gateway.client.get(url.replace("signature=", "signature=x"))
    assert refused.status_code == 403
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == (403, "not_allowed")
    assert error["request_id"] == refused.headers["x-request-id"]
    assert gateway.client.post(url).status_code == 405

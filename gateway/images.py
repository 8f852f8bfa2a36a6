"""Images that a provider answered as base64: kept as files, and offered under signed URLs that expire.

``IMAGE_ROOT/<YYYY-MM-DD>/<22 base62 characters>.<png|jpg|webp>``, the day in UTC, the characters a random 128-bit
number. Folders are walked by descriptor without following symbolic links, so nothing outside is ever read or deleted.
"""

import asyncio
import base64
import contextlib
import datetime as dt
import errno
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from django.conf import settings

from gateway.imageforms import MEDIA_TYPES, Encoded, NotAnImage, decode, form_of
from tokens.secrets import ALPHABET

THREADS = 8  # they wait for the disk most of the time
DAY_SECONDS = 86_400
ID_CHARACTERS = 22  # 62 ** 22 > 2 ** 128
NAME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})/([0-9A-Za-z]{22}\.(?:png|jpg|webp))", re.ASCII)
OURS = re.compile(r"[0-9A-Za-z]{22}\.(?:png|jpg|webp)(?:\.part)?", re.ASCII)
EXPIRES = re.compile(r"[0-9]{1,12}", re.ASCII)
NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}  # ELOOP: a symbolic link
ENDINGS = {"png": "png", "jpeg": "jpg", "webp": "webp"}

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class StorageFailed(Exception):
    """The disk refused (full, read-only, gone): nothing is kept under the name."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An image on disk: its `name` below the root, its `form` (png, jpeg or webp) and its length in bytes."""

    name: str
    form: str
    length: int


@dataclass(frozen=True, slots=True)
class Image:
    """A kept image's content and its proven media type."""

    content: bytes
    media_type: str


class ImageStore:
    """Keeps images below `root` and signs URLs below `public_url`, valid for `url_days` days.

    `secret` is the installation's; URLs are signed with a key derived from it. Safe to use from several tasks,
    threads and processes at once.
    """

    def __init__(self, root: Path, secret: bytes, public_url: str, url_days: int) -> None:
        self._root = root
        self._key = hmac.digest(secret, b"gateway.images: signature of a URL", hashlib.sha256)
        self._public_url = public_url.rstrip("/")
        self._url_seconds = url_days * DAY_SECONDS
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="images")

    # Keeping

    async def keep(self, encoded: Encoded) -> Kept:
        """Decode a provider's base64 (see `decode`) and store the image; on return it survives a crash.

        Raises NotAnImage unless the first bytes prove a PNG, JPEG or WebP, and StorageFailed when the disk refuses.
        """
        return await self._threaded(partial(self._keep, encoded))

    async def keep_all(self, encoded: Sequence[Encoded]) -> list[Kept]:
        """`keep` several at once, in order. Raises the first one's error, after all are done."""
        results = await asyncio.gather(*map(self.keep, encoded), return_exceptions=True)
        kept = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            kept.append(result)
        return kept

    def _keep(self, encoded: Encoded) -> Kept:
        content = decode(encoded)
        form = form_of(content)
        if form is None:
            raise NotAnImage("The provider's image is no PNG, JPEG or WebP.")
        day = dt.datetime.now(dt.UTC).date().isoformat()
        file = f"{_random_id()}.{ENDINGS[form]}"
        try:
            self._write(day, file, content)
        except OSError as exc:
            raise StorageFailed(f"An image can't be stored: {exc.strerror or type(exc).__name__}.") from exc
        return Kept(f"{day}/{file}", form, len(content))

    def _write(self, day: str, file: str, content: bytes) -> None:
        """Whole or not at all: a temporary file, synced, renamed, and its folder synced."""
        with self._folder(day, make=True) as folder:
            part = f"{file}.part"
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb") as opened:
                    opened.write(content)
                    opened.flush()
                    os.fsync(opened.fileno())
                os.rename(part, file, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(part, dir_fd=folder)
                raise
            os.fsync(folder)

    # Reading

    async def read(self, name: str) -> Image | None:
        """The image called `name`, or None when there is none (never was, deleted, or not an image any more).

        Raises StorageFailed when the disk refuses.
        """
        return await self._threaded(partial(self._read, name))

    def _read(self, name: str) -> Image | None:
        match = NAME.fullmatch(name)
        if match is None:
            return None
        try:
            with self._folder(match[1]) as folder:
                content = _regular_file(match[2], folder)
        except OSError as exc:
            if exc.errno in NOT_THERE:
                return None
            raise StorageFailed(f"An image can't be read: {exc.strerror or type(exc).__name__}.") from exc
        form = form_of(content)
        return None if form is None else Image(content, MEDIA_TYPES[form])

    # Signed URLs

    def url(self, name: str, now: float) -> tuple[str, int]:
        """The signed URL of the image called `name` and when it expires, both in epoch seconds as `now` is."""
        expires = int(now) + self._url_seconds
        return f"{self._public_url}/images/{name}?expires={expires}&signature={self._sign(name, expires)}", expires

    def check(self, name: str, expires: str, signature: str, now: float) -> bool:
        """Whether `expires` and `signature`, as they stand in a URL, are ours for `name` and still valid at `now`."""
        if EXPIRES.fullmatch(expires) is None:
            return False
        ours = self._sign(name, int(expires))
        return hmac.compare_digest(ours.encode(), signature.encode("utf-8", "replace")) and now < int(expires)

    def _sign(self, name: str, expires: int) -> str:
        digest = hmac.digest(self._key, f"{name}\n{expires}".encode("utf-8", "replace"), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")

    # Deleting

    def delete_older_than(self, days: int) -> int:
        """Delete the images whose whole day ended more than `days` days ago; returns how many files went.

        Only folders and files named as ours are touched, a symbolic link is never followed, and a folder that
        holds anything else stays. Raises StorageFailed when the root can't be listed.
        """
        first_kept = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=days)
        try:
            names = sorted(path.name for path in self._root.iterdir())
        except FileNotFoundError:
            return 0
        except OSError as exc:
            raise StorageFailed(f"The images can't be listed: {exc.strerror or type(exc).__name__}.") from exc
        deleted = 0
        for name in names:
            day = _day(name)
            if day is not None and day < first_kept:
                deleted += self._delete_day(name)
        return deleted

    def _delete_day(self, day: str) -> int:
        deleted = 0
        try:
            with self._folder(day) as folder:
                for name in [entry.name for entry in os.scandir(folder) if OURS.fullmatch(entry.name)]:
                    with contextlib.suppress(OSError):  # another worker was faster; or it stays, which rmdir tells
                        os.unlink(name, dir_fd=folder)
                        deleted += 1
            (self._root / day).rmdir()
        except FileNotFoundError:
            pass
        except OSError as exc:
            logger.warning("The images of %s aren't all deleted: %s.", day, exc.strerror or type(exc).__name__)
        return deleted

    # Below all of these

    async def _threaded(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @contextlib.contextmanager
    def _folder(self, day: str, make: bool = False) -> Iterator[int]:
        """A descriptor of a day's folder; no symbolic link is followed below the root."""
        if make:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(day, 0o700, dir_fd=root)
                    os.fsync(root)  # otherwise a crash can take the new day's folder, and all that is in it
            folder = os.open(day, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
        finally:
            os.close(root)
        try:
            yield folder
        finally:
            os.close(folder)


def _regular_file(name: str, folder: int) -> bytes:
    """The content of a file in `folder`, a descriptor. Raises OSError; EISDIR for whatever is no regular file."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with open(descriptor, "rb", closefd=False) as opened:
            return opened.read()
    finally:
        os.close(descriptor)


def _random_id() -> str:
    number, characters = secrets.randbits(128), []
    for _ in range(ID_CHARACTERS):
        number, rest = divmod(number, 62)
        characters.append(ALPHABET[rest])
    return "".join(characters)


def _day(name: str) -> dt.date | None:
    """The date that a folder's name is, in the one form that we write; None for anything else."""
    try:
        day = dt.date.fromisoformat(name)
    except ValueError:
        return None
    return day if day.isoformat() == name else None


@cache
def image_store() -> ImageStore:
    """This process's image store, as the settings describe it."""
    return ImageStore(settings.IMAGE_ROOT, settings.SECRET_KEY.encode(), settings.PUBLIC_URL, settings.IMAGE_URL_DAYS)

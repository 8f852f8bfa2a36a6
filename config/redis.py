"""One ``REDIS_URL`` in every form that a library wants, and the clients for code that is not on the request path.

``REDIS_URL`` is ``redis://``, ``rediss://`` or ``unix://`` with an optional ``?db=`` or path number; the admission
store is that database. Cache and Celery broker take the two databases after it unless ``CACHE_URL`` and
``CELERY_BROKER_URL`` name other instances, as a production set-up should: the store refuses writes when it is full,
and a cache must not be what fills it.
"""

from dataclasses import dataclass
from functools import cache
from urllib.parse import parse_qs, quote, unquote

import redis
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.serverurls import split_url

PAGE_SECONDS = 1  # for what a page only shows: it says so when the store doesn't answer


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis-compatible server listens: a unix socket `path`, or `host` and `port`."""

    path: str
    host: str
    port: int
    database: int
    username: str
    password: str
    tls: bool

    def url(self, database: int | None = None) -> str:
        """The address as redis-py writes it, for another database of the same server if asked."""
        number = self.database if database is None else database
        credentials = f"{_quoted(self.username)}:{_quoted(self.password)}@" if self.password else ""
        if self.path:
            return f"unix://{credentials}{quote(self.path)}?db={number}"
        return f"{'rediss' if self.tls else 'redis'}://{credentials}{self.host}:{self.port}/{number}"

    def celery_url(self, database: int) -> str:
        """The address as kombu writes it; a socket is ``redis+socket://`` with ``virtual_host``."""
        if not self.path:
            return self.url(database)
        credentials = f":{_quoted(self.password)}@" if self.password else ""
        return f"redis+socket://{credentials}{quote(self.path)}?virtual_host={database}"


def _quoted(text: str) -> str:
    return quote(text, safe="")  # a "/" would end the part of the URL that it stands in


def parse_address(url: str, name: str = "REDIS_URL") -> Address:
    """Parse a ``redis://``, ``rediss://`` or ``unix://`` URL.

    Raises ImproperlyConfigured, naming the setting `name`, for anything else.
    """
    parts = split_url(name, url)
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ImproperlyConfigured(f"{name} must start with redis://, rediss:// or unix://.")
    query = parse_qs(parts.query)
    unix = parts.scheme == "unix"
    number = query.get("db", ["0"])[0] if unix or "db" in query else (parts.path.lstrip("/") or "0")
    if not number.isdigit():
        raise ImproperlyConfigured(f"{name} must name its database by number, as in redis://host:6379/0.")
    return Address(
        path=unquote(parts.path) if unix else "",
        host="" if unix else (parts.hostname or "127.0.0.1"),
        port=parts.port or 6379,
        database=int(number),
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        tls=parts.scheme == "rediss",
    )


@cache
def store(seconds: float = 5) -> "redis.Redis":
    """The admission store for synchronous code (tasks, commands, admin), which waits `seconds` for an answer.

    A connection that broke is tried once more; a store that doesn't answer isn't asked a second time.
    """
    client: redis.Redis = redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=seconds,
        socket_connect_timeout=min(seconds, 2),
        decode_responses=False,
        # The library's own pauses and repeated waits would make each page wait for seconds.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
    return client

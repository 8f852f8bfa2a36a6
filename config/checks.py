"""Refuses to start on settings and stores that can't keep the gateway's promises.

Three lists of Django checks: of the settings (each ``manage.py`` command runs them), of the admission store and of
PostgreSQL (``manage.py check --database default`` and ``migrate`` run them). `refuse_unsafe` runs all three for the
programs that serve. A server that can't be reached is a warning, not an error: the gateway starts while one is down
and answers 503 until it is back. docs/operations.md lists the ids.
"""

import ipaddress
import logging
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from cryptography.fernet import Fernet
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection
from django.db.backends.utils import CursorWrapper

from config.redis import store

logger = logging.getLogger(__name__)

LEAST_SECRET_KEY = 50  # characters; what Django's own deployment check asks for
LEAST_DIFFERENT = 5
LEAST_STORE_VERSION = 7
LEAST_POSTGRESQL = 17
DURABILITY = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
LOSS = {
    "appendonly": "Without it a restart of the store loses usage and reservations.",
    "appendfsync": "With any other value a crash loses calls that were already answered.",
    "maxmemory-policy": "With any other value a full store silently deletes counters and tokens.",
}


def refuse_unsafe() -> None:
    """Stop the start when a setting or a store is unsafe; warnings go to the log.

    Asks the store and PostgreSQL, so call it where blocking is allowed, not on a running event loop.

    Raises:
        ImproperlyConfigured: with one sentence for each thing that is wrong.
    """
    messages = [*settings_problems(), *store_problems(), *database_problems()]
    errors = [message for message in messages if message.is_serious()]
    for message in messages:
        if message not in errors:
            logger.warning("%s (%s)", message.msg, message.id)
    if errors:
        raise ImproperlyConfigured(" ".join(f"{message.msg} {message.hint or ''}".strip() for message in errors))


def settings_problems(**_kwargs: Any) -> list[CheckMessage]:
    """What is wrong with the settings as they stand."""
    findings: list[CheckMessage] = []
    public = not is_loopback(urlsplit(settings.PUBLIC_URL).hostname or "")
    if settings.DEBUG and public:
        text = "DEBUG is on while PUBLIC_URL is not this machine: errors would show settings and code."
        findings.append(Error(text, hint="Unset DEBUG.", id="gateway.E001"))
    if public and not settings.PUBLIC_URL.startswith("https://"):
        text = "PUBLIC_URL is not https:// and not this machine: tokens and passwords would cross the network readable."
        findings.append(Error(text, hint="Put a proxy with TLS in front and name its address.", id="gateway.E002"))
    if not settings.ALLOWED_HOSTS or any(host in {"*", "."} for host in settings.ALLOWED_HOSTS):
        text = "ALLOWED_HOSTS must name the hosts that people call; it is empty or holds *."
        findings.append(Error(text, hint="List them, separated by commas.", id="gateway.E003"))
    key = settings.SECRET_KEY
    if len(key) < LEAST_SECRET_KEY or len(set(key)) < LEAST_DIFFERENT:
        text = f"SECRET_KEY must have at least {LEAST_SECRET_KEY} characters, at random."
        findings.append(Error(text, hint="Make one with: openssl rand -base64 48", id="gateway.E004"))
    if not settings.ENCRYPTION_KEYS or not all(is_fernet_key(word) for word in settings.ENCRYPTION_KEYS):
        text = "ENCRYPTION_KEYS must hold Fernet keys: 32 random bytes each, in URL-safe base64."
        findings.append(Error(text, hint="Make one with: openssl rand -base64 32 | tr +/ -_", id="gateway.E005"))
    if any(network.prefixlen == 0 for network in settings.TRUSTED_PROXIES):
        text = "TRUSTED_PROXIES trusts every address, so that any client could choose its own."
        findings.append(Error(text, hint="List your proxies' networks only.", id="gateway.E006"))
    if settings.IMAGE_RETENTION_DAYS < settings.IMAGE_URL_DAYS:
        text = "IMAGE_RETENTION_DAYS is less than IMAGE_URL_DAYS: images would be gone before their URLs expire."
        findings.append(Error(text, hint="Raise the one or lower the other.", id="gateway.E007"))
    if any(network.prefixlen == 0 for network in settings.METRICS_NETWORKS):
        text = "METRICS_NETWORKS shows the metrics to every address."
        findings.append(Warning(text, hint="List your monitoring's networks only.", id="gateway.W001"))
    return findings


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this machine: ``localhost``, a name below it, or a loopback address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_fernet_key(word: str) -> bool:
    """Whether `word` can be a Fernet key."""
    try:
        Fernet(word)
    except ValueError:
        return False
    return True


def store_problems(databases: Sequence[str] | None = ("default",), **_kwargs: Any) -> list[CheckMessage]:
    """What is wrong with the admission store: version, role, durability. Django passes no `databases` to skip it."""
    if not databases:
        return []
    try:
        server = {**store().info("server"), **store().info("replication")}
    except redis.RedisError as exc:
        text = f"The admission store (REDIS_URL) can't be checked: {type(exc).__name__}."
        return [Warning(text, hint="Until it answers, calls get 503.", id="gateway.W101")]
    findings: list[CheckMessage] = []
    version = str(server["redis_version"])
    # Valkey says 7.2 here, the Redis that it is compatible with, and its own version under another name.
    if int(version.split(".")[0]) < LEAST_STORE_VERSION:
        text = f"The admission store must be Valkey, or Redis {LEAST_STORE_VERSION} or newer; it is Redis {version}."
        findings.append(Error(text, id="gateway.E101"))
    if server["role"] != "master":
        text = "The admission store is a replica: what it admits would be undone by its primary."
        findings.append(Error(text, hint="Point REDIS_URL at the primary.", id="gateway.E102"))
    return findings + durability_problems()


def durability_problems() -> list[CheckMessage]:
    """What is wrong with the store's durability, as far as it lets us read its configuration."""
    try:
        found = {name: str(store().config_get(name).get(name, "")) for name in DURABILITY}
    except redis.RedisError as exc:
        wanted = ", ".join(f"{name} {value}" for name, value in DURABILITY.items())
        text = (
            f"The admission store doesn't show its configuration ({type(exc).__name__}), so its durability is unknown."
        )
        return [Warning(text, hint=f"Make sure of: {wanted}.", id="gateway.W102")]
    return [
        Error(
            f"The admission store must run with {name} {wanted}; it has {found[name] or 'none'}.",
            hint=LOSS[name],
            id=f"gateway.E{103 + number}",
        )
        for number, (name, wanted) in enumerate(DURABILITY.items())
        if found[name] != wanted
    ]


def database_problems(databases: Sequence[str] | None = ("default",), **_kwargs: Any) -> list[CheckMessage]:
    """What is wrong with PostgreSQL: version, recovery, an installation of another number of shards.

    Django passes no `databases` to skip it.
    """
    if not databases:
        return []
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('server_version_num')::int, pg_is_in_recovery()")
            version, recovering = cursor.fetchone()
            shards = installed_shards(cursor)
    except DatabaseError as exc:
        text = f"PostgreSQL (DATABASE_URL) can't be checked: {type(exc).__name__}."
        return [Warning(text, hint="Until it answers, the admin gives 503 and usage waits.", id="gateway.W201")]
    findings: list[CheckMessage] = []
    if version < LEAST_POSTGRESQL * 10_000:
        text = f"PostgreSQL must be version {LEAST_POSTGRESQL} or newer; it is {version // 10_000}."
        findings.append(Error(text, id="gateway.E201"))
    if recovering:
        text = "PostgreSQL is in recovery (a replica), so nothing can be recorded."
        findings.append(Error(text, hint="Point DATABASE_URL at the primary.", id="gateway.E202"))
    if shards not in {None, settings.SHARDS}:
        text = f"SHARDS is {settings.SHARDS} but this installation was made with {shards}."
        findings.append(Error(text, hint=f"Set SHARDS={shards}; it can't be changed later.", id="gateway.E203"))
    return findings


def installed_shards(cursor: CursorWrapper) -> int | None:
    """The number of shards that the installation was made with; None before `migrate` and `bootstrap`.

    With another number every tenant's counters would be looked for where they aren't. Plain SQL: this module must not
    know the app whose table it is.
    """
    cursor.execute("SELECT to_regclass('tokens_installation') IS NOT NULL")
    if cursor.fetchone() != (True,):
        return None
    cursor.execute("SELECT shards FROM tokens_installation")
    row = cursor.fetchone()
    return None if row is None else int(row[0])


def register_checks() -> None:
    """Hand the three lists to Django; the gateway app does so when it is ready."""
    checks: list[tuple[Callable[..., list[CheckMessage]], str]] = [
        (settings_problems, Tags.security),
        (store_problems, Tags.database),
        (database_problems, Tags.database),
    ]
    for check, tag in checks:
        register(check, tag)

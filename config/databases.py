"""`DATABASE_URL` in the form that Django wants."""

from typing import Any
from urllib.parse import parse_qsl, unquote

from django.core.exceptions import ImproperlyConfigured
from psycopg import IsolationLevel

from config.serverurls import split_url

# A server that vanishes without a word must not hold a worker until its tasks' time limits. Seconds; the last one ms.
IMPATIENT = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}


def database_settings(url: str) -> dict[str, Any]:
    """Parse ``postgresql://user:password@host:port/name?option=value`` (libpq's URI form).

    A unix socket folder is given as ``?host=/folder``; other query parameters become connection options.
    Raises ImproperlyConfigured for any other scheme (PostgreSQL is the only ledger), and for a URL that can't be read.
    """
    parts = split_url("DATABASE_URL", url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ImproperlyConfigured("DATABASE_URL must start with postgresql://.")
    options = {**IMPATIENT, **dict(parse_qsl(parts.query))}
    host = options.pop("host", None) or (parts.hostname or "")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": host,
        "PORT": str(parts.port or ""),
        # The default of most servers, but not of all: what asks which months are closed must see the newest answer.
        "OPTIONS": {**options, "isolation_level": IsolationLevel.READ_COMMITTED},
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }

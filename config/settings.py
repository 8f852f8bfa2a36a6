"""Every setting of the gateway, read once from the environment (see docs/settings.md).

A wrong or missing value stops the start with a sentence that names the variable.
"""

import ipaddress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from django.urls import reverse_lazy

from config.databases import database_settings
from config.environment import process_environment
from config.mail import MailServer, checked_addresses, parse_mail_url
from config.navigation import NAVIGATION
from config.redis import parse_address
from config.security import *  # noqa: F403
from config.serverurls import split_url
from config.throttling import checked_rate

env = process_environment()

BASE_DIR = Path(__file__).resolve().parent.parent
DATA = env.data
DEBUG = env.flag("DEBUG")
SECRET_KEY = env.text("SECRET_KEY")
PUBLIC_URL = env.text("PUBLIC_URL").rstrip("/")
ALLOWED_HOSTS = env.words("ALLOWED_HOSTS", urlsplit(PUBLIC_URL).hostname or "")
CSRF_TRUSTED_ORIGINS = env.words("CSRF_TRUSTED_ORIGINS", PUBLIC_URL)


def _networks(name: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    try:
        return [ipaddress.ip_network(word) for word in env.words(name)]
    except ValueError as exc:
        raise ImproperlyConfigured(f"{name} must list networks such as 10.0.0.0/8: {exc}.") from exc


def _peppers() -> dict[int, bytes]:
    """``TOKEN_PEPPERS=1:<secret>[,2:<secret>]``: the highest version signs new secrets, all are accepted."""
    peppers = {}
    for word in env.words("TOKEN_PEPPERS", env.text("TOKEN_PEPPERS")):
        version, colon, pepper = word.partition(":")
        if not (colon and version.isdigit() and len(pepper) >= 32):
            raise ImproperlyConfigured("TOKEN_PEPPERS must read 1:<at least 32 characters>[,2:<...>].")
        peppers[int(version)] = pepper.encode()
    return peppers


# Stores
DATABASES = {"default": database_settings(env.text("DATABASE_URL"))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
REDIS_URL = env.text("REDIS_URL")
_store = parse_address(REDIS_URL)
CACHE_URL = env.text("CACHE_URL", _store.url(_store.database + 1))
split_url("CACHE_URL", CACHE_URL)  # refused here; its library's own error would show a part of the password
CACHES = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": CACHE_URL,
        "OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 1, "SOCKET_TIMEOUT": 1},
    }
}
STORE_TIMEOUT = env.number("STORE_TIMEOUT", 0.25, least=0.01)  # seconds for one script call, then 503
SHARDS = env.integer("SHARDS", 16, least=1)

# Secrets
TOKEN_PEPPERS = _peppers()
ENCRYPTION_KEYS = env.words("ENCRYPTION_KEYS", env.text("ENCRYPTION_KEYS"))

# A provider that `manage.py bootstrap` sets up, with one model as the default; all three or none
PROVIDER_BASE_URL = env.text("PROVIDER_BASE_URL", "")
PROVIDER_API_KEY = env.text("PROVIDER_API_KEY", "")
PROVIDER_MODEL = env.text("PROVIDER_MODEL", "")

# The call
UPSTREAM_CONNECT_TIMEOUT = env.number("UPSTREAM_CONNECT_TIMEOUT", 5, least=0.05)  # seconds
UPSTREAM_DEADLINE = env.number("UPSTREAM_DEADLINE", 300, least=0.1)  # seconds for the whole upstream call
UPSTREAM_ANSWER_LIMIT = env.integer("UPSTREAM_ANSWER_LIMIT", 64 * 1024 * 1024, least=1024)  # bytes
ANSWER_MEMORY = env.integer("ANSWER_MEMORY", 512 * 1024 * 1024, least=UPSTREAM_ANSWER_LIMIT)  # bytes a web process
BREAKER_FAILURES = env.integer("BREAKER_FAILURES", 5)  # in a row that say a provider is down; 0: no breaker
BREAKER_SECONDS = env.number("BREAKER_SECONDS", 5, least=0.1)
LEASE_SECONDS = UPSTREAM_DEADLINE + env.number("LEASE_MARGIN", 30, least=0.1)
DISPATCH_WITHIN = env.number("DISPATCH_WITHIN", 5, least=0.1)  # seconds from admit to dispatch, else void
BODY_LIMIT = 256 * 1024  # bytes
BODY_TIMEOUT = env.number("BODY_TIMEOUT", 10, least=0.1)  # seconds
IN_FLIGHT_LIMIT = env.integer("IN_FLIGHT_LIMIT", 10_000, least=1)  # calls a web process
DETACHED_LIMIT = env.integer("DETACHED_LIMIT", 2_000, least=1)  # of them whose client has gone
SETTLE_RETRY_SECONDS = env.number("SETTLE_RETRY_SECONDS", 2, least=0)
BACKLOG_LIMIT = env.integer("BACKLOG_LIMIT", 1_000_000, least=1)  # undrained events
MEMORY_LIMIT_SHARE = env.number("MEMORY_LIMIT_SHARE", 0.6, least=0.01)  # of the store's memory
DRAIN_SECONDS = env.number("DRAIN_SECONDS", UPSTREAM_DEADLINE + 10, least=1)  # how long a stopping process waits
TRUSTED_PROXIES = _networks("TRUSTED_PROXIES")
FAILED_AUTHENTICATION_RATE = env.text("FAILED_AUTHENTICATION_RATE", "60/m")  # per client address
SPOOL_ROOT = env.path("SPOOL_ROOT", DATA / "spool")

# Images
IMAGE_ROOT = env.path("IMAGE_ROOT", DATA / "images")
IMAGE_RETENTION_DAYS = env.integer("IMAGE_RETENTION_DAYS", 30, least=1)
IMAGE_URL_DAYS = env.integer("IMAGE_URL_DAYS", 7, least=1)

# Operations
METRICS_NETWORKS = _networks("METRICS_NETWORKS")
METRICS_TOKEN = env.text("METRICS_TOKEN", "")
LOG_LEVEL = env.text("LOG_LEVEL", "INFO").upper()
LOGGING_CONFIG = "config.logs.configure"
LOGGING = {"level": LOG_LEVEL}
WORKER_HOST = env.text("WORKER_HOST", "127.0.0.1")
WORKER_PORT = env.integer("WORKER_PORT", 0)  # of the worker's health checks; 0: none
WORKER_STUCK_SECONDS = env.number("WORKER_STUCK_SECONDS", 30, least=0.5)
LAG_LIMIT_SECONDS = env.number("LAG_LIMIT_SECONDS", 60, least=0.1)

# Alarms by e-mail; none without EMAIL_URL
ALARM_EMAILS = checked_addresses("ALARM_EMAILS", env.words("ALARM_EMAILS"))
EMAIL_URL = env.text("EMAIL_URL", "")
if ALARM_EMAILS and not EMAIL_URL:
    raise ImproperlyConfigured("ALARM_EMAILS is set and EMAIL_URL is not: no mail server would take an alarm.")
_mail = parse_mail_url(EMAIL_URL) if EMAIL_URL else MailServer()
EMAIL_HOST, EMAIL_PORT, EMAIL_HOST_USER, EMAIL_HOST_PASSWORD, EMAIL_USE_TLS, EMAIL_USE_SSL = _mail
EMAIL_TIMEOUT = 10  # seconds
DEFAULT_FROM_EMAIL = checked_addresses(
    "EMAIL_FROM", [env.text("EMAIL_FROM", "") or f"gateway@{urlsplit(PUBLIC_URL).hostname or 'localhost'}"]
)[0]

# Quota alerts: networks that webhooks may reach although they are not on the public internet
WEBHOOK_NETWORKS = _networks("WEBHOOK_NETWORKS")
API_RATE = checked_rate("API_RATE", env.text("API_RATE", "600/m"))  # of one key of the management API

EXPORT_ROOT = env.path("EXPORT_ROOT", DATA / "exports")  # large exports; of worker and web processes
ISSUER = env.text("ISSUER", "Gem Heaven Gateway")  # of statements

# Celery
CELERY_BROKER_URL = env.text("CELERY_BROKER_URL", _store.celery_url(_store.database + 2))
for _broker in CELERY_BROKER_URL.split(";"):  # Celery takes the next one when one is down
    split_url("CELERY_BROKER_URL", _broker)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
# A busy worker takes no tick that it can't begin: another one may be free.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# One process at most makes exports (usage.exportjobs). If that took more (KiB), a new process takes its place.
CELERY_WORKER_MAX_MEMORY_PER_CHILD = 300_000
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = "UTC"
# Without these a broker that vanishes silently would hold up worker and scheduler until TCP gives up.
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
}
# A task that takes longer is ended, softly first; those of the second line grow with the installation.
CELERY_TASK_TIME_LIMIT, CELERY_TASK_SOFT_TIME_LIMIT = 60, 50
_EXPORTS = ("usage.make_exports", "usage.send_reports")
CELERY_TASK_ANNOTATIONS = {
    name: {"time_limit": 900, "soft_time_limit": 890}
    for name in ("usage.guard", "usage.compare_counters", "tokens.compare", "gateway.delete_old_images", *_EXPORTS)
}
# `expires` keeps a stopped worker's missed ticks from being run one after the other when it returns.
CELERY_BEAT_SCHEDULE = {
    "drain": {"task": "usage.drain", "schedule": 1.0, "options": {"expires": 2}},
    "expire": {"task": "usage.expire", "schedule": 2.0, "options": {"expires": 4}},
    "unsettled": {"task": "usage.replay_unsettled", "schedule": 5.0, "options": {"expires": 5}},
    "guard": {"task": "usage.guard", "schedule": 2.0, "options": {"expires": 4}},
    "publish": {"task": "tokens.publish", "schedule": 2.0, "options": {"expires": 4}},
    "compare": {"task": "tokens.compare", "schedule": 60.0, "options": {"expires": 60}},
    "catalog": {"task": "gateway.publish_catalog", "schedule": 30.0, "options": {"expires": 30}},
    "images": {"task": "gateway.delete_old_images", "schedule": 3600.0, "options": {"expires": 3600}},
    "sequences": {"task": "usage.check_sequences", "schedule": 60.0, "options": {"expires": 60}},
    "alarms": {"task": "usage.check_alarms", "schedule": 60.0, "options": {"expires": 60}},
    "counters": {"task": "usage.compare_counters", "schedule": 600.0, "options": {"expires": 600}},
    "quotas": {"task": "usage.check_quotas", "schedule": 60.0, "options": {"expires": 60}},
    "quota_alerts": {"task": "usage.send_alerts", "schedule": 5.0, "options": {"expires": 5}},
    "exports": {"task": "usage.make_exports", "schedule": 2.0, "options": {"expires": 4}},
    "reports": {"task": "usage.send_reports", "schedule": 30.0, "options": {"expires": 30}},
    "old exports": {"task": "usage.delete_old_exports", "schedule": 3600.0, "options": {"expires": 3600}},
    "partitions": {"task": "usage.create_partitions", "schedule": 3600.0, "options": {"expires": 3600}},
}

# Django
INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.contrib.postgres",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "django_otp.plugins.otp_static",
    "config.signin",
    "csp",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "tokens",
    "usage",
    "gateway",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "config.browserheaders.browser_headers",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "tokens.requestactors.actor_middleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "config.signin.middleware.SignInMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "config.urls"
ASGI_APPLICATION = "config.asgi.application"
AUTH_USER_MODEL = "tokens.User"
AUTHENTICATION_BACKENDS = ["tokens.roles.RoleBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "config" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
}
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
FORMAT_MODULE_PATH = ["config.formats"]
STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "config" / "static"]
STATIC_ROOT = env.path("STATIC_ROOT", DATA / "static")

# The admin

UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Gem Heaven Gateway",
    "SITE_HEADER": "Gem Heaven Gateway",
    "SITE_SYMBOL": "diamond",
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("gateway/favicon.svg")}],
    "SITE_URL": None,
    "SHOW_VIEW_ON_SITE": False,
    "STYLES": [lambda request: static("gateway/admin.css")],
    "SCRIPTS": [lambda request: static("gateway/alpinepages.js")],
    "COLORS": lambda request: {},  # they would be an inline style; admin.css has them
    "LOGIN": {"form": "config.signin.forms.SignInForm"},
    "ACCOUNT": {
        "navigation": [
            {"title": "Change password", "link": reverse_lazy("admin:password_change")},
            {"title": "Second factor", "link": reverse_lazy("second_factor")},
        ]
    },
    "DASHBOARD_CALLBACK": "gateway.admin.dashboard.dashboard",
    "SIDEBAR": {"navigation": NAVIGATION},
}

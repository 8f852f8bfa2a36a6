"""The environment that the children get: the settings of `config/settings.py` for a stack on this machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from config.supervisor import secretfiles

LOCAL_HOSTS = ("127.0.0.1", "localhost")
# What `manage.py` obeys as well: the mail that it sends, the webhook that it takes and the month that it closes are to
# be what the stack's own processes would make of them.
FOR_COMMANDS = (
    "ALARM_EMAILS",
    "CACHE_URL",
    "EMAIL_FROM",
    "EMAIL_URL",
    "EXPORT_ROOT",
    "IMAGE_ROOT",
    "ISSUER",
    "LEASE_MARGIN",
    "SHARDS",
    "SPOOL_ROOT",
    "UPSTREAM_DEADLINE",
    "WEBHOOK_NETWORKS",
)
SECRET_FILES = {
    "SECRET_KEY_FILE": "secret_key",
    "TOKEN_PEPPERS_FILE": "token_peppers",
    "ENCRYPTION_KEYS_FILE": "encryption_keys",
}


def public_url(port: int) -> str:
    """The address that signed URLs carry: `PUBLIC_URL` if it is set, else this machine's own."""
    return os.environ.get("PUBLIC_URL", "").rstrip("/") or f"http://127.0.0.1:{port}"


def is_external(setting: str) -> bool:
    """Whether the person brings this server: `DATABASE_URL` or `REDIS_URL`, or its `_FILE`, is set."""
    return bool(os.environ.get(setting) or os.environ.get(f"{setting}_FILE"))


def for_run_file(data: Path, port: int, servers: Mapping[str, str]) -> dict[str, str]:
    """The variables that make up this stack, and that `manage.py` finds in `run.json`.

    Args:
        data: the data folder.
        port: the web server's port.
        servers: `DATABASE_URL` and `REDIS_URL` of the embedded servers that run.
    """
    public = public_url(port)
    asked = [host for host in os.environ.get("ALLOWED_HOSTS", "").split(",") if host.strip()]
    hosts = dict.fromkeys([*LOCAL_HOSTS, *(asked or [urlsplit(public).hostname or "127.0.0.1"])])
    variables = {
        "DATA": str(data),
        **servers,
        **{name: str(secretfiles.path(data, secret)) for name, secret in SECRET_FILES.items()},
        "PUBLIC_URL": public,
        "ALLOWED_HOSTS": ",".join(hosts),
        "STATIC_ROOT": str(data / "static"),  # where the web server is told to look
        "PROMETHEUS_MULTIPROC_DIR": str(data / "metrics"),
    }
    for name in ("DATABASE_URL", "REDIS_URL", *FOR_COMMANDS):
        brought = {key: os.environ[key] for key in (name, f"{name}_FILE") if os.environ.get(key)}
        variables |= {} if name in servers else brought
    return variables


def for_children(run_file: Mapping[str, str]) -> dict[str, str]:
    """What a child gets: our own environment and, over it, the stack's.

    Left out: what other programs in the same terminal mean something else by (`DEBUG`, `GRANIAN_*`), and values that
    would take the place of the data folder's own secrets here, yet not for `manage.py` in another terminal.
    """
    secrets = {name.removesuffix("_FILE") for name in SECRET_FILES}
    ours = {
        name: value
        for name, value in os.environ.items()
        if name != "DEBUG" and name not in secrets and not name.startswith("GRANIAN_")
    }
    return {**ours, **run_file, "DJANGO_SETTINGS_MODULE": "config.settings", "PYTHONUNBUFFERED": "1"}

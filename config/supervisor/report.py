"""What the person who typed `make run` sees, and `demo.json`, which says the same to scripts."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from config.supervisor.errors import StartError
from config.supervisor.secretfiles import write_private

ENDPOINT = "/wp-json/my-proxy/v1/generate-image"


class Admin(TypedDict):
    """How to log in to the admin."""

    url: str
    username: str
    password: str


class Demo(TypedDict):
    """The demo tenant, as `demo.json` holds it."""

    url: str
    endpoint: str
    token: str
    tenant: str
    user: str
    admin: Admin


def say(text: str) -> None:
    """Print a line at once. A terminal that is gone must not stop the stack."""
    try:
        print(text, flush=True)
    except OSError:
        # Python would try again, and complain, when it flushes at its end.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115, PTH123 - for the rest of the process


def parse(output: str, url: str, admin_password: str) -> Demo:
    """The demo from what `manage.py demo` printed.

    Raises:
        StartError: it printed something else.
    """
    try:
        found = json.loads(output)
        return Demo(
            url=url,
            endpoint=url + ENDPOINT,
            token=found["token"],
            tenant=found["tenant"],
            user=found["user"],
            admin=Admin(url=f"{url}/admin/", username=found["admin_username"], password=admin_password),
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise StartError("The demo tenant could not be made: `manage.py demo` gave no details.") from exc


def without_demo(url: str) -> Mapping[str, object]:
    """What `demo.json` holds when there is no demo tenant: the addresses alone."""
    return {"url": url, "endpoint": url + ENDPOINT, "admin": {"url": f"{url}/admin/"}}


def write(data: Path, details: Mapping[str, object]) -> None:
    """Write `demo.json`, readable by the owner alone. Its appearance means: ready."""
    write_private(data / "demo.json", json.dumps(details, indent=1) + "\n")


def text_without_demo(data: Path, url: str) -> str:
    """The lines at the end of a start with `DEMO=no`."""
    return f"""
The gateway is ready, without the demo tenant and the sandbox provider: restore a backup, or make yourself a login,
then set up a provider and a tenant.

  Admin   {url}/admin/

DATA={shlex.quote(str(data))} .venv/bin/python manage.py createsuperuser

The addresses for scripts: {data / "demo.json"}. Logs: {data / "logs"}. Ctrl-C stops everything."""


def text(data: Path, demo: Demo) -> str:
    """The twelve lines at the end of a start."""
    return f"""
The gateway is ready.

  Admin   {demo["admin"]["url"]}   login {demo["admin"]["username"]}, password {demo["admin"]["password"]}
  Token   {demo["token"]}

curl {demo["endpoint"]} -X POST \\
  -H "Content-Type: application/json" -H "X-Proxy-Token: {demo["token"]}" \\
  -d '{{"prompt": "a lighthouse at dusk, oil on canvas", "size": "512x512", "n": 2}}'

The same for scripts: {data / "demo.json"}. Logs: {data / "logs"}. Ctrl-C stops everything."""

"""A lost machine: from a backup to a gateway on fresh servers that takes the same tokens and counts on."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests import processes
from tests.conftest import PATH, SANDBOX_KEY
from tests.embedded import Servers, start_servers
from tests.test_backup import make_secrets

ROOT = Path(__file__).resolve().parent.parent
DRAIN = "from usage.drain import drain; drain()"
LIMITS = ("images:4/day", "images:5/month", "requests:100/total")


@dataclass
class Machine:
    """Servers and a data folder, and the settings of a gateway on them."""

    folder: Path
    servers: Servers
    secrets: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """What its programs get."""
        stores = {"DATABASE_URL": self.servers.database_url, "REDIS_URL": self.servers.redis_url}
        return {**stores, **self.secrets, "DATA": str(self.folder)}

    def manage(self, *arguments: str, text: str = "") -> str:
        """What ``manage.py`` prints; it must succeed."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *arguments],
            env={**os.environ, **self.environment},
            cwd=ROOT,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two, each with empty servers and secrets of its own."""
    tmp_path.chmod(0o755)  # PostgreSQL's account must be able to enter
    made: list[Machine] = []
    try:
        for name in ("lost", "new"):
            made.append(Machine(tmp_path / name, start_servers(tmp_path / name), make_secrets()))
        yield made[0], made[1]
    finally:
        for machine in made:
            machine.servers.stop()


def draw(url: str, token: str, n: int = 1) -> httpx.Response:
    """One call for images."""
    body = {"prompt": "an opal", "size": "256x256", "n": n}
    return httpx.post(url + PATH, json=body, headers={"X-Proxy-Token": token}, timeout=20)


def remaining(answer: httpx.Response) -> dict[str, int]:
    """What the header RateLimit says is left, by limit."""
    items = (item.strip().split(";") for item in answer.headers["RateLimit"].split(","))
    return {name.strip('"'): int(left.removeprefix("r=")) for name, left, *_ in items}


def path_of(answer: httpx.Response) -> str:
    """Path and query of an answer's image, which is what its signature is over."""
    url = httpx.URL(answer.json()["data"][0]["url"])
    return url.raw_path.decode()


def set_up(machine: Machine, sandbox: str) -> str:
    """A new gateway with one tenant; its token."""
    machine.manage("migrate", "--verbosity", "0")
    machine.manage("bootstrap")
    model = ("--model", "gem-1", "--size", "256x256=1200", "--default")
    machine.manage("provider", "set", "sandbox", "--base-url", f"{sandbox}/v1", *model, text=SANDBOX_KEY)
    machine.manage("tenant", "create", "acme", *(word for limit in LIMITS for word in ("--limit", limit)))
    user = ("--tenant", "acme", "--user", "alice@acme.test", "--name", "ci")
    return machine.manage("token", "issue", *user).strip()


def test_a_restored_gateway_takes_the_same_tokens_and_counts_on(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    lost, new = machines
    file = tmp_path / "gateway.tar.gz"
    with processes.sandbox(tmp_path / "sandbox", SANDBOX_KEY) as sandbox:
        token = set_up(lost, sandbox)
        with processes.web(lost.folder, 1, True, **lost.environment) as (url, _):
            drawn = [draw(url, token) for _ in range(3)]
            assert [answer.status_code for answer in drawn] == [200, 200, 200]
            picture = httpx.get(url + path_of(drawn[0]))
            assert picture.status_code == 200
        lost.manage("shell", "--no-imports", "--command", DRAIN)
        lost.manage("backup", str(file))
        shutil.copytree(lost.folder / "images", tmp_path / "images")
        lost.servers.stop()

        new.manage("migrate", "--verbosity", "0")
        report = new.manage("restore", str(file))
        assert "3 of the backup's images are not in" in report
        assert "Set SECRET_KEY, TOKEN_PEPPERS, ENCRYPTION_KEYS to the values" in report
        shutil.copytree(tmp_path / "images", new.folder / "images")
        new.secrets = secrets_in(file)
        new.manage("bootstrap")
        with processes.web(new.folder, 1, True, **new.environment) as (url, _):
            again = httpx.get(url + path_of(drawn[0]))
            assert (again.status_code, again.content) == (200, picture.content), "a URL of before still opens"
            answer = draw(url, token)
            assert answer.status_code == 200, answer.text
            assert remaining(answer) == {"tenant-images-day": 0, "tenant-images-month": 1, "tenant-requests-total": 96}
            over = draw(url, token)
            assert over.status_code == 429, over.text
            assert over.json()["error"]["type"] == "quota_exceeded"
        new.manage("shell", "--no-imports", "--command", DRAIN)
        totals = report_of(new)
        assert (totals["requests"], totals["images"]) == (4, 4)
        charged = [reply.json()["usage"]["total_tokens"] for reply in (*drawn, answer)]
        assert totals["tokens"] == sum(charged)


def report_of(machine: Machine) -> dict[str, Any]:
    """The totals of everything that was ever used."""
    span = ("--from", "2026-01-01", "--to", "2100-01-01")
    content = msgspec.json.decode(machine.manage("usage", "report", *span, "--format", "json"))
    total: dict[str, Any] = content["total"]
    return total


def secrets_in(file: Path) -> dict[str, str]:
    """The settings that stand in a backup, as a person takes them out of it."""
    with tarfile.open(file) as archive:
        member = archive.extractfile("settings.json")
        assert member is not None
        found: dict[str, str] = msgspec.json.decode(member.read())
    return found

"""What is deployed: the compose file and the image, held to the gateway's own promises."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from config import checks
from config.supervisor import programs
from config.supervisor.errors import StartError
from tests.test_docs import ELSEWHERE, settings_read

ROOT = Path(__file__).resolve().parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("setup", "web", "worker")
GRANIAN = {"GRANIAN_WORKERS"}


def options(command: Sequence[str]) -> dict[str, str]:
    """``--name value`` pairs of a command."""
    pairs = pairwise(command)
    return {name: value for name, value in pairs if name.startswith("--") and not value.startswith("--")}


def image_command() -> list[str]:
    """The words of the image's own command."""
    command = re.search(r"^CMD (\[.*?\])$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    assert command
    words: list[str] = yaml.safe_load(command[1])
    return words


def flags(command: Sequence[str]) -> set[str]:
    """Everything that starts with ``--``."""
    return {word for word in command if word.startswith("--")}


def test_the_services_are_the_documented_ones() -> None:
    assert set(SERVICES) == {*OURS, "postgres", "store", "cache"}
    assert SERVICES["postgres"]["image"] == "postgres:18"


def test_the_store_is_one_that_the_gateway_starts_on() -> None:
    given = options(SERVICES["store"]["command"])
    assert {name: given[f"--{name}"] for name in checks.DURABILITY} == checks.DURABILITY
    assert "store:/data" in SERVICES["store"]["volumes"]


def test_cache_and_broker_are_apart_from_the_store_and_never_evict_a_task() -> None:
    environment = COMPOSE["x-environment"]
    assert "//store:" in environment["REDIS_URL"]
    assert "//cache:" in environment["CACHE_URL"]
    assert "//cache:" in environment["CELERY_BROKER_URL"]
    assert environment["CACHE_URL"] != environment["CELERY_BROKER_URL"]
    assert options(SERVICES["cache"]["command"])["--maxmemory-policy"].startswith("volatile-")


@pytest.mark.parametrize("name", OURS)
def test_our_services_set_only_settings_that_exist(name: str) -> None:
    known = settings_read().keys() | ELSEWHERE | GRANIAN
    for variable in SERVICES[name]["environment"]:
        assert variable.removesuffix("_FILE") in known, variable


@pytest.mark.parametrize("name", OURS)
def test_secrets_come_from_files(name: str) -> None:
    service = SERVICES[name]
    for variable, value in service["environment"].items():
        secret = value.removeprefix("/run/secrets/") if variable.endswith("_FILE") else None
        assert secret is None or secret in service["secrets"]
        assert variable not in {"SECRET_KEY", "TOKEN_PEPPERS", "ENCRYPTION_KEYS", "DATABASE_URL"}
    for secret in {*service["secrets"], *SERVICES["postgres"]["secrets"]}:
        assert COMPOSE["secrets"][secret]["file"].startswith("./secrets/")


@pytest.mark.parametrize("name", OURS)
def test_our_services_can_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "setup"])
def test_what_stays_up_is_watched_and_restarted(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]


def test_the_worker_is_asked_whether_it_works_on_its_own_port() -> None:
    worker = SERVICES["worker"]
    assert f"http://127.0.0.1:{worker['environment']['WORKER_PORT']}/readyz" in worker["healthcheck"]["test"][-1]
    assert worker["environment"].items() > COMPOSE["x-environment"].items()


@pytest.mark.parametrize(("environment", "port"), [({}, "4321"), ({"WORKER_PORT": "8001"}, "8001")])
def test_under_make_run_the_worker_has_a_port_too(environment: dict[str, str], port: str) -> None:
    assert programs.worker(Path("/data"), environment, 4321).environment["WORKER_PORT"] == port


def test_the_worker_is_the_one_of_make_run_and_has_processes_left_beside_an_export() -> None:
    command = SERVICES["worker"]["command"]
    ours = programs.worker(Path("/data"), {}, 4321).command
    assert flags(command) == flags(ours)
    assert options(command)["--concurrency"] == options(ours)["--concurrency"] == "3"


def test_setup_runs_once_after_the_stores_and_before_the_rest() -> None:
    setup = SERVICES["setup"]
    assert setup["restart"] == "no"
    assert "migrate" in setup["command"][-1]
    assert "bootstrap" in setup["command"][-1]
    assert {store["condition"] for store in setup["depends_on"].values()} == {"service_healthy"}
    for name in ("web", "worker"):
        assert SERVICES[name]["depends_on"]["setup"]["condition"] == "service_completed_successfully"


def test_only_the_web_server_is_reached_and_only_it_and_the_worker_reach_out() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["web"]
    assert [name for name, service in SERVICES.items() if "outside" in service["networks"]] == ["web", "worker"]
    assert COMPOSE["networks"]["stores"]["internal"] is True


def test_calls_in_flight_are_waited_for() -> None:
    granted = int(SERVICES["web"]["stop_grace_period"].removesuffix("s"))
    killed_after = int(options(image_command())["--workers-kill-timeout"])
    assert granted > killed_after > 300 + 10, "UPSTREAM_DEADLINE and what DRAIN_SECONDS adds"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, "330"),
        ({"UPSTREAM_DEADLINE": "600"}, "630"),
        ({"UPSTREAM_DEADLINE": "600", "DRAIN_SECONDS": "4.5"}, "25"),
        ({"DRAIN_SECONDS": ""}, "330"),
    ],
)
def test_under_make_run_a_worker_is_killed_after_its_drain(environment: dict[str, str], seconds: str) -> None:
    command = programs.web(Path("/data"), environment, 8000).command
    assert options(command)["--workers-kill-timeout"] == seconds


@pytest.mark.parametrize("name", ["UPSTREAM_DEADLINE", "DRAIN_SECONDS"])
def test_under_make_run_a_drain_that_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(StartError, match=f"{name} must be a number, not 'long'"):
        programs.web(Path("/data"), {name: "long"}, 8000)


def test_the_monitoring_can_be_given_a_token() -> None:
    assert SERVICES["web"]["environment"]["METRICS_TOKEN"] == "${METRICS_TOKEN:-}"


def test_named_volumes_are_declared() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])


def test_the_image_starts_the_web_server_as_make_run_does() -> None:
    image = image_command()
    supervisor = programs.web(Path("/data"), {}, 8000).command
    assert image[-1] == supervisor[-1] == "config.asgi:application"
    assert flags(image) == flags(supervisor) - {"--workers"}, "the number of workers is GRANIAN_WORKERS"
    differ = {name for name, value in options(image).items() if options(supervisor)[name] != value}
    assert differ == {"--host", "--static-path-mount"}


def test_the_image_holds_checked_packages_and_no_root() -> None:
    assert "--require-hashes" in DOCKERFILE
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert "collectstatic" in DOCKERFILE
    sources = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    images = [service["image"] for service in SERVICES.values()]
    assert all("." not in image.split("/")[0].split(":")[0] for image in (*sources, *images)), "a registry is named"


def test_the_image_holds_only_the_product() -> None:
    copied = set(re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE, re.MULTILINE))
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept == {"manage.py", "requirements/base.txt", "config", "tokens", "usage", "gateway"}

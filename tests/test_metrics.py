"""Figures of all processes together, living and dead, and who may read them."""

import ipaddress
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.test import RequestFactory
from prometheus_client.parser import text_string_to_metric_families

from gateway import metricfiles, metrics
from gateway.errors import NotFound
from tests import stack
from tests.conftest import Gateway
from tokens.admission import keys

ROOT = Path(__file__).resolve().parent.parent

# A process that serves one call for ever; it says so, then waits.
SERVING = """
import django, time
django.setup()
from gateway import metrics
metrics.in_flight(1)
metrics.request_finished("generate-image", 200, "", 0.2)
metrics.request_finished("generate-image", 429, "rate_limited", 0.001)
metrics.upstream_finished("demo", "exact", 0.19)
metrics.counted("unresolved")
print("serving", flush=True)
time.sleep(60)
"""
SCRAPING = """
import django
django.setup()
from gateway import metrics
print(metrics.render()[0].decode())
"""


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their labels' names ...) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def folder(tmp_path: Path) -> dict[str, str]:
    """An environment with a metrics folder of its own."""
    return {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}


def serve(environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a serving process and wait until it has counted."""
    process = subprocess.Popen([sys.executable, "-c", SERVING], env=environment, cwd=ROOT, stdout=-1, text=True)
    assert process.stdout
    assert process.stdout.readline() == "serving\n"
    return process


def scrape(environment: dict[str, str]) -> dict[tuple[str, ...], float]:
    """What another process of the same folder tells."""
    command = [sys.executable, "-c", SCRAPING]
    return samples(
        subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )


def test_processes_add_up_and_the_killed_leave_nothing_in_flight(folder: dict[str, str]) -> None:
    first, second = serve(folder), serve(folder)
    try:
        both = scrape(folder)
        assert both["gateway_in_flight",] == 2
        assert both["gateway_requests_total", "generate-image", "200", ""] == 2
        first.send_signal(signal.SIGKILL)
        first.wait()
        one = scrape(folder)
        assert one["gateway_in_flight",] == 1
        assert one["gateway_requests_total", "generate-image", "200", ""] == 2, "what it had counted stays"
        assert one["gateway_requests_total", "generate-image", "429", "rate_limited"] == 2
        assert one["gateway_request_seconds_count", "generate-image"] == 4
        assert one["gateway_upstream_calls_total", "demo", "exact"] == 2
        assert one["gateway_upstream_seconds_bucket", "0.25", "demo"] == 2
        assert one["gateway_unresolved_total",] == 2
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_a_zombie_is_dead(folder: dict[str, str]) -> None:
    process = serve(folder)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert metricfiles.start_time(process.pid) == ""
    process.communicate()


def test_a_new_process_with_a_dead_ones_pid_is_another(tmp_path: Path) -> None:
    mine = metricfiles.process_identifier()
    pid, started, host = mine.split("-", 2)
    for identifier in (mine, f"{pid}-{int(started or 0) + 1}-{host}", f"{pid}-1-elsewhere"):
        (tmp_path / f"gauge_livesum_{identifier}.db").touch()
        (tmp_path / f"counter_{identifier}.db").touch()
    metricfiles.forget_the_dead(tmp_path)
    left = {path.stem.rpartition("_")[2] for path in tmp_path.glob("gauge_*")}
    assert left == {mine, f"{pid}-1-elsewhere"}, "only what this kernel can judge is deleted"
    assert len(list(tmp_path.glob("counter_*"))) == 3


@pytest.fixture
def empty_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """A database of the store's server that no other test uses."""
    client = redis.Redis.from_url(stack.SERVERS.redis_url.replace("db=0", "db=11"))
    client.flushdb()
    monkeypatch.setattr(metrics, "store", lambda: client)
    yield client
    client.flushdb()
    client.close()


def test_the_store_is_read_when_asked(empty_store: redis.Redis) -> None:
    assert metrics.read_store(4) == dict.fromkeys([*metrics.STORE_GAUGES, metrics.LEASES_ENDED], 0)
    seconds, _ = empty_store.time()
    for shard, age in ((1, 100), (3, 10)):
        empty_store.xadd(keys.usage(shard), {"a": 1}, id=f"{(seconds - age) * 1000}-0")
        empty_store.xadd(keys.usage(shard), {"a": 2})
    empty_store.xgroup_create(keys.usage(3), keys.GROUP, "0")
    empty_store.xreadgroup(keys.GROUP, "worker", {keys.usage(3): ">"}, count=1)
    empty_store.zadd(keys.deadlines(0), {"a": (seconds - 5) * 10**6, "b": (seconds + 500) * 10**6})
    empty_store.zadd(keys.deadlines(2), {"c": (seconds + 500) * 10**6})
    empty_store.incrby(keys.EXPIRED, 3)
    found = metrics.read_store(4)
    assert 100 <= found.pop("gateway_backlog_oldest_seconds") < 103
    assert found == {
        "gateway_backlog_events": 4,
        "gateway_backlog_pending": 1,
        "gateway_reservations_open": 3,
        "gateway_reservations_overdue": 1,
        "gateway_leases_ended_total": 3,
    }


def test_with_the_store_down_the_rest_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Any) -> None:
    monkeypatch.setattr(metrics, "store", lambda: redis.Redis.from_url(f"unix://{tmp_path}/nobody"))
    settings.SPOOL_ROOT = tmp_path / "spool"
    settings.SPOOL_ROOT.mkdir()
    for name in ("a.json", "b.bad", ".c.part"):
        (settings.SPOOL_ROOT / name).touch()
    text, content_type = metrics.render()
    found = samples(text.decode())
    assert content_type.startswith("text/plain; version=0.0.4")
    assert found["gateway_store_up",] == 0
    assert found["gateway_spool_files",] == 2
    assert not {name for name, *_ in found} & set(metrics.STORE_GAUGES)


@pytest.mark.parametrize(
    ("peer", "headers", "allowed"),
    [
        pytest.param("127.0.0.1", {}, True, id="this machine"),
        pytest.param("::1", {}, True, id="this machine, IPv6"),
        pytest.param("", {}, True, id="unix socket"),
        pytest.param("203.0.113.9", {}, False, id="a stranger"),
        pytest.param("192.0.2.7", {}, True, id="the monitoring"),
        pytest.param("127.0.0.1", {"X-Forwarded-For": "203.0.113.9"}, False, id="a stranger through a proxy"),
        pytest.param("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, False, id="a stranger who lies to a proxy"),
        pytest.param("127.0.0.1", {"Forwarded": "for=203.0.113.9"}, False, id="a proxy of the other kind"),
        pytest.param("10.0.0.1", {"X-Forwarded-For": "192.0.2.7"}, True, id="the monitoring through our proxy"),
        pytest.param("10.0.0.1", {"X-Forwarded-For": "192.0.2.7, 203.0.113.9"}, False, id="a lie through our proxy"),
        pytest.param("203.0.113.9", {"Authorization": "Bearer let-me-in"}, True, id="the token"),
        pytest.param("203.0.113.9", {"Authorization": "Bearer let-me"}, False, id="another token"),
        pytest.param("203.0.113.9", {"Authorization": "Bearer "}, False, id="no token"),
        pytest.param("203.0.113.9", {"Authorization": "Basic let-me-in"}, False, id="another scheme"),
    ],
)
def test_who_may_read_them(peer: str, headers: dict[str, str], allowed: bool, settings: Any) -> None:
    settings.METRICS_NETWORKS = [ipaddress.ip_network("192.0.2.0/24")]
    settings.METRICS_TOKEN = "let-me-in"
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    request = RequestFactory().get("/metrics", headers=headers, REMOTE_ADDR=peer)
    assert metrics.is_allowed(request) is allowed


def test_without_a_token_no_token_is_right(settings: Any) -> None:
    settings.METRICS_TOKEN = ""
    request = RequestFactory().get("/metrics", headers={"Authorization": "Bearer "}, REMOTE_ADDR="203.0.113.9")
    assert not metrics.is_allowed(request)


async def test_to_others_they_do_not_exist() -> None:
    with pytest.raises(NotFound):
        await metrics.metrics(RequestFactory().get("/metrics", REMOTE_ADDR="203.0.113.9"))


def test_over_http(gateway: Gateway) -> None:
    assert gateway.post(None, {"prompt": "a lighthouse"}).status_code == 403
    answer = gateway.client.get(f"{gateway.url}/metrics")
    assert answer.status_code == 200
    found = samples(answer.text)
    assert found["gateway_requests_total", "generate-image", "403", "invalid_token"] >= 1
    assert found["gateway_store_up",] == 1
    refused = gateway.client.get(f"{gateway.url}/metrics", headers={"X-Forwarded-For": "203.0.113.9"})
    assert refused.status_code == 404
    assert refused.json()["error"]["type"] == "not_found"

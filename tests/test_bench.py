"""``make bench`` in its short form: that it measures what it says. How fast is a person's question, not a test's."""

import contextlib
import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest

from bench.framing import split_message
from bench.load import Sample
from bench.report import Figures, medians, table

ROOT = Path(__file__).resolve().parent.parent
CALLS, ROUNDS = 200, 1
EXAMPLE = Figures(1000.0, 60.0, 80.0, 0.5, 0.2, 100.0, 0.95, 0.01, 0.6)


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark pins programs to cores and reads /proc")
@pytest.mark.alone
def test_it_measures_all_three_and_finds_every_call_in_the_ledger(tmp_path: Path) -> None:
    output = tmp_path / "results" / "short.json"
    options = ["--calls", str(CALLS), "--rounds", str(ROUNDS), "--output", str(output)]
    bench = subprocess.Popen(
        [sys.executable, "-m", "bench", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = bench.communicate(timeout=90)
    finally:
        with contextlib.suppress(ProcessLookupError):
            bench.send_signal(signal.SIGTERM)  # so that it ends what it started
        bench.wait(20)
    assert bench.returncode == 0, printed
    result = json.loads(output.read_text())
    assert result["recorded"] == CALLS * ROUNDS + CALLS // 3
    assert result["connections"] == 64
    assert result["targets"].keys() == {"direct", "bare pass-through", "gateway"}
    for name, target in result["targets"].items():
        assert name in printed
        assert len(target["rounds"]) == ROUNDS
        assert target["requests_per_second"] > 0
        assert 0 < target["p50_ms"] <= target["p99_ms"]
    gateway = result["targets"]["gateway"]
    assert min(gateway["web_cpu_ms"], gateway["valkey_cpu_ms"], gateway["memory_mb"]) > 0
    assert gateway["web_cpu_ms"] > result["targets"]["bare pass-through"]["web_cpu_ms"]


def test_it_takes_the_median_of_each_figure_on_its_own() -> None:
    rounds = [
        replace(EXAMPLE, p50_ms=1.0, p99_ms=9.0),
        replace(EXAMPLE, p50_ms=2.0, p99_ms=8.0),
        replace(EXAMPLE, p50_ms=3.0, p99_ms=7.0),
    ]
    assert (medians(rounds).p50_ms, medians(rounds).p99_ms) == (2.0, 8.0)
    assert medians([replace(EXAMPLE, valkey_cpu_ms=None)]).valkey_cpu_ms is None
    assert all(getattr(medians([EXAMPLE]), field.name) == getattr(EXAMPLE, field.name) for field in fields(Figures))


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({}, ""),
        ({"server_core_others": 0.3}, "other programs took 30%"),
        ({"load_core_busy": 0.99, "server_core_ours": 0.5}, "2,000 requests/s"),
    ],
)
def test_it_says_what_spoils_a_figure(changes: dict[str, float], remark: str) -> None:
    lines = table({"gateway": [replace(EXAMPLE, **changes)]}).splitlines()
    assert len(lines) == (3 if remark else 2)
    assert remark in lines[-1]


def test_latencies_are_what_a_share_of_the_calls_stayed_within() -> None:
    sample = Sample(2.0, [number / 1000 for number in range(100, 0, -1)], Counter({200: 100}))
    assert (sample.latency_ms(0.5), sample.latency_ms(0.99), sample.latency_ms(1)) == (51.0, 100.0, 100.0)
    assert sample.per_second == 50


def test_a_message_ends_where_its_length_says() -> None:
    message = split_message(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP")
    assert message == (b"HTTP/1.1 200 OK", b"abc", b"HTTP")
    assert split_message(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc") is None
    assert split_message(b"HTTP/1.1 200 OK\r\nContent-Le") is None

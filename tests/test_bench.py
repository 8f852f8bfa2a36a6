"""``make bench`` in its short form: that it measures what it says. How fast is a person's question, not a test's."""

import base64
import contextlib
import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from bench import compare, nginx, peer_programs, provider
from bench.bars import Bar
from bench.framing import split_message, wanted
from bench.load import Sample
from bench.report import Figures, medians, table, with_rounds

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = Figures(1000.0, 60.0, 80.0, 0.5, 0.2, 100.0, 0.95, 0.01, 0.6)


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark pins programs to cores and reads /proc")
@pytest.mark.alone
def test_it_measures_every_rung_and_finds_every_call_in_the_ledger(tmp_path: Path) -> None:
    output = tmp_path / "results" / "short.json"
    options = ["--seconds", "0.1", "--rounds", "1", "--connections", "1", "64", "--output", str(output)]
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
    assert result["recorded"] > 0
    assert result["levels"].keys() == {"1", "64"}
    rungs = {"direct", "bare pass-through", "gateway"} | ({"nginx proxy_pass"} if nginx.find() else set())
    assert ("nginx isn't installed" in printed) == (nginx.find() is None)
    for targets in result["levels"].values():
        assert targets.keys() == rungs
        for name, target in targets.items():
            assert name in printed
            assert len(target["rounds"]) == 1
            assert target["requests_per_second"] > 0
            assert 0 < target["p50_ms"] <= target["p99_ms"]
    assert result["levels"]["64"]["gateway"]["memory_mb"] > 0
    assert result["roundtrips_ms"][0] > 0
    bars = [bar["name"] for bar in result["bars"]]
    assert len(bars) == 5
    assert all(name in printed for name in bars)
    assert list(compare.lines(result, result))[-1].startswith("p50 added at 1 connection: ")


def figures(**changes: float) -> dict[str, Any]:
    return with_rounds({"bare pass-through": [EXAMPLE], "gateway": [replace(EXAMPLE, **changes)]})


def saved(commit: str, machine: str = "one", **changes: float) -> dict[str, Any]:
    bar = Bar("p99 / p50 (x)", changes.get("p99_ms", 80.0) / 60, "", 4, 2.5).as_json()
    return {"commit": commit, "at": "now", "machine": machine, "levels": {"64": figures(**changes)}, "bars": [bar]}


def test_two_results_are_compared_as_ratios() -> None:
    lines = list(compare.lines(saved("a"), saved("b", p99_ms=40.0, web_cpu_ms=0.25)))
    assert lines[0].startswith("a (now) -> b (now)")
    assert lines[3].split() == ["gateway", "1.00x", "1.00x", "0.50x", "0.50x", "1.00x", "1.00x", "0.50x"]
    assert lines[4] == "p99 / p50: 1.33 -> 0.667"
    assert "different machines" in list(compare.lines(saved("a"), saved("b", "two")))[1]


def test_a_result_is_found_by_its_commit(tmp_path: Path) -> None:
    for commit in ("60828b4c1066", "a208c22d7788"):
        (tmp_path / f"ladder-{commit}.json").write_text("{}")
    assert compare.find("a208", tmp_path).name == "ladder-a208c22d7788.json"
    assert compare.find(str(tmp_path / "ladder-60828b4c1066.json")).exists()
    with pytest.raises(FileNotFoundError, match="no result ffff"):
        compare.find("ffff", tmp_path)


def test_a_line_says_whether_a_figure_reaches_its_bar() -> None:
    assert Bar("cost", 6.04, "x", 8, 5).line() == "cost: 6.04x (bar <= 8x: yes, reach <= 5x: NO)"
    speed = Bar("speed", 14_000, "/s", 15_000, 30_000, least=True)
    assert speed.line() == "speed: 14,000/s (bar >= 15,000/s: NO, reach >= 30,000/s: NO)"
    assert (speed.as_json()["met"], Bar("failed", 0, "", 0, 0).as_json()["met"]) == (False, True)


def test_a_peer_that_cannot_be_installed_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_programs, "FOLDER", tmp_path)
    for command, reason in (([sys.executable, "-c", "exit('no such package')"], "no such package"), (["/"], "reached")):
        with pytest.raises(peer_programs.MissingPeer, match=reason):
            peer_programs._install("Peer", command)


def test_the_provider_sends_what_is_asked_for() -> None:
    message = split_message(provider._images(1000, 4))
    assert message is not None
    data = json.loads(message.body)["data"]
    assert [len(base64.b64decode(image["b64_json"])) for image in data] == [1000] * 4


def test_nginx_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    command = nginx.command("/usr/sbin/nginx", tmp_path, 8080, "http://127.0.0.1:9000/v1/images/generations")
    text = Path(command[-1]).read_text()
    assert "proxy_pass http://provider/v1/images/generations;" in text
    assert "server 127.0.0.1:9000;" in text
    assert all(str(tmp_path) in line for line in text.splitlines() if "temp_path" in line or "pid " in line)


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
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    assert split_message(chunked) is None
    assert split_message(chunked + b"0\r\n\r\n") == (b"HTTP/1.1 200 OK", b"3\r\nabc\r\n0\r\n\r\n", b"")


def test_a_long_message_says_when_to_look_again() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n"
    assert wanted(head + b"abc") == len(head) + 4_000_000
    assert wanted(head[:30]) == wanted(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3") == 0

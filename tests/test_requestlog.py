"""The line that each request leaves on standard error."""

import json
import logging
import os
import time

import pytest

from gateway import requestlog

REQUEST = requestlog.Fields(
    request_id="019aa0b0-0000-7000-8000-000000000000",
    route="generate-image",
    method="POST",
    status=200,
    type="",
    ms=12.34567,
    upstream_ms=None,
    tenant=3,
    token=5,
    address="203.0.113.9",
    model="demo",
    n=2,
    tokens=4182,
)


def test_a_line_is_one_json_object(capfd: pytest.CaptureFixture[str]) -> None:
    requestlog.write(**REQUEST)
    output = capfd.readouterr().err
    assert output.endswith("\n")
    assert output.count("\n") == 1
    line = json.loads(output)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "gateway.requestlog",
        "request_id": "019aa0b0-0000-7000-8000-000000000000",
        "route": "generate-image",
        "method": "POST",
        "status": 200,
        "ms": 12.35,
        "tenant": 3,
        "token": 5,
        "address": "203.0.113.9",
        "model": "demo",
        "n": 2,
        "tokens": 4182,
    }


def test_what_a_client_sends_stays_one_short_line(capfd: pytest.CaptureFixture[str]) -> None:
    request = REQUEST.copy()
    request["client_request_id"] = 'a"\n{' + "x" * 5_000
    requestlog.write(**request)
    output = capfd.readouterr().err
    assert output.count("\n") == 1
    assert len(json.loads(output)["client_request_id"]) == requestlog.LONGEST_CLIENT_ID


def test_above_info_there_is_no_line(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger=requestlog.logger.name):
        requestlog.write(**REQUEST)
    assert capfd.readouterr().err == ""


def test_a_log_that_fails_does_not_fail_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(requestlog, "STANDARD_ERROR", writer)
    try:
        requestlog.write(**REQUEST)  # EPIPE
    finally:
        os.close(writer)
    requestlog.write(**REQUEST)  # EBADF


def test_a_line_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - its descriptor is what counts
        monkeypatch.setattr(requestlog, "STANDARD_ERROR", nowhere.fileno())
        rounds = []
        for _ in range(5):
            begun = time.process_time()
            for _ in range(2_000):
                requestlog.write(**REQUEST)
            rounds.append((time.process_time() - begun) / 2_000)
    assert min(rounds) < 10e-6 * 3, "10 µs is the aim; a busy machine gets three times that"

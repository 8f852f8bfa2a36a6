"""The sandbox provider, over real HTTP: every directive, real pictures, and its record of what was spent."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

KEY = "sandbox-key-of-the-tests"
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Sandbox:
    process: subprocess.Popen[str]
    url: str
    data: Path

    def client(self, key: str = KEY) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=10, trust_env=False)

    def generate(self, prompt: str, **fields: Any) -> httpx.Response:
        """One call, on a connection of its own; a small picture unless the fields say otherwise."""
        with self.client() as client:
            return client.post(
                "/v1/images/generations",
                json={"prompt": prompt, "size": "256x256", **fields},
                headers={"X-Request-Id": "r-1"},
            )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.data / "generations.jsonl").read_text().splitlines()]

    def raw(self, prompt: str, read_for: float = 5.0) -> bytes:
        """Every byte answered until the sandbox closes the connection, or for `read_for` seconds."""
        body = json.dumps({"prompt": prompt, "size": "256x256"}).encode()
        head = (
            f"POST /v1/images/generations HTTP/1.1\r\nHost: sandbox\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        answer = bytearray()
        with socket.create_connection(("127.0.0.1", httpx.URL(self.url).port or 0)) as connection:
            connection.sendall(head.encode() + body)
            until = time.monotonic() + read_for
            while (left := until - time.monotonic()) > 0:
                connection.settimeout(left)
                try:
                    part = connection.recv(65536)
                except TimeoutError:
                    break
                if not part:
                    break
                answer += part
        return bytes(answer)


def start(data: Path, *arguments: str) -> Sandbox:
    environment = {**os.environ, "SANDBOX_DATA": str(data), "SANDBOX_KEY": KEY, "PYTHONWARNINGS": "error"}
    environment.pop("SANDBOX_PUBLIC_URL", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith("sandbox ready on "), ready
    return Sandbox(process, ready.removeprefix("sandbox ready on ").strip(), data)


def end(sandbox: Sandbox) -> int:
    sandbox.process.terminate()
    try:
        return sandbox.process.wait(10)
    finally:
        sandbox.process.kill()
        assert sandbox.process.stdout is not None
        sandbox.process.stdout.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    sandbox = start(tmp_path_factory.mktemp("sandbox") / "data", "--port", "0")
    yield sandbox
    end(sandbox)


@pytest.fixture
def sandbox(running: Sandbox) -> Sandbox:
    """The running sandbox with an empty record (it appends, so truncating is safe between calls)."""
    os.truncate(running.data / "generations.jsonl", 0)
    return running


def picture(answer: httpx.Response, index: int = 0) -> bytes:
    return base64.b64decode(answer.json()["data"][index]["b64_json"])


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.convert("RGB").tobytes()


@pytest.mark.parametrize("size", ["256x256", "512x512", "1024x1024", "1536x1024", "1024x1536", "auto"])
def test_it_draws_a_png_of_the_size_asked_for(sandbox: Sandbox, size: str) -> None:
    answer = sandbox.generate("a lighthouse at dusk", size=size)
    assert answer.status_code == 200
    with Image.open(io.BytesIO(picture(answer))) as image:
        image.load()
        drawn = f"{image.width}x{image.height}"
    assert image.format == "PNG"
    assert drawn == answer.json()["size"] == ("1024x1024" if size == "auto" else size)
    assert sandbox.lines()[0]["size"] == drawn


def test_it_draws_another_picture_for_another_prompt_and_number_and_the_same_one_again(
    sandbox: Sandbox,
) -> None:
    first, again = (sandbox.generate("a lighthouse", n=3) for _ in range(2))
    other = sandbox.generate("a lighthouse at dusk", n=3)
    drawn = [pixels(picture(answer, k)) for answer in (first, other) for k in range(3)]
    assert len(set(drawn)) == 6
    assert [pixels(picture(again, k)) for k in range(3)] == drawn[:3]
    assert all(len(set(image)) > 100 for image in drawn)


def test_it_reports_usage_within_its_bound_that_varies_and_agrees_with_its_record(sandbox: Sandbox) -> None:
    prompt = "a garden of glass, élan"
    bound = 2 * 1200 + len(prompt.encode())
    totals = []
    for _ in range(12):
        usage = sandbox.generate(prompt, n=2, model="gem-1").json()["usage"]
        assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]
        assert usage["input_tokens_details"] == {"text_tokens": usage["input_tokens"], "image_tokens": 0}
        assert 0.4 * bound <= usage["total_tokens"] <= 0.95 * bound
        totals.append(usage["total_tokens"])
    assert len(set(totals)) > 6
    lines = sandbox.lines()
    assert [line["usage"]["total_tokens"] for line in lines] == totals
    assert {**lines[0], "at": "", "usage": {}} == {
        "at": "",
        "request_id": "r-1",
        "model": "gem-1",
        "size": "256x256",
        "n": 2,
        "usage": {},
        "directive": None,
    }
    assert lines[0]["at"].endswith("+00:00")


def test_it_keeps_no_prompt_and_no_key_on_disk(sandbox: Sandbox) -> None:
    sandbox.generate("a very private wish [sandbox tokens=5]", response_format="url")
    for file in sandbox.data.rglob("*"):
        if file.is_file():
            assert b"private" not in file.read_bytes()
            assert KEY.encode() not in file.read_bytes()
            assert file.stat().st_mode & 0o077 == 0
    assert sandbox.data.stat().st_mode & 0o777 == 0o700


def test_it_serves_what_it_answered_as_a_url(sandbox: Sandbox) -> None:
    entries = sandbox.generate("a pearl", n=2, response_format="url").json()["data"]
    same = sandbox.generate("a pearl", n=2)
    with httpx.Client(trust_env=False) as anyone:
        for k, entry in enumerate(entries):
            answer = anyone.get(entry["url"])
            assert answer.headers["content-type"] == "image/png"
            assert answer.content == picture(same, k)
        assert anyone.get(f"{sandbox.url}/images/{'0' * 32}.png").status_code == 404
        assert anyone.get(f"{sandbox.url}/images/..%2Fgenerations.jsonl").status_code == 404


def test_it_drops_pictures_after_an_hour(sandbox: Sandbox) -> None:
    url = sandbox.generate("an old pearl", response_format="url").json()["data"][0]["url"]
    file = sandbox.data / "images" / url.rsplit("/", 1)[1]
    os.utime(file, (time.time() - 3601, time.time() - 3601))
    sandbox.generate("a new pearl", response_format="url")
    assert not file.exists()


def test_the_openai_sdk_gets_on_with_it(sandbox: Sandbox) -> None:
    with (
        openai.DefaultHttpxClient(trust_env=False) as http,
        openai.OpenAI(base_url=f"{sandbox.url}/v1", api_key=KEY, http_client=http, max_retries=0) as client,
    ):
        result = client.images.generate(prompt="a ruby", model="sandbox-image-1", size="512x512", n=1)
        assert result.usage is not None and result.usage.total_tokens > 0
        assert [model.id for model in client.models.list()] == ["sandbox-image-1"]
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt="[sandbox status=400]", model="sandbox-image-1")
    assert refused.value.code == "moderation_blocked"


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", f"Basic {KEY}", KEY, "Bearer sché"])
def test_it_demands_its_key(sandbox: Sandbox, header: str | None) -> None:
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    with httpx.Client(trust_env=False) as client:
        answer = client.post(f"{sandbox.url}/v1/images/generations", json={"prompt": "a ruby"}, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert sandbox.lines() == []


def test_it_answers_unknown_paths_and_methods_like_openai(sandbox: Sandbox) -> None:
    with sandbox.client() as client:
        for method, path, status in (
            ("GET", "/v1/nothing", 404),
            ("POST", "/", 404),
            ("GET", "/v1/images/generations", 405),
            ("POST", "/images/x.png", 405),
        ):
            answer = client.request(method, path)
            assert answer.status_code == status
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x" * 32_001}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"size": "300x300"}, "size"),
        ({"response_format": "png"}, "response_format"),
        ({"model": 5}, "model"),
        ({"stream": True}, "stream"),
        ({"prompt": "[sandbox dealy=2s]"}, "prompt"),
        ({"prompt": "[sandbox delay=2]"}, "prompt"),
        ({"prompt": "[sandbox delay=601s]"}, "prompt"),
        ({"prompt": "[sandbox status=200]"}, "prompt"),
        ({"prompt": "[sandbox usage=none]"}, "prompt"),
        ({"prompt": "[sandbox tokens=-1]"}, "prompt"),
        ({"prompt": "[sandbox drop=midway body=huge]"}, "prompt"),
        ({"prompt": "[sandbox tokens=1 tokens=2]"}, "prompt"),
    ],
)
def test_it_refuses_a_wrong_request_and_names_the_field(sandbox: Sandbox, fields: dict[str, Any], param: str) -> None:
    answer = sandbox.generate(**{"prompt": "a ruby", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert sandbox.lines() == []


def test_it_refuses_what_is_not_json_or_too_large_or_not_http(sandbox: Sandbox) -> None:
    with sandbox.client() as client:
        assert client.post("/v1/images/generations", content=b"{").status_code == 400
        assert client.post("/v1/images/generations", content=b"[]").status_code == 400
        assert client.post("/v1/images/generations", content=b"\xff\xfe\xfa").status_code == 400
        assert client.post("/v1/images/generations", content=b" " * (1 << 20) + b"{}").status_code == 413
    with socket.create_connection(("127.0.0.1", httpx.URL(sandbox.url).port or 0), timeout=5) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("delay", ["300ms", "0.3s"])
def test_a_delay_is_slept_without_holding_up_other_calls(sandbox: Sandbox, delay: str) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: sandbox.generate(f"slow [sandbox delay={delay}]"), range(8)))
    assert 0.3 <= time.monotonic() - began < 2.2
    assert {answer.status_code for answer in answers} == {200}
    assert sandbox.lines()[0]["directive"] == f"delay={delay}"


@pytest.mark.parametrize("status", [400, 401, 408, 429, 500, 503, 504])
def test_a_status_is_answered_in_the_error_shape_and_nothing_is_drawn(sandbox: Sandbox, status: int) -> None:
    answer = sandbox.generate(f"x [sandbox status={status}]")
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)
    assert sandbox.lines() == []


@pytest.mark.parametrize(
    ("directive", "total"),
    [
        ("usage=missing", None),
        ("usage=missing tokens=9", None),
        ("usage=zero", 0),
        ("usage=absurd", 10**12),
        ("tokens=123", 123),
        ("usage=parts tokens=77", 77),
        ("tokens=0", 0),
    ],
)
def test_usage_is_falsified_as_asked_and_recorded_as_answered(
    sandbox: Sandbox, directive: str, total: int | None
) -> None:
    answer = sandbox.generate(f"a ruby [sandbox {directive}]").json()
    line = sandbox.lines()[0]
    assert line["usage"] == {"total_tokens": total}
    assert line["directive"] == directive
    if total is None:
        assert "usage" not in answer
    else:
        usage = answer["usage"]
        parts = 0 if "parts" in directive else total
        assert usage["total_tokens"] == total
        assert usage["input_tokens"] + usage["output_tokens"] == parts


def test_usage_parts_reports_a_real_total_of_empty_parts(sandbox: Sandbox) -> None:
    usage = sandbox.generate("a ruby [sandbox usage=parts]").json()["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (0, 0)
    assert 0.4 * 1200 <= usage["total_tokens"] <= 1200
    assert sandbox.lines()[0]["usage"]["total_tokens"] == usage["total_tokens"]


@pytest.mark.parametrize(("drop", "recorded"), [("unread", 0), ("after_draw", 1)])
def test_a_dropped_connection_gives_not_a_single_byte(sandbox: Sandbox, drop: str, recorded: int) -> None:
    assert sandbox.raw(f"x [sandbox drop={drop}]") == b""
    with pytest.raises(httpx.RemoteProtocolError):
        sandbox.generate(f"x [sandbox drop={drop}]")
    assert len(sandbox.lines()) == 2 * recorded


def test_a_connection_dropped_midway_breaks_off_inside_the_body(sandbox: Sandbox) -> None:
    head, _, body = sandbox.raw("x [sandbox drop=midway]").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert len(body) == length // 2
    with pytest.raises(httpx.RemoteProtocolError):
        sandbox.generate("x [sandbox drop=midway]")
    assert len(sandbox.lines()) == 2


def test_a_garbage_body_is_a_200_that_is_not_json(sandbox: Sandbox) -> None:
    answer = sandbox.generate("x [sandbox body=garbage]")
    assert answer.status_code == 200
    with pytest.raises(ValueError, match="Expecting value"):
        answer.json()
    assert len(sandbox.lines()) == 1


def test_a_huge_body_streams_a_hundred_megabytes(sandbox: Sandbox) -> None:
    request = {"prompt": "x [sandbox body=huge]", "size": "256x256"}
    with (
        sandbox.client() as client,
        client.stream("POST", "/v1/images/generations", json=request) as answer,
    ):
        assert "content-length" not in answer.headers
        total, last = 0, b""
        for part in answer.iter_bytes():
            total, last = total + len(part), part
    assert 100 << 20 < total < 102 << 20
    assert last.endswith(b"}")


def test_a_caller_that_turns_away_from_a_huge_body_leaves_the_sandbox_well(sandbox: Sandbox) -> None:
    for _ in range(3):
        sandbox.raw("x [sandbox body=huge]", read_for=0.05)
    assert sandbox.generate("x").status_code == 200


def test_a_dripping_body_comes_a_byte_at_a_time(sandbox: Sandbox) -> None:
    head, _, body = sandbox.raw("x [sandbox body=drip]", read_for=1.3).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert 1 <= len(body) <= 4
    assert len(sandbox.lines()) == 1


def test_64_connections_at_once_each_leave_one_whole_line(sandbox: Sandbox) -> None:
    def call(k: int) -> tuple[str, int]:
        with sandbox.client() as client:
            for turn in range(2):  # the second call goes over the same, kept connection
                request_id = f"{k}-{turn}"
                answer = client.post(
                    "/v1/images/generations",
                    json={"prompt": f"gem {k}", "size": "256x256"},
                    headers={"X-Request-Id": request_id},
                )
            return request_id, int(answer.json()["usage"]["total_tokens"])

    with ThreadPoolExecutor(64) as pool:
        answered = dict(pool.map(call, range(64)))
    recorded = {line["request_id"]: line["usage"]["total_tokens"] for line in sandbox.lines()}
    assert len(sandbox.lines()) == len(recorded) == 128
    assert answered.items() <= recorded.items()


def test_a_connection_is_kept_and_the_record_is_written_before_the_answer(sandbox: Sandbox) -> None:
    with sandbox.client() as client:
        ports = set()
        for k in range(3):
            answer = client.post("/v1/images/generations", json={"prompt": "x", "size": "256x256"})
            assert len(sandbox.lines()) == k + 1
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(ports) == 1


def test_sigterm_lets_the_call_in_flight_finish_and_leaves_with_0(tmp_path: Path) -> None:
    sandbox = start(tmp_path / "data", "--port", "0")
    with sandbox.client() as idle, ThreadPoolExecutor(1) as pool:
        idle.get("/v1/models")
        flight = pool.submit(sandbox.generate, "x [sandbox delay=1s]")
        time.sleep(0.4)
        sandbox.process.send_signal(signal.SIGTERM)
        assert flight.result().status_code == 200
        assert sandbox.process.wait(3) == 0
    assert len(sandbox.lines()) == 1
    end(sandbox)


def test_it_listens_on_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    refused = subprocess.run(
        [sys.executable, "-m", "sandbox", "--uds", str(path)],
        cwd=ROOT,
        env={"SANDBOX_DATA": str(tmp_path / "data"), "SANDBOX_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert refused.returncode == 1
    assert "SANDBOX_PUBLIC_URL" in refused.stderr
    environment = {
        "SANDBOX_DATA": str(tmp_path / "data"),
        "SANDBOX_KEY": KEY,
        "SANDBOX_PUBLIC_URL": "http://sandbox.test/",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", "--uds", str(path)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        answer = client.post(
            "http://sandbox/v1/images/generations",
            json={"prompt": "x", "size": "256x256", "response_format": "url"},
            headers={"Authorization": f"Bearer {KEY}"},
        )
    assert answer.json()["data"][0]["url"].startswith("http://sandbox.test/images/")
    assert end(Sandbox(process, "", tmp_path)) == 0
    assert not path.exists()

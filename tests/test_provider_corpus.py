"""A corpus of broken provider answers: each ends in one outcome, shaped as documented, and shows nothing of itself."""

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import catalog, judging
from gateway.models import Model, Provider
from gateway.upstream import Answer
from tests import processes
from tests.apidocument import problems
from tests.brokenanswers import CASES, MARK, Case
from tests.conftest import SANDBOX_KEY, Customer, Gateway, point_at
from tests.ledgerwatch import in_flight, rows
from tests.rawservers import RawServer
from tokens import issuing
from usage.models import UsageRecord

SIZE = "256x256"


@dataclass
class Played:
    """The whole corpus, played once: every case's answer, the rows of its call, and what the gateway logged."""

    answers: dict[str, httpx.Response]
    rows: dict[str, list[UsageRecord]]
    requests: dict[str, int]
    logged: str
    open: int


class Playing(RawServer):
    """Answers with the raw bytes of the case that the prompt names; counts the requests of each."""

    def __init__(self) -> None:
        self.came: dict[str, int] = dict.fromkeys(CASES, 0)
        super().__init__(play)


def play(server: RawServer, connection: socket.socket) -> None:
    assert isinstance(server, Playing)
    data = b""
    while not data.endswith(b"}"):
        chunk = connection.recv(65536)
        if not chunk:
            return
        data += chunk
    name = json.loads(data.partition(b"\r\n\r\n")[2])["prompt"]
    server.came[name] += 1
    with contextlib.suppress(OSError):
        connection.sendall(CASES[name].raw)
        connection.shutdown(socket.SHUT_WR)


def logs(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in folder.glob("web-*.log")}


@pytest.fixture(scope="module")
def played(gateway: Gateway, django_db_blocker: Any) -> Iterator[Played]:
    with django_db_blocker.unblock():
        name, server = f"corpus-{uuid.uuid4().hex[:12]}", Playing()
        point_at(server.url, name=name, default=False)
        tenant = issuing.create_tenant(name, name, origins=["*"], model=name)
        member = issuing.add_member(tenant, f"{name}@example.com")
        customer = Customer(tenant, member, *issuing.issue_token(member, name="test"))
        customer.limit("requests:100000/day", "images:100000/day")
        time.sleep(1.2)  # the gateway reads the catalog every second
        before = logs(gateway.folder)
        with ThreadPoolExecutor(8) as threads:
            asked = {
                case: threads.submit(gateway.post, customer.secret, {"prompt": case, "size": SIZE, "n": 2})
                for case in CASES
            }
            answers = {case: future.result() for case, future in asked.items()}

        def logged() -> str:
            return b"".join(path.read_bytes()[before.get(path, 0) :] for path in logs(gateway.folder)).decode()

        # A request's line is written after its answer has gone.
        processes.wait_until(lambda: logged().count('"request"') >= len(CASES), what="each call's line in the log")
        ledger: dict[str, list[UsageRecord]] = {}
        for row in rows(customer):
            ledger.setdefault(str(row.request_id), []).append(row)
        yield Played(answers, ledger, server.came, logged(), in_flight(customer))
        server.close()
        Model.objects.filter(name=name).delete()
        Provider.objects.filter(name=name).delete()
        catalog.publish()


def differences(case: Case, answer: httpx.Response, booked: list[UsageRecord]) -> list[str]:
    """Where a case came to something else than it must, in words."""
    found = problems(answer)
    kind = "" if answer.status_code == 200 else answer.json()["error"]["type"]
    if (answer.status_code, kind) != (case.status, case.type):
        found.append(f"answered {answer.status_code} {kind}")
    if [row.kind for row in booked] != [case.kind]:
        found.append(f"booked as {[row.kind for row in booked]}")
    elif case.reason is not None and booked[0].reason != case.reason:
        found.append(f"booked for {booked[0].reason!r}")
    elif case.provenance is not None and booked[0].provenance != case.provenance:
        found.append(f"usage {booked[0].provenance}")
    told = answer.text + str(answer.headers)
    found += [f"shows {secret!r}" for secret in (MARK, SANDBOX_KEY, "theirs", "Traceback", "svg") if secret in told]
    may_be_charged = case.kind == "unresolved"
    if (answer.headers.get("x-should-retry") == "false") != may_be_charged:
        found.append("x-should-retry is wrong")
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_broken_answer_has_one_end(played: Played, name: str) -> None:
    answer = played.answers[name]
    booked = played.rows.get(answer.headers["x-request-id"], [])
    assert differences(CASES[name], answer, booked) == []
    assert played.requests[name] == 1, "one call, never followed or repeated"
    if CASES[name].kind == "unresolved":
        assert booked[0].images == 2


def test_the_corpus_is_large_and_leaves_nothing_behind(played: Played) -> None:
    assert len(CASES) >= 100
    assert {case.kind for case in CASES.values()} == {"exact", "void", "unresolved"}
    assert played.open == 0
    assert len(played.rows) == len(CASES), "one call each, nothing else"
    assert played.logged.count('"request"') >= len(CASES), "the control: the log was read"
    for word in ("Traceback", MARK, SANDBOX_KEY, "a view failed", "a request failed"):
        assert word not in played.logged


def test_images_that_were_delivered_are_passed_on_and_no_more_than_asked_for(played: Played) -> None:
    for name, case in CASES.items():
        if case.kind == "exact":
            data = played.answers[name].json()["data"]
            assert len(data) == (2 if name == "more-images-than-asked" else 1), name
            assert all(entry["url"].startswith(("https://images.example/", "http://127.0.0.1")) for entry in data)
    assert "/images/" in played.answers["picture-and-link"].json()["data"][0]["url"], "ours, not the provider's"


def test_what_is_kept_of_headers_is_bounded(played: Played) -> None:
    by_name = {name: played.rows[answer.headers["x-request-id"]][0] for name, answer in played.answers.items()}
    assert by_name["headers-of-our-names"].provider_request_id == "theirs"
    assert len(by_name["request-id-of-20-KB"].provider_request_id) <= 200
    busy = [answer for answer in played.answers.values() if answer.status_code == 503]
    assert busy
    assert all(1 <= int(answer.headers["retry-after"]) <= 3600 for answer in busy)


def test_control_a_wrong_end_is_noticed(played: Played) -> None:
    answer = played.answers["data-null"]
    booked = played.rows[answer.headers["x-request-id"]]
    right = CASES["data-null"]
    assert differences(right, answer, booked) == []
    for wrong in (right._replace(kind="void"), right._replace(type="upstream_failed"), right._replace(reason="x")):
        assert differences(wrong, answer, booked)
    assert differences(right, answer, []), "a call that is not booked"
    assert differences(right, answer, [*booked, *booked]), "or twice"
    leaking = httpx.Response(500, headers=answer.headers, content=answer.content.replace(b"remote", MARK.encode()))
    assert differences(right, leaking, booked)


def test_control_a_judge_that_believes_the_body_alone_would_charge_for_nothing() -> None:
    """Without the table of statuses, an answer of any status with an image in it would be a success."""
    wrong = 0
    for name, case in CASES.items():
        if name.startswith("status-") and case.raw.endswith(b"}"):
            body = case.raw.partition(b"\r\n\r\n")[2]
            wrong += isinstance(judging.judge(Answer(200, body), 2, 1000), judging.Delivered) and case.kind != "exact"
    assert wrong >= 5

"""Never sent, or outcome unknown: the shipped transport against providers that break off, hang or answer nonsense."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from pyreqwest.exceptions import ConnectError, ConnectTimeoutError, PoolTimeoutError

from gateway import catalog
from gateway.models import Model, Provider
from gateway.upstream import Upstream, UpstreamError, _Body
from gateway.validation import GenerationRequest
from tests import processes, rawservers
from tests.conftest import Customer, Gateway, point_at
from tests.ledgerwatch import in_flight, outcome
from tests.rawservers import RawServer

DEADLINE = 1.0


class Expected(NamedTuple):
    """What a fault must end in; `requests` is how many complete requests the provider may have seen."""

    kind: str
    type: str
    requests: int
    reason: str


NOT_SENT = Expected("void", "upstream_failed", 0, "not_dispatched")
UNKNOWN = Expected("unresolved", "outcome_unknown", 1, "upstream_failed")
FAULTS: dict[str, tuple[Any, Expected]] = {
    "refused": ("http://127.0.0.1:1", NOT_SENT),
    "no-name": ("http://no-such-host.invalid", NOT_SENT),
    "no-tls": (rawservers.no_tls, NOT_SENT),
    "untrusted": (rawservers.untrusted, NOT_SENT),
    "blackhole": (rawservers.blackhole, NOT_SENT._replace(type="upstream_timeout")),
    "close": (rawservers.close_after_reading, UNKNOWN),
    "reset-read": (rawservers.reset_after_reading, UNKNOWN),
    "hang": (
        rawservers.hang_after_reading,
        UNKNOWN._replace(type="upstream_timeout", reason="upstream_timeout"),
    ),
    "unread": (
        rawservers.hang_before_reading,
        UNKNOWN._replace(type="upstream_timeout", reason="upstream_timeout", requests=0),
    ),
    "half": (rawservers.half_an_answer, UNKNOWN),
    "half-chunked": (rawservers.half_a_chunked_answer, UNKNOWN),
    "garbage": (rawservers.garbage, UNKNOWN),
    "html": (rawservers.html, UNKNOWN._replace(reason="provider_503")),
    "huge-header": (rawservers.one_huge_header, UNKNOWN),
    "many-headers": (rawservers.many_headers, UNKNOWN),
    "endless-headers": (rawservers.endless_headers, UNKNOWN),
    "interim": (
        rawservers.endless_interim_answers,
        UNKNOWN._replace(type="upstream_timeout", reason="upstream_timeout"),
    ),
    "longer": (rawservers.longer_than_declared, UNKNOWN._replace(reason="no_image")),
    "zip-bomb": (rawservers.zip_bomb, UNKNOWN._replace(reason="no_image")),
    "redirect": (rawservers.redirect, UNKNOWN._replace(reason="provider_307")),
}
OTHERS = {"reset": rawservers.reset_on_accept, "idle": rawservers.close_when_idle, "second": rawservers.close_on_second}


@pytest.fixture(scope="module")
def faulty(
    provider: Path, tmp_path_factory: pytest.TempPathFactory, django_db_blocker: Any
) -> Iterator[dict[str, RawServer | str]]:
    """Every faulty provider with a model of its name."""
    with contextlib.ExitStack() as stack, django_db_blocker.unblock():
        made: dict[str, RawServer | str] = {}
        rawservers.bomb()
        for name, behave in {**{name: fault for name, (fault, _) in FAULTS.items()}, **OTHERS}.items():
            if isinstance(behave, str):
                made[name] = behave
            elif behave is rawservers.blackhole:
                made[name] = stack.enter_context(rawservers.blackhole())
            elif behave is rawservers.untrusted:
                made[name] = RawServer(rawservers.untrusted(tmp_path_factory.mktemp("tls")), "https")
            else:
                made[name] = RawServer(behave, "https" if name == "no-tls" else "http")
        for name, server in made.items():
            point_at(server if isinstance(server, str) else server.url, name=name, default=False)
        yield made
        for server in made.values():
            if isinstance(server, RawServer):
                server.close()
        Model.objects.filter(name__in=made).delete()
        Provider.objects.filter(name__in=made).delete()
        catalog.publish()


@pytest.fixture(scope="module")
def impatient_server(provider: Path, faulty: Any) -> Iterator[tuple[str, processes.Process]]:
    """A web process with short deadlines and a low limit for answers."""
    with processes.web(
        provider,
        UPSTREAM_DEADLINE=str(DEADLINE),
        LEASE_MARGIN="1",
        UPSTREAM_CONNECT_TIMEOUT="0.4",
        UPSTREAM_ANSWER_LIMIT=str(4 << 20),
        BREAKER_FAILURES="0",
    ) as made:
        yield made


@pytest.fixture
def impatient(provider: Path, impatient_server: tuple[str, processes.Process]) -> Iterator[Gateway]:
    with httpx.Client(timeout=20) as client:
        yield Gateway(impatient_server[0], provider, client)


def most_memory(process: processes.Process) -> int:
    """The most memory that the web process has ever held, in KB."""
    (worker,) = process.children()
    status = Path(f"/proc/{worker}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def seen(server: RawServer | str) -> int:
    return server.requests if isinstance(server, RawServer) else 0


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_as_void_only_if_nothing_was_sent(
    name: str,
    impatient: Gateway,
    impatient_server: tuple[str, processes.Process],
    faulty: dict[str, Any],
    make_customer: Any,
) -> None:
    expected, process = FAULTS[name][1], impatient_server[1]
    customer = make_customer(model=name)
    customer.limit("requests:10/day", "images:10/day", "concurrent:1")
    before, held = seen(faulty[name]), most_memory(process)
    begun = time.monotonic()
    answer = impatient.post(customer.secret, {"prompt": "a lighthouse", "n": 2})
    assert time.monotonic() - begun < DEADLINE + 1
    assert most_memory(process) - held < 24 << 10  # KB
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, expected.type)
    assert answer.headers.get("x-should-retry") == (None if expected.kind == "void" else "false")
    row = outcome(answer.headers["x-request-id"])
    assert (row.outcome, row.reason) == (expected.kind, expected.reason)
    assert row.images == (0 if expected.kind == "void" else 2)
    assert seen(faulty[name]) - before == expected.requests
    assert in_flight(customer) == 0
    used = 0 if expected.kind == "void" else 2
    after = impatient.post(customer.secret, {"prompt": ""})
    assert after.headers["X-RateLimit-Remaining-Images"] == str(10 - used)


def test_a_reset_connection_ends_as_what_our_own_flag_says(
    impatient: Gateway, faulty: dict[str, Any], make_customer: Any
) -> None:
    customer = make_customer(model="reset")
    for _ in range(10):  # whether our side has begun to send when the reset arrives is a race
        answer = impatient.post(customer.secret, {"prompt": "a lighthouse"})
        row = outcome(answer.headers["x-request-id"])
        expected = {"void": ("upstream_failed", None), "unresolved": ("outcome_unknown", "false")}[row.outcome]
        assert (answer.json()["error"]["type"], answer.headers.get("x-should-retry")) == expected
    assert faulty["reset"].requests == 0


def test_a_kept_connection_that_the_provider_closed_costs_no_call(
    impatient: Gateway, faulty: dict[str, Any], make_customer: Any
) -> None:
    customer = make_customer(model="idle")
    for number in range(1, 4):
        assert impatient.post(customer.secret, {"prompt": "a lighthouse"}).status_code == 200
        assert faulty["idle"].requests == number
        time.sleep(0.2)


def test_a_call_that_a_kept_connection_took_is_not_sent_again(
    impatient: Gateway, faulty: dict[str, Any], make_customer: Any
) -> None:
    customer = make_customer(model="second")
    answers = [impatient.post(customer.secret, {"prompt": "a lighthouse"}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 500, 200, 500]
    assert faulty["second"].requests == 4
    kinds = [outcome(answer.headers["x-request-id"]).outcome for answer in answers]
    assert kinds == ["exact", "unresolved", "exact", "unresolved"]


@pytest.mark.parametrize(("body", "type_"), [("huge", "outcome_unknown"), ("drip", "upstream_timeout")])
def test_an_endless_answer_takes_neither_memory_nor_time(
    body: str,
    type_: str,
    impatient: Gateway,
    impatient_server: tuple[str, processes.Process],
    customer: Customer,
) -> None:
    process = impatient_server[1]
    before, begun = most_memory(process), time.monotonic()
    answer = impatient.post(customer.secret, {"prompt": f"a gem [sandbox body={body}]", "size": "256x256"})
    assert time.monotonic() - begun < DEADLINE + 1
    assert most_memory(process) - before < 24 << 10  # KB, where the provider sends 100 MB
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, type_)
    assert outcome(answer.headers["x-request-id"]).outcome == "unresolved"


def test_a_body_that_was_not_taken_can_not_be_taken_afterwards() -> None:
    withdrawn, sent = _Body(b"a request"), _Body(b"a request")
    assert not withdrawn.was_taken()
    assert list(withdrawn.stream) == []
    assert next(sent.stream) == b"a request"
    assert sent.was_taken()


# The control: the same faults judged by the exception's type, as one would without a flag of one's own.

NAMES_OF_NEVER_SENT = (ConnectError, ConnectTimeoutError, PoolTimeoutError)


async def ask(server: RawServer | str, by_type: bool) -> str:
    """void or unresolved, for one call of `server` through the shipped transport."""
    url = server if isinstance(server, str) else server.url
    model = catalog.UpstreamModel("m", "p", f"{url}/v1", "key", "m", "", 1000, {"256x256": 1})
    upstream = Upstream(0.4, DEADLINE, 1 << 20, 1 << 20)
    try:
        await upstream.generate(model, GenerationRequest("a lighthouse", "256x256", 1, ()), "id")
    except UpstreamError as exc:
        if by_type:
            return "void" if isinstance(exc.__cause__, NAMES_OF_NEVER_SENT) else "unresolved"
        return "unresolved" if exc.dispatched else "void"
    finally:
        await upstream.close()
    return "complete"


async def test_control_the_exception_type_would_void_calls_that_were_sent() -> None:
    behaviours = [
        rawservers.close_after_reading,
        rawservers.reset_after_reading,
        rawservers.hang_after_reading,
        rawservers.garbage,
    ]
    wrong = []
    for behave in behaviours:
        server = RawServer(behave)
        assert await ask(server, by_type=False) == "unresolved"
        verdict = await ask(server, by_type=True)
        assert server.requests == 2
        wrong.append(verdict == "void")
        server.close()
    assert any(wrong)

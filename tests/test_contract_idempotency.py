"""Idempotency keys: one call to the provider however often a client tries, and the first answer for a day."""

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from config.redis import store
from tests.conftest import PATH, Customer, Gateway
from tests.contract import SMALL, assert_error, assert_images, drawings, ending
from tokens.admission import keys


@pytest.fixture
def key() -> dict[str, str]:
    """An Idempotency-Key of this test's own."""
    return {"Idempotency-Key": uuid.uuid4().hex}


def drawn_for(gateway: Gateway, *answers: httpx.Response) -> int:
    return sum(drawings(gateway, answer) for answer in answers)


def test_a_repeat_gets_the_first_answer_with_fresh_urls(
    gateway: Gateway, customer: Customer, key: dict[str, str]
) -> None:
    customer.limit("requests:10/day", "images:10/day", "tokens:100000/day")
    first = gateway.post(customer.secret, {**SMALL, "n": 2}, **key)
    time.sleep(1.05)  # URLs are signed to the second
    second = gateway.post(customer.secret, {**SMALL, "n": 2}, **key)
    one, two = assert_images(first, 2), assert_images(second, 2)
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert (one["created"], one["usage"]) == (two["created"], two["usage"])
    for before, after in zip(one["data"], two["data"], strict=True):
        assert before["url"].split("?")[0] == after["url"].split("?")[0], "the same image"
        assert before["url"] != after["url"]
        assert before["expires_at"] < after["expires_at"]
        assert gateway.client.get(after["url"]).status_code == 200
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert drawn_for(gateway, first, second) == 1
    for name in ("requests", "images", "tokens"):
        remaining = f"x-ratelimit-remaining-{name}"
        assert second.headers[remaining] == first.headers[remaining], "nothing is charged again"


def test_without_a_key_each_call_is_a_call(gateway: Gateway, customer: Customer) -> None:
    answers = [gateway.post(customer.secret, SMALL) for _ in range(2)]
    assert drawn_for(gateway, *answers) == 2


def test_the_same_request_may_be_written_otherwise(gateway: Gateway, customer: Customer, key: dict[str, str]) -> None:
    gateway.post(customer.secret, b'{"prompt":"a ruby","size":"256x256"}', **key)
    answer = gateway.post(customer.secret, b'{ "n": 1, "size": "256x256", "prompt": "a r\\u0075by" }', **key)
    assert answer.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("other", [{"prompt": "a ruby at dusk"}, {"size": "512x512"}, {"n": 2}])
def test_another_body_under_the_same_key_gets_422(
    gateway: Gateway, customer: Customer, key: dict[str, str], other: dict[str, object]
) -> None:
    customer.limit("requests:10/day")
    assert_images(gateway.post(customer.secret, SMALL, **key))
    answer = gateway.post(customer.secret, {**SMALL, **other}, **key)
    assert_error(answer, 422, "idempotency_mismatch")
    assert answer.headers["x-ratelimit-remaining-requests"] == "9"
    assert drawings(gateway, answer) == 0
    assert gateway.post(customer.secret, SMALL, **key).headers["idempotent-replayed"] == "true"


def test_keys_belong_to_a_token(
    gateway: Gateway, customer: Customer, make_customer: Callable[..., Customer], key: dict[str, str]
) -> None:
    answers = [gateway.post(one.secret, SMALL, **key) for one in (customer, make_customer())]
    assert drawn_for(gateway, *answers) == 2
    assert not [answer for answer in answers if "idempotent-replayed" in answer.headers]


def test_while_the_first_is_in_flight_a_second_gets_409(
    gateway: Gateway, customer: Customer, key: dict[str, str]
) -> None:
    customer.limit("requests:10/day")
    body = {**SMALL, "prompt": "a ruby [sandbox delay=1200ms]"}
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(gateway.post, customer.secret, body, **key) for _ in range(4)]
        answers = [future.result() for future in asked]
    admitted = [answer for answer in answers if answer.status_code == 200]
    assert len(admitted) == 1
    for answer in answers:
        if answer is not admitted[0]:
            assert_error(answer, 409, "in_flight")
            assert 1 <= int(answer.headers["retry-after"]) <= 20
            assert answer.headers["x-ratelimit-remaining-requests"] == "9"
    assert drawn_for(gateway, *answers) == 1
    assert gateway.post(customer.secret, body, **key).headers["idempotent-replayed"] == "true"


def test_control_without_a_key_they_are_all_drawn(gateway: Gateway, customer: Customer) -> None:
    body = {**SMALL, "prompt": "a ruby [sandbox delay=300ms]"}
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(gateway.post, customer.secret, body) for _ in range(4)]
        assert drawn_for(gateway, *(future.result() for future in asked)) == 4


def test_a_client_that_left_finds_its_answer_under_its_key(
    gateway: Gateway, customer: Customer, key: dict[str, str]
) -> None:
    body = {**SMALL, "prompt": "a ruby [sandbox delay=1s]"}
    headers = {"X-Proxy-Token": customer.secret, **key}
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(gateway.url + PATH, json=body, headers=headers, timeout=0.4)
    assert_error(gateway.post(customer.secret, body, **key), 409, "in_flight")
    time.sleep(1.2)
    answer = gateway.post(customer.secret, body, **key)
    assert_images(answer)
    assert answer.headers["idempotent-replayed"] == "true"


def test_an_unknown_outcome_is_replayed_and_never_tried_again(
    gateway: Gateway, customer: Customer, key: dict[str, str]
) -> None:
    body = {**SMALL, "prompt": "a ruby [sandbox drop=after_draw]"}
    answers = [gateway.post(customer.secret, body, **key) for _ in range(3)]
    for answer in answers:
        assert_error(answer, 500, "outcome_unknown")
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true"]
    assert drawn_for(gateway, *answers) == 1
    assert ending(answers[0]).kind == "unresolved"


@pytest.mark.parametrize(("status", "kind"), [(503, "upstream_failed"), (429, "unavailable")])
def test_a_void_call_forgets_the_key(
    gateway: Gateway, customer: Customer, key: dict[str, str], status: int, kind: str
) -> None:
    body = {**SMALL, "prompt": f"a ruby [sandbox status={status}]"}
    for _ in range(2):
        answer = gateway.post(customer.secret, body, **key)
        assert_error(answer, 503 if status == 429 else 500, kind)
        assert "idempotent-replayed" not in answer.headers
        assert ending(answer).kind == "void"
    assert_images(gateway.post(customer.secret, SMALL, **key)), "the key is free for any body"


def test_refused_requests_do_not_hold_their_key(gateway: Gateway, customer: Customer, key: dict[str, str]) -> None:
    customer.limit("images:1/day")
    assert_error(gateway.post(customer.secret, b"{}", **key), 400, "invalid_request")
    assert_error(gateway.post(customer.secret, {**SMALL, "n": 2}, **key), 400, "exceeds_limit")
    assert_images(gateway.post(customer.secret, SMALL))
    assert_error(gateway.post(customer.secret, SMALL, **key), 429, "quota_exceeded")
    customer.limit("images:2/day")
    answer = gateway.post(customer.secret, SMALL, **key)
    assert_images(answer)
    assert "idempotent-replayed" not in answer.headers


@pytest.mark.parametrize("bad", ["", "x" * 256, "a b", "\u00e9", "\x80"])
def test_a_bad_key_gets_400(gateway: Gateway, customer: Customer, bad: str) -> None:
    headers = {"X-Proxy-Token": customer.secret, "Content-Type": "application/json"}
    sent = [(name.encode(), value.encode("latin-1")) for name, value in {**headers, "Idempotency-Key": bad}.items()]
    answer = gateway.client.post(gateway.url + PATH, json=SMALL, headers=sent)
    assert "Idempotency-Key" in assert_error(answer, 400, "invalid_request")


def test_the_longest_and_oddest_keys_count(gateway: Gateway, customer: Customer) -> None:
    visible = "".join(map(chr, range(0x21, 0x7F)))
    for good in ("x" * 255, visible):
        answers = [gateway.post(customer.secret, SMALL, **{"Idempotency-Key": good}) for _ in range(2)]
        assert answers[1].headers["idempotent-replayed"] == "true"


def test_keys_are_remembered_for_a_day_and_only_hashed(
    gateway: Gateway, customer: Customer, key: dict[str, str]
) -> None:
    gateway.post(customer.secret, SMALL, **key)
    pattern = keys.idempotency(0, customer.token.pk, "*").replace("{s0}", "*")
    names = list(store().scan_iter(pattern))
    assert len(names) == 1
    assert key["Idempotency-Key"].encode() not in names[0]
    assert 86_300 < store().ttl(names[0]) <= 86_400

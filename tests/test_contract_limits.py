"""429 and exceeds_limit: every metric, period and scope; when to come back; and the headers that tell before."""

import calendar
import datetime as dt
import re
import time
import zoneinfo
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import SIZES, Customer, Gateway
from tests.contract import assert_error, assert_images, drawings
from tests.processes import wait_until

SCOPES = ["token", "member", "tenant"]
RATES = ["second", "minute", "hour"]
QUOTAS = ["day", "month", "total"]
PROMPT = "a ruby [sandbox tokens=1200]"
BODY = {"prompt": PROMPT, "size": "256x256"}
ONE = {"requests": 1, "images": 1, "tokens": SIZES["256x256"] + len(PROMPT)}  # what one call asks for
OF_ONE = {"requests": "1 request", "images": "1 image", "tokens": f"{ONE['tokens']} tokens"}
ZONE = "Asia/Kathmandu"  # a quarter of an hour off everybody else's hours


def until_refused(gateway: Gateway, customer: Customer) -> httpx.Response:
    """Call until a limit refuses. A limit of one a second may let a second call pass when the machine is slow."""
    for _ in range(8):
        answer = gateway.post(customer.secret, BODY)
        if answer.status_code != 200:
            return answer
    raise AssertionError("no limit refused")


def remaining(answer: httpx.Response, metric: str) -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{metric}"])


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("period", RATES)
@pytest.mark.parametrize("metric", ONE)
def test_a_reached_rate_gets_429(gateway: Gateway, customer: Customer, metric: str, period: str, scope: str) -> None:
    customer.limit(f"{metric}:{ONE[metric]}/{period}", scope=scope)
    answer = until_refused(gateway, customer)
    message = assert_error(answer, 429, "rate_limited")
    seconds = int(answer.headers["retry-after"])
    assert message == (
        f"The limit of {OF_ONE[metric]} per {period} for this {scope} is reached. It frees in {seconds} s."
    )
    assert 1 <= seconds <= {"second": 2, "minute": 60, "hour": 3600}[period]
    assert "x-should-retry" not in answer.headers
    assert drawings(gateway, answer) == 0


def seconds_left(period: str) -> float:
    """Until the tenant's own day or month ends."""
    now = dt.datetime.now(zoneinfo.ZoneInfo(ZONE))
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    days = 1 if period == "day" else calendar.monthrange(now.year, now.month)[1] - now.day + 1
    return (midnight + dt.timedelta(days=days) - now).total_seconds()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("period", QUOTAS)
@pytest.mark.parametrize("metric", ONE)
def test_a_reached_quota_gets_429(
    gateway: Gateway, make_customer: Callable[..., Customer], metric: str, period: str, scope: str
) -> None:
    customer = make_customer(timezone=ZONE)
    customer.limit(f"{metric}:{ONE[metric]}/{period}", scope=scope)
    answer = until_refused(gateway, customer)
    message = assert_error(answer, 429, "quota_exceeded")
    words = "in total" if period == "total" else f"per {period}"
    assert message.startswith(f"The limit of {OF_ONE[metric]} {words} for this {scope} is reached. ")
    assert drawings(gateway, answer) == 0
    if period == "total":
        assert message.endswith("It doesn't free by itself.")
        assert answer.headers["retry-after"] == "86400", "only a person frees it"
        return
    left = seconds_left(period)
    assert abs(int(answer.headers["retry-after"]) - left) < 3
    frees = re.search(r"It frees at (.{16}) UTC\.$", message)
    assert frees
    at = dt.datetime.strptime(frees[1], "%Y-%m-%d %H:%M").replace(tzinfo=dt.UTC)
    assert abs((at - dt.datetime.now(dt.UTC)).total_seconds() - left) < 63


@pytest.mark.parametrize("scope", SCOPES)
def test_a_reached_concurrency_gets_429_until_a_call_ends(gateway: Gateway, customer: Customer, scope: str) -> None:
    customer.limit("concurrent:2", scope=scope)
    customer.limit("requests:100/day", "images:100/day")
    slow = {"prompt": "a ruby [sandbox delay=900ms]", "size": "256x256"}
    with ThreadPoolExecutor(2) as threads:
        held = [threads.submit(gateway.post, customer.secret, slow) for _ in range(2)]
        wait_until(
            lambda: remaining(gateway.post(customer.secret, b"{}"), "requests") == 98, what="two calls in flight"
        )
        answer = gateway.post(customer.secret, BODY)
        assert [future.result().status_code for future in held] == [200, 200]
    message = assert_error(answer, 429, "rate_limited")
    assert message == f"The limit of 2 calls in flight at once for this {scope} is reached. It frees when a call ends."
    assert answer.headers["retry-after"] == "2"
    assert remaining(answer, "images") == 98, "the refused call took nothing"
    assert_images(gateway.post(customer.secret, BODY))


@pytest.mark.parametrize("text", ["requests:30/minute:burst=1", "images:30/minute:burst=1"])
def test_waiting_as_long_as_told_succeeds_and_less_does_not(gateway: Gateway, customer: Customer, text: str) -> None:
    customer.limit(text)
    assert_images(gateway.post(customer.secret, BODY))
    answer = gateway.post(customer.secret, BODY)
    told_at, seconds = time.monotonic(), int(answer.headers["retry-after"])
    assert "(1 at once)" in assert_error(answer, 429, "rate_limited")
    assert seconds == 2
    time.sleep(seconds - 1)
    again = gateway.post(customer.secret, BODY)
    assert_error(again, 429, "rate_limited")
    assert again.headers["retry-after"] == "1"
    time.sleep(max(0.0, told_at + seconds - time.monotonic()))
    assert_images(gateway.post(customer.secret, BODY))


def test_a_rate_of_tokens_frees_what_was_not_charged(gateway: Gateway, customer: Customer) -> None:
    customer.limit(f"tokens:{ONE['tokens'] * 60}/minute:burst={ONE['tokens']}")
    first = gateway.post(customer.secret, {**BODY, "prompt": "[sandbox tokens=12]"})
    assert_images(first)
    assert remaining(first, "tokens") >= ONE["tokens"] - 12 - 1, "the estimate is given back"


def test_a_refused_call_takes_nothing_from_any_other_limit(gateway: Gateway, customer: Customer) -> None:
    customer.limit("images:1/day", "requests:50/hour", scope="tenant")
    customer.limit("requests:40/day", "tokens:900000/month", "concurrent:3", scope="token")
    customer.limit("tokens:800000/total", scope="member")
    assert_images(gateway.post(customer.secret, BODY))
    refused = [gateway.post(customer.secret, BODY) for _ in range(5)]
    for answer in refused:
        assert_error(answer, 429, "quota_exceeded")

    def units(answer: httpx.Response) -> dict[str, str]:
        return dict(re.findall(r'"([a-z-]+)";r=(\d+)', answer.headers["ratelimit"]))

    left = {
        "token-requests-day": "39",
        "token-tokens-month": "898800",
        "token-concurrent": "3",
        "member-tokens-total": "798800",
        "tenant-images-day": "0",
    }
    for answer in refused:
        assert left.items() <= units(answer).items()
        assert int(units(answer)["tenant-requests-hour"]) >= 49


@pytest.mark.parametrize(
    ("limit", "n", "naming"),
    [
        ("images:1/day", 2, "1 image per day for this tenant"),
        ("images:3/total", 4, "3 images in total for this tenant"),
        ("images:60/minute:burst=2", 3, "60 images per minute (2 at once) for this tenant"),
        ("tokens:1000/month", 1, "1000 tokens per month for this tenant"),
        ("tokens:1000/second", 1, "1000 tokens per second for this tenant"),
    ],
)
def test_what_no_waiting_could_let_pass_gets_400(
    gateway: Gateway, customer: Customer, limit: str, n: int, naming: str
) -> None:
    customer.limit(limit)
    customer.limit("requests:9/day", scope="token")
    answer = gateway.post(customer.secret, {**BODY, "n": n})
    assert naming in assert_error(answer, 400, "exceeds_limit")
    assert remaining(answer, "requests") == 9
    assert drawings(gateway, answer) == 0


def test_exceeds_limit_comes_before_a_limit_that_is_only_reached(gateway: Gateway, customer: Customer) -> None:
    customer.limit("requests:1/day", "images:2/day")
    assert_images(gateway.post(customer.secret, BODY))
    assert_error(gateway.post(customer.secret, {**BODY, "n": 3}), 400, "exceeds_limit")
    assert_error(gateway.post(customer.secret, BODY), 429, "quota_exceeded")


def test_of_several_reached_limits_the_last_to_free_is_named(gateway: Gateway, customer: Customer) -> None:
    customer.limit("requests:2/minute", "images:1/month", "tokens:1300/day")
    assert_images(gateway.post(customer.secret, BODY))
    assert "image per month" in assert_error(gateway.post(customer.secret, BODY), 429, "quota_exceeded")
    customer.limit("images:9/month")
    customer.limit("images:1/total", "requests:9/hour", scope="token")
    assert "tokens per day" in assert_error(gateway.post(customer.secret, BODY), 429, "quota_exceeded")
    customer.limit("tokens:9000/day")
    assert_images(gateway.post(customer.secret, BODY))
    answer = gateway.post(customer.secret, BODY)
    assert "1 image in total for this token" in assert_error(answer, 429, "quota_exceeded")
    assert answer.headers["retry-after"] == "86400"


def test_a_changed_limit_counts_from_the_next_call_on(gateway: Gateway, customer: Customer) -> None:
    customer.limit("images:1/day")
    assert_images(gateway.post(customer.secret, BODY))
    assert_error(gateway.post(customer.secret, BODY), 429, "quota_exceeded")
    customer.limit("images:2/day")
    answer = gateway.post(customer.secret, BODY)
    assert_images(answer)
    assert (answer.headers["x-ratelimit-limit-images"], remaining(answer, "images")) == ("2", 0)


def test_limits_are_the_tenants_own(gateway: Gateway, make_customer: Callable[..., Customer]) -> None:
    one, other = make_customer(), make_customer()
    for customer in (one, other):
        customer.limit("images:1/day")
    assert_images(gateway.post(one.secret, BODY))
    assert_error(gateway.post(one.secret, BODY), 429, "quota_exceeded")
    assert_images(gateway.post(other.secret, BODY))


def test_the_rate_limit_headers_literally(gateway: Gateway, customer: Customer) -> None:
    customer.limit("requests:60/minute", scope="token")
    customer.limit("tokens:5000/total", scope="member")
    customer.limit("images:100/day", "tokens:2000000/month", "concurrent:8")
    answer = gateway.post(customer.secret, {**BODY, "n": 2})
    assert_images(answer, 2)
    assert answer.headers["ratelimit-policy"] == (
        '"token-requests-minute";q=60;w=60, '
        '"member-tokens-total";q=5000;qu="tokens", '
        '"tenant-images-day";q=100;qu="images";w=86400, '
        '"tenant-tokens-month";q=2000000;qu="tokens";w=2592000, '
        '"tenant-concurrent";q=8;qu="concurrent-requests"'
    )
    assert re.fullmatch(
        '"token-requests-minute";r=59;t=1, '
        '"member-tokens-total";r=3800, '
        r'"tenant-images-day";r=98;t=\d+, '
        r'"tenant-tokens-month";r=1998800;t=\d+, '
        '"tenant-concurrent";r=8;t=0',
        answer.headers["ratelimit"],
    ), answer.headers["ratelimit"]
    left = {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit-")}
    reset = left.pop("x-ratelimit-reset-images")
    assert 0 < int(reset) <= 86_400
    assert left == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1",
        "x-ratelimit-limit-images": "100",
        "x-ratelimit-remaining-images": "98",
        "x-ratelimit-limit-tokens": "5000",
        "x-ratelimit-remaining-tokens": "3800",
    }, "tokens: the total quota is tighter, and never resets"


def test_of_equally_tight_limits_the_one_of_the_shortest_period_is_told(gateway: Gateway, customer: Customer) -> None:
    customer.limit("images:40/month", "images:50/total", scope="token")
    customer.limit("images:30/day", scope="member")
    customer.limit("images:20/minute", "images:10/hour", scope="tenant")
    untouched = gateway.post(customer.secret, b"{}")
    assert untouched.headers["x-ratelimit-limit-images"] == "20", "all are whole: the minute"
    taken = gateway.post(customer.secret, {**BODY, "n": 4})
    assert_images(taken, 4)
    assert taken.headers["x-ratelimit-limit-images"] == "10", "6 of 10 is the least"


def test_without_limits_there_are_no_such_headers(gateway: Gateway, customer: Customer) -> None:
    answer = gateway.post(customer.secret, BODY)
    assert not [name for name in answer.headers if "ratelimit" in name]

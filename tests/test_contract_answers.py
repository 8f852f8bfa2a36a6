"""The success: what the documented call is answered with."""

import datetime as dt
import io
import re
import time
from typing import Any

import pytest
from PIL import Image as Picture

from tests.conftest import PATH, SIZES, Customer, Gateway
from tests.contract import SMALL, assert_images, assert_request_id, drawings, ending, raw_exchange, raw_post, read_raw
from tests.processes import web


@pytest.mark.parametrize(("size", "n"), [("256x256", 4), ("512x512", 2), ("1024x1024", 1)])
def test_it_answers_n_images_of_the_size_asked_for(gateway: Gateway, customer: Customer, size: str, n: int) -> None:
    began = time.time()
    answer = gateway.post(customer.secret, {"prompt": "a lighthouse at dusk, oil on canvas", "size": size, "n": n})
    content = assert_images(answer, n)
    assert began - 1 <= content["created"] <= time.time()
    for entry in content["data"]:
        assert list(entry) == ["url", "expires_at"]
        assert entry["url"].startswith(f"{gateway.url}/images/")
        expires = dt.datetime.fromisoformat(entry["expires_at"])
        assert abs(expires - dt.datetime.now(dt.UTC) - dt.timedelta(days=7)) < dt.timedelta(minutes=1)
        shown = gateway.client.get(entry["url"])
        assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
        assert shown.headers["x-content-type-options"] == "nosniff"
        assert shown.headers["content-security-policy"] == "sandbox"
        assert shown.headers["cross-origin-resource-policy"] == "cross-origin"
        width, height = Picture.open(io.BytesIO(shown.content)).size
        assert f"{width}x{height}" == size


def test_what_is_answered_is_what_the_provider_spent_and_what_is_booked(gateway: Gateway, customer: Customer) -> None:
    answer = gateway.post(customer.secret, {**SMALL, "n": 2})
    total = assert_images(answer, 2)["usage"]["total_tokens"]
    spent = gateway.drawn()[answer.headers["x-request-id"]]
    assert (spent["usage"]["total_tokens"], spent["n"], spent["size"]) == (total, 2, "256x256")
    row = ending(answer)
    assert (row.kind, row.provenance, row.images) == ("exact", "reported", 2)
    assert row.charged_tokens == row.reported_tokens == total
    assert total <= 2 * SIZES["256x256"] + len(SMALL["prompt"])
    assert (row.tenant_id, row.token_id, row.member_id) == (customer.tenant.pk, customer.token.pk, customer.member.pk)


def test_size_and_n_have_defaults(gateway: Gateway, customer: Customer) -> None:
    answer = gateway.post(customer.secret, {"prompt": "a ruby"})
    assert_images(answer)
    spent = gateway.drawn()[answer.headers["x-request-id"]]
    assert (spent["size"], spent["n"]) == ("1024x1024", 1)


def test_a_trailing_slash_is_the_same_path(gateway: Gateway, customer: Customer) -> None:
    headers = {"X-Proxy-Token": customer.secret}
    answer = gateway.client.post(f"{gateway.url}{PATH}/", json=SMALL, headers=headers, follow_redirects=False)
    assert_images(answer)


def test_ignored_fields_are_named_and_have_no_effect(gateway: Gateway, customer: Customer) -> None:
    ignored: dict[str, Any] = {
        "model": "another-model",
        "quality": "hd",
        "style": "vivid",
        "response_format": "b64_json",
        "user": "u1",
        "background": "transparent",
        "output_format": "webp",
    }
    answer = gateway.post(customer.secret, {**SMALL, **ignored})
    assert_images(answer)
    assert answer.headers["x-ignored-fields"].split(", ") == list(ignored)
    assert gateway.drawn()[answer.headers["x-request-id"]]["model"] == "sandbox-image-1"
    assert "x-ignored-fields" not in gateway.post(customer.secret, SMALL).headers


def test_request_ids_are_ours_and_the_clients_is_kept_beside(gateway: Gateway, customer: Customer) -> None:
    answers = [gateway.post(customer.secret, b"{}", **{"X-Request-Id": "mine-1"}) for _ in range(3)]
    assert len({assert_request_id(answer) for answer in answers}) == 3
    assert [answer.headers["x-client-request-id"] for answer in answers] == ["mine-1"] * 3
    assert "x-client-request-id" not in gateway.post(customer.secret, b"{}").headers
    for odd in ("a b", "x" * 201, "é"):
        raw = raw_exchange(gateway, raw_post(customer.secret, b"{}", f"X-Request-Id: {odd}"))
        assert "x-client-request-id" not in read_raw(raw).headers


def test_urls_come_from_the_settings_never_from_the_host_header(gateway: Gateway, customer: Customer) -> None:
    answer = gateway.post(customer.secret, SMALL, Host="evil.example", **{"X-Forwarded-Host": "evil.example"})
    content = assert_images(answer)
    assert content["data"][0]["url"].startswith(f"{gateway.url}/")
    assert "evil.example" not in answer.text


def test_they_have_the_prefix_of_the_public_url(gateway: Gateway, customer: Customer) -> None:
    with web(gateway.folder, PUBLIC_URL="https://pictures.example") as (url, _):
        answer = gateway.client.post(url + PATH, json=SMALL, headers={"X-Proxy-Token": customer.secret})
    found = assert_images(answer)["data"][0]["url"]
    assert re.fullmatch(r"https://pictures\.example/images/[\d-]{10}/\w{22}\.png\?expires=\d+&signature=[\w-]+", found)


@pytest.mark.parametrize(
    "prompt",
    ["é😀" * 50, "a\u0000b", 'quotes " and \\ and </script>', "line\nbreak", "a" * 32_000],
    ids=["wide", "nul", "markup", "lines", "long"],
)
def test_prompts_of_all_kinds_are_drawn_once(gateway: Gateway, customer: Customer, prompt: str) -> None:
    answer = gateway.post(customer.secret, {**SMALL, "prompt": prompt})
    total = assert_images(answer)["usage"]["total_tokens"]
    assert total <= SIZES["256x256"] + len(prompt.encode()), "the estimate is an upper bound"
    assert drawings(gateway, answer) == 1

"""What a request may cost, as far as it can be counted without a clock, so that speed can't rot unseen."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gateway import catalog
from gateway.models import Model
from tests import processes
from tests.conftest import Customer, Gateway

CALLS = 5
PICTURE = {"prompt": "a gem", "size": "1024x1024", "n": 1}
LIMITS = ("requests:1000/minute", "requests:1000/day", "tokens:90000000/day", "images:1000/month", "concurrent:10")


@pytest.fixture
def as_url(provider: Path) -> Iterator[None]:
    """The provider answers with addresses for as long as this lasts."""
    answer_in("url")
    yield
    answer_in("")


def answer_in(form: str) -> None:
    """Have the provider answer in this form, "" for its own, which is base64."""
    Model._base_manager.filter(name="sandbox").update(answer_form=form)
    catalog.publish()


def spent(provider: Path, customer: Customer, entry: str) -> dict[str, float]:
    """What `CALLS` calls cost a web process started from `entry`, divided by their number."""
    with (
        processes.web(provider, application=f"tests.controls.{entry}:application") as (url, _),
        httpx.Client(timeout=20) as client,
    ):
        gateway = Gateway(url, provider, client)
        assert gateway.post(customer.secret, PICTURE).status_code == 200  # the token is read, once a process
        before = client.get(f"{url}/counts").json()
        answers = [gateway.post(customer.secret, PICTURE) for _ in range(CALLS)]
        after = client.get(f"{url}/counts").json()
    assert {answer.status_code for answer in answers} == {200}
    return {name: (after[name] - before[name]) / CALLS for name in ("store", "threads", "sql", "json")}


@pytest.fixture
def limited(make_customer: Callable[..., Customer]) -> Customer:
    """A customer with limits of every kind in two scopes."""
    customer = make_customer()
    customer.limit(*LIMITS)
    customer.limit(*LIMITS, scope="tenant")
    return customer


def test_a_request_costs_two_round_trips_and_nothing_else(as_url: None, provider: Path, limited: Customer) -> None:
    assert spent(provider, limited, "counting") == {"store": 2, "threads": 0, "sql": 0, "json": 0}


def test_an_image_goes_to_disk_in_one_thread_and_through_no_json(provider: Path, limited: Customer) -> None:
    assert spent(provider, limited, "counting") == {"store": 2, "threads": 1, "sql": 0, "json": 0}


def test_control_all_that_does_not_belong_there_is_counted(provider: Path, limited: Customer) -> None:
    assert spent(provider, limited, "wasteful") == {"store": 3, "threads": 2, "sql": 1, "json": 1}

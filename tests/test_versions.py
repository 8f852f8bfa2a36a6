"""An upgrade: processes of two versions work on the same store side by side, and the old ones leave without a loss."""

import itertools
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from config.redis import store
from tests import processes
from tests.conftest import Customer, Gateway
from tests.ledgerwatch import check_books, in_flight, rows
from tokens.admission import scripts
from tokens.admission.scripts import Script

OTHER = "tests.controls.other_scripts:application"


def known(script: Script) -> bool:
    """Whether the store knows the script by its address."""
    return bool(store().script_exists(script.sha)[0])


def test_old_and_new_processes_share_every_limit_and_the_old_ones_leave(
    gateway: Gateway, provider: Path, make_customer: Callable[..., Customer]
) -> None:
    customer = make_customer()
    customer.limit("images:30/day")
    prompt = {"prompt": "a gem [sandbox delay=300ms]", "size": "256x256"}
    store().script_flush()  # whoever knows a script only by its address must say it again
    with processes.web(provider, application=OTHER) as (url, process), httpx.Client(timeout=30) as client:
        old = Gateway(url, provider, client)
        assert gateway.post(customer.secret, {"prompt": "a gem"}).status_code == 200
        assert known(scripts.admit())
        with ThreadPoolExecutor(16) as pool:
            posts = itertools.islice(itertools.cycle([gateway.post, old.post]), 49)
            calls = [pool.submit(post, customer.secret, prompt) for post in posts]
            processes.wait_until(lambda: in_flight(customer) >= 8, 5, "calls in flight")
            process.child.send_signal(signal.SIGTERM)
            statuses = []
            for call in calls:
                try:
                    statuses.append(call.result().status_code)
                except httpx.ConnectError:  # it listens no more
                    statuses.append(0)
        assert process.child.wait(10) == 0
    assert set(statuses) <= {200, 429, 0, 503}  # 503: it was stopping already
    booked = rows(customer)
    assert len(booked) == statuses.count(200) + 1 > 8
    assert {row.kind for row in booked} == {"exact"}
    rest = [gateway.post(customer.secret, {"prompt": "a gem"}).status_code for _ in range(31)]
    assert len(booked) + rest.count(200) == 30
    assert rest[-1] == 429
    check_books([customer])

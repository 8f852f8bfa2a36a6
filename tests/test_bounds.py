"""A provider that reports more than the upper bound: charged as reported, and no token quota trusts the model then."""

from collections.abc import Callable

from gateway import catalog
from gateway.models import ModelSize, Provider
from tests.conftest import Customer, Gateway, point_at
from tests.ledgerwatch import outcome
from tests.processes import wait_until


def test_it_charges_what_was_reported_and_takes_the_model_out_of_token_quotas(
    gateway: Gateway, make_customer: Callable[..., Customer]
) -> None:
    url = Provider.objects.get(name="sandbox").base_url.removesuffix("/v1")
    model = point_at(url, name="underrated", default=False)
    limited, free = make_customer(model="underrated"), make_customer(model="underrated")
    limited.limit("tokens:100000/day")
    body = {"prompt": "[sandbox tokens=3000] a topaz", "size": "256x256"}
    wait_until(lambda: gateway.post(limited.secret, {**body, "size": "512x512"}).status_code == 200)

    answer = gateway.post(limited.secret, body)
    assert answer.status_code == 200
    assert answer.json()["usage"]["total_tokens"] == 3000

    refused = gateway.post(limited.secret, body)
    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "unavailable"
    assert "upper bound" in refused.json()["error"]["message"]
    assert gateway.post(limited.secret, {**body, "size": "1024x1024"}).status_code == 200  # another size, its own bound
    assert gateway.post(free.secret, body).status_code == 200  # nobody counts tokens here

    ModelSize._base_manager.filter(model=model, size="256x256").update(most_tokens=4000)
    catalog.publish()
    wait_until(lambda: gateway.post(limited.secret, body).status_code == 200)


def test_a_changed_model_holds_for_the_very_next_call_of_a_warm_process(
    gateway: Gateway, make_customer: Callable[..., Customer]
) -> None:
    url = Provider.objects.get(name="sandbox").base_url.removesuffix("/v1")
    point_at(url, name="cheaper", default=False)
    point_at(url, name="dearer", default=False)
    customer = make_customer(model="cheaper")
    body = {"prompt": "a topaz", "size": "256x256"}
    wait_until(lambda: gateway.post(customer.secret, body).status_code == 200)
    customer.tenant.refresh_from_db()
    customer.tenant.model = "dearer"
    customer.tenant.save()
    answer = gateway.post(customer.secret, body)
    assert outcome(answer.headers["x-request-id"]).model == "dearer"

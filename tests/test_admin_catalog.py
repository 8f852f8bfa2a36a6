"""Providers, their keys and models, and who gets which model, in the admin."""

import uuid
from typing import Any

import pytest
from django.test import Client

from config import encryption
from config.redis import store
from gateway.models import Model, Provider
from gateway.providers import set_model, set_provider
from tests.adminpages import page, rows
from tests.conftest import Customer, Gateway
from tokens.audit import AuditEntry


def test_one_form_points_at_another_service(admin: Client, gateway: Gateway) -> None:
    name, key = f"p{uuid.uuid4().hex[:10]}", f"sk-{uuid.uuid4().hex}"
    data = {"name": name, "base_url": "https://images.example/v1", "active": "on"}
    data |= rows("keys", {"label": "main", "key": key, "active": "on"})
    data |= rows("models", {"name": f"{name}-1", "sizes": "1024x1024=4800 512x512=2400", "active": "on"})
    answer = admin.post(page("gateway_provider_add"), data)
    assert answer.status_code == 302, answer.text
    provider = Provider.objects.get(name=name)
    stored = provider.keys.get()
    assert encryption.decrypt(bytes(stored.encrypted)) == key
    model = provider.models.get()
    assert model.upstream_name == model.name
    assert {size.size: size.most_tokens for size in model.sizes.all()} == {"512x512": 2400, "1024x1024": 4800}
    shown = admin.get(page("gateway_provider_change", provider.pk)).text
    assert "set on " in shown
    assert key not in shown + admin.get(page("gateway_provider_changelist")).text
    assert key not in str(list(AuditEntry.objects.values_list()))
    assert key.encode() not in (store().get("catalog") or b"")
    assert f"{name}-1".encode() in (store().get("catalog") or b"")  # published with the commit

    # A saved key can't be replaced by posting over it; switching it off and adding another is the way.
    keys = rows("keys", {"id": stored.pk, "provider": provider.pk, "label": "old", "key": "other"},
                {"label": "new", "key": "sk-next", "active": "on"}, initial=1)  # fmt: skip
    models = rows("models", {"id": model.pk, "provider": provider.pk, "name": model.name, "upstream_name": "up",
                             "sizes": "1024x1024=5000", "active": "on"}, initial=1)  # fmt: skip
    data = {"base_url": "https://images.example/v2", "active": "on"}
    assert admin.post(page("gateway_provider_change", provider.pk), data | keys | models).status_code == 302
    newest, old = provider.keys.all()
    assert [encryption.decrypt(bytes(row.encrypted)) for row in (old, newest)] == [key, "sk-next"]
    assert not old.active
    assert [(size.size, size.most_tokens) for size in model.sizes.all()] == [("1024x1024", 5000)]


def test_the_default_model_moves(admin: Client, gateway: Gateway) -> None:
    before = Model.objects.get(default=True)
    model = Model.objects.create(name=f"m-{uuid.uuid4().hex[:8]}", provider=before.provider, upstream_name="x")
    data = {"provider": model.provider_id, "upstream_name": "x", "answer_form": "", "prompt_limit": 100, "active": "on"}
    data |= rows("sizes", {"size": "512x512", "most_tokens": 2400})
    change = page("gateway_model_change", model.pk)
    assert admin.post(change, data | {"default": "on"}).status_code == 302
    assert Model.objects.get(default=True) == model
    admin.post(page("gateway_model_change", before.pk), {**data, "upstream_name": before.upstream_name, "default": "on",
               "prompt_limit": before.prompt_limit, **rows("sizes")})  # fmt: skip
    assert Model.objects.get(default=True) == before


@pytest.fixture
def served() -> Model:
    """A model of a provider of the test's own, with a key that nobody in the admin can read."""
    name = f"p{uuid.uuid4().hex[:10]}"
    return set_model(set_provider(name, "https://images.example/v1", "the-real-key"), f"{name}/x.1")


def change_provider(admin: Client, provider: Provider, base_url: str, *new: dict[str, Any]) -> Any:
    """Post the provider's form, its only key and model as they are."""
    stored, model = provider.keys.get(), provider.models.get()
    keys = rows("keys", {"id": stored.pk, "provider": provider.pk, "label": stored.label, "active": "on"},
                *new, initial=1)  # fmt: skip
    models = rows("models", {"id": model.pk, "provider": provider.pk, "name": model.name, "active": "on",
                             "upstream_name": model.upstream_name, "sizes": ""}, initial=1)  # fmt: skip
    return admin.post(
        page("gateway_provider_change", provider.pk), {"base_url": base_url, "active": "on"} | keys | models
    )


def test_a_key_never_goes_to_another_server(admin: Client, served: Model) -> None:
    provider = served.provider
    for new in ((), ({"label": "new", "key": "sk-new"},)):  # none, or one that isn't active
        refused = change_provider(admin, provider, "https://elsewhere.example/v1", *new)
        assert "leads to another server" in refused.text
        assert (provider.keys.count(), Provider.objects.get(pk=provider.pk).base_url) == (
            1,
            "https://images.example/v1",
        )
    assert change_provider(admin, provider, "https://images.example:443/v2").status_code == 302  # the same server
    moved = change_provider(admin, provider, "https://elsewhere.example/v1",
                            {"label": "new", "key": "sk-new", "active": "on"})  # fmt: skip
    assert moved.status_code == 302, moved.text
    assert encryption.decrypt(bytes(provider.keys.get().encrypted)) == "sk-new", "the former one could be made active"


@pytest.mark.parametrize("url", ["http://images.example/v1", "ftp://images.example/v1", "http://h:port/v1"])
def test_a_base_url_that_cant_be_used_is_explained(admin: Client, served: Model, url: str) -> None:
    answer = change_provider(admin, served.provider, url)
    assert answer.status_code == 200
    assert "Plain http would carry" in answer.text or "This is not a base URL" in answer.text


def test_a_tenant_gets_a_model_that_is_offered_and_no_other(admin: Client, served: Model, customer: Customer) -> None:
    tenant = customer.tenant
    change = page("tokens_tenant_change", tenant.pk)
    data = {"name": "n", "timezone": "UTC", "origins": "", "plan": "", "unresolved_policy": "nothing"}
    data |= rows("limits") | rows("members") | rows("members-2")
    assert "not one of the available choices" in admin.post(change, data | {"model": f"{served.name}x"}).text
    answer = admin.post(change, data | {"model": served.name})
    assert answer.status_code == 302, answer.text
    tenant.refresh_from_db()
    assert tenant.model == served.name
    served.active = False
    served.save()
    assert f"{served.name} (not offered now)" in admin.get(change).text
    assert admin.post(change, data | {"model": served.name, "name": "m"}).status_code == 302  # it may stay
    assert admin.post(change, data | {"model": ""}).status_code == 302
    assert served.name not in admin.get(change).text


def test_a_price_is_of_any_model_that_there_is(admin: Client, served: Model) -> None:
    data = {"size": "", "per_image": "1", "per_million_input": "0", "currency": "EUR", "valid_from": "2026-01-01"}
    add = page("usage_price_add")
    assert "Letters, digits and" in admin.post(add, data | {"model": "a b"}).text
    answer = admin.post(add, data | {"model": served.name})
    assert answer.status_code == 302, answer.text

"""The catalog: what is published of providers, models and origins, when, and who can read the keys."""

import json
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import override_settings

from config.encryption import WrongKey, decrypt, encrypt
from config.redis import store
from gateway import catalog, providers
from gateway.catalog import Catalog
from gateway.models import Model, ModelSize, ProviderKey
from gateway.tasks import publish_catalog
from tokens.admission import keys
from tokens.models import Status, Tenant

KEY = "sk-of-the-provider-0123456789"


@pytest.fixture
def name() -> str:
    """A name that no other test has."""
    return f"c{uuid.uuid4().hex[:12]}"


def set_up(name: str, **more: Any) -> Model:
    return providers.set_model(providers.set_provider(name, "http://images:8080/v1/", KEY), name, **more)


def published() -> Catalog:
    raw = store().get(keys.CATALOG)
    assert isinstance(raw, bytes)
    return catalog.parse(raw)


def test_what_is_encrypted_can_be_read_with_any_of_the_keys_and_no_other() -> None:
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    with override_settings(ENCRYPTION_KEYS=[old]):
        secret = encrypt(KEY)
        assert KEY.encode() not in secret
        assert decrypt(secret) == KEY
    with override_settings(ENCRYPTION_KEYS=[new, old]):
        assert decrypt(secret) == KEY
        newer = encrypt(KEY)
    with override_settings(ENCRYPTION_KEYS=[new]):
        assert decrypt(newer) == KEY
        for wrong in (secret, newer[:-4] + b"AAA=", b"", b"nonsense"):
            with pytest.raises(WrongKey, match="can't be opened with ENCRYPTION_KEYS"):
                decrypt(wrong)
    with override_settings(ENCRYPTION_KEYS=["too short"]), pytest.raises(ImproperlyConfigured, match="must list keys"):
        encrypt(KEY)


def test_a_model_is_published_when_it_is_committed(name: str) -> None:
    with transaction.atomic():
        set_up(name, upstream_name="gpt-image-1")
        assert name not in published().models
    model = published().pick(name)
    assert model is not None
    assert (model.name, model.provider, model.base_url) == (name, name, "http://images:8080/v1")
    assert (model.key, model.upstream_name, model.answer_form) == (KEY, "gpt-image-1", "")
    assert (model.prompt_limit, dict(model.sizes)) == (32_000, providers.GPT_IMAGE_1_SIZES)
    assert KEY not in repr(model)
    with pytest.raises(TypeError):
        model.sizes["1x1"] = 1  # type: ignore[index]


def test_no_key_stands_in_the_store(name: str) -> None:
    set_up(name)
    raw = store().get(keys.CATALOG)
    assert isinstance(raw, bytes)
    assert name.encode() in raw
    assert KEY.encode() not in raw


def test_every_change_is_published(name: str) -> None:
    model = set_up(name, sizes={"512x512": 7, "auto": 9})
    ModelSize.objects.get(model=model, size="512x512").delete()
    assert dict(published().models[name].sizes) == {"auto": 9}
    model.provider.base_url = "https://elsewhere.example/v2"
    model.provider.save()
    assert published().models[name].base_url == "https://elsewhere.example/v2"
    providers.set_provider(name, "https://elsewhere.example/v2", "another-key")
    assert published().models[name].key == "another-key"
    for owner in (model, model.provider, ProviderKey.objects.get(provider=model.provider, active=True)):
        owner.active = False
        owner.save()
        assert name not in published().models, owner
        owner.active = True
        owner.save()
        assert name in published().models, owner
    model.delete()
    assert name not in published().models


def test_a_transaction_publishes_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish, times = catalog.publish, []
    monkeypatch.setattr(catalog, "publish", lambda: times.append(publish()))
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            set_up(f"{name}-gone")
            raise ZeroDivisionError  # takes its own request to publish along
        set_up(name, sizes={"512x512": 7, "auto": 9})
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            set_up(f"{name}-gone")
            raise ZeroDivisionError
    assert len(times) == 1
    assert name in published().models
    assert f"{name}-gone" not in published().models
    set_up(f"{name}-2")
    assert len(times) > 1
    assert f"{name}-2" in published().models


def test_the_newest_active_key_counts(name: str) -> None:
    provider = set_up(name).provider
    for text in ("second-key", "third-key"):
        ProviderKey.objects.create(provider=provider, label=text, encrypted=encrypt(text))
    assert published().models[name].key == "third-key"
    newest = provider.keys.order_by("-id").first()
    assert newest is not None
    newest.active = False
    newest.save()
    assert published().models[name].key == "second-key"


@pytest.fixture
def rolled_back() -> Iterator[None]:
    """A transaction that never commits: the default model is one for all, and other tests' calls need it."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def test_the_default_model(name: str, rolled_back: None) -> None:
    first, second = set_up(name), set_up(f"{name}-2")
    providers.make_default(first)
    providers.make_default(second)
    found = catalog.parse(catalog.build())
    assert found.default == f"{name}-2"
    assert found.pick("") is found.models[f"{name}-2"]
    assert found.pick("no such model") is None
    second.refresh_from_db()
    second.active = False
    second.save()
    assert catalog.parse(catalog.build()).pick("") is None


def test_origins_are_those_of_active_tenants(name: str) -> None:
    origin = f"https://{name}.example"
    tenant = Tenant(slug=name, name=name, origins=[f"{origin.upper()}/", "http://localhost:5173"])
    tenant.save()
    found = published()
    assert origin in found.origins
    assert found.allows(origin.upper())
    assert f"https://{name}.example.evil.example" not in found.origins
    tenant.status = Status.SUSPENDED
    tenant.save()
    assert origin not in published().origins
    narrow = Catalog("", {}, None, frozenset({origin}))
    assert narrow.allows(origin)
    assert not narrow.allows("null")
    assert Catalog("", {}, None, frozenset({"*"})).allows("null")


def test_the_task_repairs_the_store_and_writes_only_then(name: str) -> None:
    set_up(name)
    Model._base_manager.filter(name=name).update(prompt_limit=77)  # sends no signal
    assert published().models[name].prompt_limit == 32_000
    publish_catalog()
    assert published().models[name].prompt_limit == 77
    assert catalog.publish() is False
    store().delete(keys.CATALOG)
    assert catalog.publish() is True
    assert published().version == published().version != ""


def test_a_publisher_that_read_old_rows_does_not_win(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(name)
    stale = catalog.build()
    set_up(f"{name}-2")
    answers = iter([stale])
    build = catalog.build
    monkeypatch.setattr(catalog, "build", lambda: next(answers, None) or build())
    catalog.publish()
    assert f"{name}-2" in published().models


def test_a_store_that_is_away_does_not_undo_a_change(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with override_settings(REDIS_URL="unix:///tmp/there-is-no-such-socket"):
        store.cache_clear()
        set_up(name)
    store.cache_clear()
    assert "isn't published yet" in caplog.text
    assert Model.objects.filter(name=name).exists()
    publish_catalog()
    assert name in published().models


def test_a_key_that_cannot_be_decrypted_leaves_only_its_models_out(name: str, caplog: pytest.LogCaptureFixture) -> None:
    set_up(f"{name}-good")
    with override_settings(ENCRYPTION_KEYS=[Fernet.generate_key().decode()]):
        set_up(name)
    caplog.set_level(logging.ERROR)
    caplog.clear()
    for _ in range(3):
        found = published()
    assert name not in found.models
    assert f"{name}-good" in found.models
    assert [record.getMessage() for record in caplog.records].count(
        f"The key of provider {name} can't be decrypted with ENCRYPTION_KEYS; its models are left out."
    ) == 1
    assert KEY not in caplog.text
    providers.set_provider(name, "http://images:8080/v1", KEY)  # the way out: enter it again
    assert published().models[name].key == KEY


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"models":[{}],"default":null,"origins":[]}', b"\xff"])
def test_other_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        catalog.parse(raw)


def test_json_is_compact_and_the_same_for_the_same_content(name: str) -> None:
    set_up(name, sizes={"512x512": 1, "1024x1024": 2})
    raw = catalog.build()
    assert raw == catalog.build()
    assert raw == json.dumps(json.loads(raw), separators=(",", ":"), ensure_ascii=False).encode()

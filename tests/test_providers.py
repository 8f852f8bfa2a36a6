"""Setting up providers: where a key may go, and what an administrator did that a start must not undo."""

import uuid

import pytest
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import transaction

from config.encryption import decrypt
from gateway import providers
from gateway.models import Model, Provider, validate_base_url

KEY = "sk-of-the-provider-0123456789"


@pytest.fixture
def name() -> str:
    """A name that no other test has."""
    return f"c{uuid.uuid4().hex[:12]}"


def set_up(name: str) -> Model:
    return providers.set_model(providers.set_provider(name, "http://images:8080/v1/", KEY), name)


def keys_of(provider: Provider) -> list[tuple[str, bool]]:
    """The provider's keys, oldest first, and whether each is active."""
    return [(decrypt(bytes(row.encrypted)), row.active) for row in provider.keys.order_by("id")]


def test_a_copy_from_when_it_was_the_default_makes_it_so_again(name: str) -> None:
    with transaction.atomic():  # never committed: the default model is one for all
        first, second = set_up(name), set_up(f"{name}-2")
        providers.make_default(first)
        providers.make_default(second)
        assert first.default, "it doesn't know better"
        providers.make_default(first)
        assert Model.objects.get(default=True) == first
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://images.example/v1",
        "images.example/v1",
        "http://",
        "http://user:secret@images.example/v1",
        "http://images.example/v1?key=secret",
        "http://images.example/v1#x",
        "http://images.example:port/v1",
        "http://images .example/v1",
        "http://images.example/v1\n",
        "http://[::1/v1",
        "http://images.example/v1",
        "http://8.8.8.8/v1",
        "http://134744072/v1",
        "http://0x8080808/v1",
        "http://[::ffff:8.8.8.8]/v1",
        "http://[2001:4860:4860::8888]/v1",
    ],
)
def test_a_base_url_must_be_one(url: str) -> None:
    with pytest.raises(ValidationError):
        validate_base_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://8.8.8.8/v1",
        "http://images:8080/v1",
        "http://localhost:9/v1",
        "http://127.0.0.1:9/v1",
        "http://10.1.2.3/v1",
        "http://192.168.0.9:8080/v1",
        "http://[::1]:9/v1",
        "http://[fd00::1]/v1",
    ],
)
def test_a_base_url_may_name_any_host_and_nearby_ones_without_tls(url: str) -> None:
    validate_base_url(url)


def test_the_environment_describes_a_whole_provider_or_none() -> None:
    assert providers.set_from_environment("", "", "") is None
    with pytest.raises(ImproperlyConfigured, match=r"^PROVIDER_API_KEY and PROVIDER_MODEL must be set too"):
        providers.set_from_environment("https://images.example/v1", "", "")
    with pytest.raises(ImproperlyConfigured, match="This is not a base URL"):
        providers.set_from_environment("images", KEY, "sketch")
    assert not Provider.objects.filter(name=providers.ENVIRONMENT).exists()


def test_usual_sizes() -> None:
    assert providers.usual_sizes("openai/gpt-image-1-mini") == {
        "1024x1024": 4160,
        "1024x1536": 6240,
        "1536x1024": 6208,
    }
    assert "512x512" not in providers.usual_sizes("gpt-image-2.5-flare")
    assert {"256x256", "512x512", "1024x1024"} <= providers.usual_sizes("sketch").keys()


def test_a_model_stays_with_its_provider(name: str) -> None:
    set_up(name)
    other = providers.set_provider(f"{name}-other", "http://images:1/v1", KEY)
    with pytest.raises(ValidationError, match=f"belongs to the provider {name}"):
        providers.set_model(other, name)


@pytest.mark.parametrize("url", ["https://images:8080/v1", "http://elsewhere:8080/v1", "http://images:8081/v1"])
def test_a_key_never_goes_to_another_server(name: str, url: str) -> None:
    provider = set_up(name).provider
    providers.set_provider(name, "http://IMAGES:8080/v2", None)  # the same server
    with pytest.raises(ValidationError, match="leads to another server"):
        providers.set_provider(name, url, None)
    assert Provider.objects.get(name=name).base_url == "http://IMAGES:8080/v2"
    providers.set_provider(name, url, "key-of-that-one")
    assert keys_of(provider) == [("key-of-that-one", True)], "a former key could be made active again"
    providers.set_provider(name, "http://images:8080/v1", "key-of-that-one")  # whoever gives it knows it
    assert keys_of(provider) == [("key-of-that-one", True)]


def test_what_was_switched_off_stays_so(name: str) -> None:
    model = set_up(name)
    for row in (model, model.provider):
        row.active = False
        row.save()
    model = set_up(name)
    assert (model.active, model.provider.active) == (False, False)


def test_a_start_undoes_nothing_that_an_administrator_did(name: str) -> None:
    environment = ("https://images.example/v1", KEY, name)
    with transaction.atomic():  # never committed: the default model is one for all
        chosen = providers.set_from_environment(*environment)
        assert chosen is not None
        assert chosen.default
        providers.make_default(set_up(f"{name}-2"))
        chosen.provider.active = False
        chosen.provider.save()
        chosen.active = chosen.default = False
        chosen.save()
        key = chosen.provider.keys.get()
        key.active = False
        key.save()
        again = providers.set_from_environment(*environment)
        assert again == chosen
        assert (again.default, again.active, again.provider.active) == (False, False, False)
        assert keys_of(again.provider) == [(KEY, False)]
        providers.set_from_environment("https://images.example/v1", "another-key", name)
        assert keys_of(again.provider) == [(KEY, False), ("another-key", True)]
        providers.set_from_environment("https://elsewhere.example/v1", "another-key", name)
        assert keys_of(again.provider) == [("another-key", True)]
        transaction.set_rollback(True)

"""Setting up providers: the verbs behind the commands, and what is known about models' sizes."""

from collections.abc import Iterable, Mapping

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import transaction

from config.encryption import WrongKey, decrypt, encrypt
from gateway.models import Model, ModelSize, Provider, ProviderKey, authority

MOVED = (
    "The base URL leads to another server: give the key of that one with it. The former key is never sent there, and is"
    " deleted."
)
ENVIRONMENT = "environment"  # the name of the provider that PROVIDER_BASE_URL describes

# Output tokens of one image at high quality, from OpenAI's image generation guide.
GPT_IMAGE_1_SIZES = {"1024x1024": 4160, "1024x1536": 6240, "1536x1024": 6208}
# Later GPT image models write text tokens too and have dearer qualities, whose most isn't published: about three
# times the dearest known image. A bound too high only makes a call wait for quota; one too low would overdraw it.
GPT_IMAGE_SIZES = {"1024x1024": 20_000, "1024x1536": 30_000, "1536x1024": 30_000}
OTHER_SIZES = {"256x256": 20_000, "512x512": 20_000, **GPT_IMAGE_SIZES}


def usual_sizes(upstream_name: str) -> dict[str, int]:
    """The sizes that a model is set up with unless told otherwise, each with the most tokens of one image.

    GPT image models draw neither 256x256 nor 512x512; a model that nothing is known about gets every size that
    clients commonly ask for (what it doesn't draw, the provider refuses, which costs nothing) at generous bounds.
    """
    name = upstream_name.rpartition("/")[2]
    if name in {"gpt-image-1", "gpt-image-1-mini"}:
        return dict(GPT_IMAGE_1_SIZES)
    return dict(GPT_IMAGE_SIZES if name.startswith("gpt-image-") else OTHER_SIZES)


@transaction.atomic
def set_provider(name: str, base_url: str, key: str | None) -> Provider:
    """Create the provider `name`, or bring it up to date. A new `key` replaces the former, which is set inactive.

    Without a key (None) an existing provider keeps its own, unless its base URL leads to another server: a key that
    nobody can read must not be sent where somebody can. With one, the former keys are then deleted. A provider that
    was set inactive stays so. Raises ValidationError for a wrong name, base URL or key, and when a key is missing.
    Setting what is already set changes nothing.
    """
    provider = Provider.objects.select_for_update().filter(name=name).first() or Provider(name=name)
    former = provider.base_url
    provider.base_url = base_url.rstrip("/")
    provider.full_clean()
    provider.save()
    moved = bool(former) and authority(former) != authority(provider.base_url)
    newest = provider.keys.filter(active=True).order_by("id").last()
    if key is None:
        if newest is None:
            raise ValidationError(f"The provider {name} needs a key.")
        if moved:
            raise ValidationError(MOVED)
    elif moved or newest is None or not _is_key(newest, key):
        added = _replace_key(provider, key)
        if moved:
            drop_former_keys(provider, [added])
    return provider


def drop_former_keys(provider: Provider, new: Iterable[ProviderKey]) -> None:
    """Of a provider that has moved to another server, delete all keys but the `new` ones. In a transaction.

    Setting them inactive wouldn't do: made active again, they would be sent to the new server.
    """
    provider.keys.exclude(pk__in=[key.pk for key in new]).delete()


def _is_key(stored: ProviderKey, key: str) -> bool:
    try:
        return decrypt(bytes(stored.encrypted)) == key
    except WrongKey:
        return False  # nobody can read it any more: to be replaced


def _replace_key(provider: Provider, key: str) -> ProviderKey:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValidationError("A provider's key is made of visible ASCII characters, without blanks.")
    for former in provider.keys.filter(active=True):
        former.active = False
        former.save(update_fields=["active"])
    number = provider.keys.count() + 1
    return ProviderKey.objects.create(provider=provider, label=f"key {number}", encrypted=encrypt(key))


@transaction.atomic
def set_model(
    provider: Provider,
    name: str,
    upstream_name: str = "",
    sizes: Mapping[str, int] | None = None,
    answer_form: str | None = None,
) -> Model:
    """Create the model `name` of `provider`, or bring it up to date.

    `upstream_name` is what the provider calls it (empty: as it is, at first the same name). `sizes` replaces its
    sizes; without it a model keeps those it has, and a new one gets `usual_sizes`. `answer_form` None keeps the form.
    A model that was set inactive stays so.
    Raises ValidationError for a wrong value, and when another provider already has a model of that name.
    """
    model = Model.objects.select_for_update().filter(name=name).first() or Model(name=name, provider=provider)
    if model.provider_id != provider.pk:
        raise ValidationError(f"The model {name} belongs to the provider {model.provider.name}.")
    model.upstream_name = upstream_name or model.upstream_name or name
    model.answer_form = model.answer_form if answer_form is None else answer_form
    model.full_clean()
    model.save()
    if sizes is None and not model.sizes.exists():
        sizes = usual_sizes(model.upstream_name)
    if sizes is not None:
        set_sizes(model, sizes)
    return model


def set_sizes(model: Model, sizes: Mapping[str, int]) -> None:
    """Replace a model's sizes: each maps to the most tokens of one image. Raises ValidationError. In a transaction."""
    for former in model.sizes.exclude(size__in=sizes):
        former.delete()
    for size, most_tokens in sizes.items():
        row = model.sizes.filter(size=size).first() or ModelSize(model=model, size=size)
        if row.most_tokens != most_tokens:
            row.most_tokens = most_tokens
            row.full_clean()
            row.save()


@transaction.atomic
def make_default(model: Model) -> None:
    """Let `model` answer the calls of tenants that name none, instead of whichever did until now."""
    for former in Model.objects.select_for_update().filter(default=True).exclude(pk=model.pk):
        former.default = False
        former.save(update_fields=["default"])
    model.default = True  # an old copy of the row may say so already
    model.save(update_fields=["default"])


def set_from_environment(base_url: str, key: str, model: str) -> Model | None:
    """Set up the provider `environment` with one model, from ``PROVIDER_*``; None when all are empty.

    A model that is new becomes the default. What an administrator has done since stays, as this runs at every start:
    another default; a provider, a model or the key itself switched off.

    Raises ImproperlyConfigured when only some are given or one is wrong.
    """
    given = {"PROVIDER_BASE_URL": base_url, "PROVIDER_API_KEY": key, "PROVIDER_MODEL": model}
    missing = [name for name, value in given.items() if not value]
    if len(missing) == len(given):
        return None
    if missing:
        raise ImproperlyConfigured(f"{' and '.join(missing)} must be set too, or none of {', '.join(given)}.")
    try:
        with transaction.atomic():
            new = not Model.objects.filter(name=model).exists()
            chosen = set_model(_provider_of_environment(base_url, key), model)
            if new:
                make_default(chosen)
    except ValidationError as exc:
        raise ImproperlyConfigured(f"PROVIDER_BASE_URL, _API_KEY or _MODEL: {' '.join(exc.messages)}") from exc
    return chosen


def _provider_of_environment(base_url: str, key: str) -> Provider:
    known = Provider.objects.filter(name=ENVIRONMENT).first()
    newest = known.keys.order_by("id").last() if known else None
    if known and newest and not newest.active and known.base_url == base_url.rstrip("/") and _is_key(newest, key):
        return known  # somebody has switched this very key off
    return set_provider(ENVIRONMENT, base_url, key)

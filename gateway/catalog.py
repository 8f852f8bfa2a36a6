"""The catalog: providers, models and allowed origins, as the web processes know them.

PostgreSQL holds the truth. `publish` copies it to one string in the admission store, with the keys still encrypted;
each web process reads that string every second and decrypts it in memory, so no call waits for SQL, and a change
made anywhere is known everywhere a second later.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

import msgspec
from django.db.models import F, Func

from config.encryption import WrongKey, decrypt
from config.redis import store
from gateway.models import Model, ProviderKey
from tokens.admission import keys
from tokens.models import Status, Tenant

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UpstreamModel:
    """A model, and all that calling it takes. `sizes` maps each size it draws to the most tokens of one image."""

    name: str
    provider: str
    base_url: str  # up to and including the version, no slash at its end
    key: str = field(repr=False)
    upstream_name: str
    answer_form: str  # b64_json, url, or nothing for the provider's default
    prompt_limit: int  # characters
    sizes: Mapping[str, int]
    quality: str = ""  # that the provider is asked for; nothing for its own choice


@dataclass(frozen=True, slots=True)
class Catalog:
    """One version of the catalog; `origins` are those of all active tenants together, in lower case."""

    version: str
    models: Mapping[str, UpstreamModel]
    default: str | None
    origins: frozenset[str]

    def pick(self, name: str) -> UpstreamModel | None:
        """The model called `name`, or the default model for an empty name; None where there is none."""
        return self.models.get(name or self.default or "")

    def allows(self, origin: str) -> bool:
        """Whether any tenant's pages may come from `origin`. The call itself is held to its own tenant's origins."""
        return "*" in self.origins or origin.lower() in self.origins


class _Entry(msgspec.Struct):
    name: str
    provider: str
    base_url: str
    key: str  # encrypted
    upstream_name: str
    answer_form: str
    prompt_limit: int
    sizes: dict[str, int]
    quality: str = ""


class _Published(msgspec.Struct):
    models: list[_Entry]
    default: str | None
    origins: list[str]


def build() -> bytes:
    """The catalog in PostgreSQL as compact JSON, the same bytes for the same content.

    Listed are the active models of active providers that have an active key (the newest counts) and at least one
    size. Keys are as encrypted as in the database.
    """
    newest: dict[int, str] = {}
    for provider, encrypted in (
        ProviderKey.objects.filter(active=True).order_by("id").values_list("provider_id", "encrypted")
    ):
        newest[provider] = bytes(encrypted).decode("ascii")
    rows = Model.objects.filter(active=True, provider__active=True).select_related("provider").order_by("name")
    offered = [row for row in rows.prefetch_related("sizes") if row.provider_id in newest and row.sizes.all()]
    default = next((row.name for row in offered if row.default), None)
    entries = [_entry(row, newest[row.provider_id]) for row in offered]
    return msgspec.json.encode(_Published(entries, default, _origins()), order="deterministic")


def _entry(row: Model, encrypted: str) -> _Entry:
    return _Entry(
        name=row.name,
        provider=row.provider.name,
        base_url=row.provider.base_url.rstrip("/"),
        key=encrypted,
        upstream_name=row.upstream_name,
        answer_form=row.answer_form,
        prompt_limit=row.prompt_limit,
        sizes={size.size: size.most_tokens for size in row.sizes.all()},
        quality=row.quality,
    )


def _origins() -> list[str]:
    written = (
        Tenant.objects.filter(status=Status.ACTIVE)
        .annotate(origin=Func(F("origins"), function="unnest"))
        .values_list("origin", flat=True)
        .distinct()
    )
    return sorted({origin.strip().rstrip("/").lower() for origin in written})


def publish() -> bool:
    """Bring the store's copy up to date; returns whether it had to change. Raises redis.RedisError.

    Whoever writes reads PostgreSQL once more afterwards: otherwise a slow publisher could put an older catalog over
    a newer one, and it would stay until the next change.
    """
    client, changed = store(), False
    while (raw := build()) != client.get(keys.CATALOG):
        client.set(keys.CATALOG, raw)
        changed = True
    return changed


def parse(raw: bytes) -> Catalog:
    """The catalog from its published form, keys decrypted.

    A model whose key can't be decrypted is left out, and the log says so once. Raises ValueError for bytes that
    `build` didn't make, and ImproperlyConfigured when ``ENCRYPTION_KEYS`` holds something that is no key.
    """
    published = msgspec.json.decode(raw, type=_Published)
    models = {entry.name: model for entry in published.models if (model := _opened(entry)) is not None}
    return Catalog(
        version=hashlib.sha256(raw).hexdigest()[:16],
        models=MappingProxyType(models),
        default=published.default if published.default in models else None,
        origins=frozenset(published.origins),
    )


def _opened(entry: _Entry) -> UpstreamModel | None:
    try:
        key = decrypt(entry.key.encode("ascii"))
    except WrongKey:
        _report(entry.provider, entry.key)
        return None
    return UpstreamModel(
        name=entry.name,
        provider=entry.provider,
        base_url=entry.base_url,
        key=key,
        upstream_name=entry.upstream_name,
        answer_form=entry.answer_form,
        prompt_limit=entry.prompt_limit,
        sizes=MappingProxyType(entry.sizes),
        quality=entry.quality,
    )


@lru_cache(maxsize=1024)
def _report(provider: str, encrypted: str) -> None:
    """Log a key that can't be opened, once in this process (`encrypted` only tells one key from the next)."""
    logger.error("The key of provider %s can't be decrypted with ENCRYPTION_KEYS; its models are left out.", provider)

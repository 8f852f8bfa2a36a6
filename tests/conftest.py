"""Fixtures: a migrated database, tenants of one's own, and a running gateway with its sandbox provider."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.core.cache import cache
from django.core.management import call_command
from django.test import Client

from config import encryption
from gateway import catalog
from gateway.models import Model, ModelSize, Provider, ProviderKey
from tests import processes, stack
from tests.adminpages import PASSWORD
from tokens import issuing
from tokens.installation import ensure_installation
from tokens.models import Membership, ProxyToken, Tenant, User
from usage import guardian

SANDBOX_KEY = "sandbox-key-of-the-tests"
SIZES = {"256x256": 1200, "512x512": 2400, "1024x1024": 4800}
PATH = "/wp-json/my-proxy/v1/generate-image"


@pytest.fixture(scope="session")
def django_db_setup(django_db_blocker: Any) -> Iterator[None]:
    """One real database for the whole run, as web and worker processes need it; nothing is rolled back."""
    with django_db_blocker.unblock():
        call_command("migrate", verbosity=0)
        ensure_installation()
        assert guardian.confirm(wait=False) in {"rebuilt", "confirmed"}
    yield


@pytest.fixture(scope="session", autouse=True)
def _quick_passwords() -> Iterator[None]:
    """A password takes a third of a second to hash, by design; here one round. Processes of the tests read it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PBKDF2PasswordHasher, "iterations", 1)
        yield


@pytest.fixture(autouse=True)
def _database(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    cache.clear()  # failed authentications are counted by address, and tests share theirs
    with django_db_blocker.unblock():
        yield


@dataclass
class Customer:
    """A tenant of one test's own with a member and a token; `secret` is what clients present."""

    tenant: Tenant
    member: Membership
    token: ProxyToken
    secret: str = field(repr=False)

    def limit(self, *texts: str, scope: str = "tenant") -> None:
        """Set limits of a scope, such as ``images:100/day``."""
        owners: dict[str, Tenant | Membership | ProxyToken] = {
            "tenant": self.tenant,
            "member": self.member,
            "token": self.token,
        }
        issuing.set_limits(owners[scope], list(texts))


@pytest.fixture
def make_customer() -> Callable[..., Customer]:
    """Makes customers; keyword arguments become the tenant's fields."""

    def make(**fields: Any) -> Customer:
        slug = f"t{uuid.uuid4().hex[:12]}"
        fields.setdefault("origins", ["*"])
        tenant = issuing.create_tenant(slug, fields.pop("name", slug), **fields)
        member = issuing.add_member(tenant, f"{slug}@example.com")
        token, secret = issuing.issue_token(member, name="test")
        return Customer(tenant, member, token, secret)

    return make


@pytest.fixture
def customer(make_customer: Callable[..., Customer]) -> Customer:
    """A customer without limits."""
    return make_customer()


@dataclass
class Gateway:
    """A running gateway: its address, an HTTP client, and the sandbox's own account of what it drew."""

    url: str
    folder: Path
    client: httpx.Client
    headers: dict[str, str] = field(default_factory=dict)

    def post(self, token: str | None, body: Any = None, **headers: str) -> httpx.Response:
        """POST to the endpoint; a dict is sent as JSON, bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body)
        sent = {"Content-Type": "application/json", **headers}
        if token is not None:
            sent["X-Proxy-Token"] = token
        return self.client.post(self.url + PATH, content=content, headers=sent)

    def drawn(self) -> dict[str, dict[str, Any]]:
        """The sandbox's account by request id."""
        path = self.folder / "sandbox" / "generations.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        entries = [json.loads(line) for line in lines]
        return {entry["request_id"]: entry for entry in entries}


def point_at(url: str, key: str = SANDBOX_KEY, name: str = "sandbox", default: bool = True) -> Model:
    """Make provider, key and model rows that send calls to `url`, and publish them."""
    provider, _ = Provider.objects.update_or_create(name=name, defaults={"base_url": f"{url}/v1"})
    ProviderKey.objects.filter(provider=provider).delete()
    ProviderKey.objects.create(provider=provider, label="tests", encrypted=encryption.encrypt(key))
    model, _ = Model.objects.update_or_create(
        name=name, defaults={"provider": provider, "upstream_name": "sandbox-image-1", "default": default}
    )
    for size, most in SIZES.items():
        ModelSize.objects.update_or_create(model=model, size=size, defaults={"most_tokens": most})
    catalog.publish()
    return model


@pytest.fixture(scope="session")
def provider(django_db_setup: None, django_db_blocker: Any) -> Iterator[Path]:
    """The sandbox provider, and the rows that point at it; yields the folder of the run."""
    folder = stack.FOLDER / "run"
    with processes.sandbox(folder / "sandbox", SANDBOX_KEY) as url:
        with django_db_blocker.unblock():
            point_at(url)
        yield folder


@pytest.fixture(scope="session")
def gateway(provider: Path) -> Iterator[Gateway]:
    """One web process with short time-outs."""
    with (
        processes.web(provider, UPSTREAM_DEADLINE="4", LEASE_MARGIN="2", BODY_TIMEOUT="1") as (url, _),
        httpx.Client(timeout=30) as client,
    ):
        yield Gateway(url, provider, client)


@pytest.fixture(scope="session")
def celery_worker_process(provider: Path) -> Iterator[processes.Process]:
    """A Celery worker with beat."""
    with processes.worker(provider) as process:
        yield process


@pytest.fixture
def operator() -> User:
    """An administrator."""
    return User.objects.create_superuser(f"{uuid.uuid4().hex}@operators.test", PASSWORD)


@pytest.fixture
def admin(operator: User) -> Client:
    """A browser in which the administrator has signed in."""
    client = Client()
    client.force_login(operator)
    return client


def pytest_report_header() -> str:
    """Say where the run's servers are."""
    return f"servers in {stack.FOLDER}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what this machine can't run, unless REQUIRE_ALL=1 demands everything."""
    if stack.REQUIRE_ALL:
        return
    for marker, program in (("browser", "chromium"), ("node", "node")):
        if item.get_closest_marker(marker) and shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (REQUIRE_ALL=1 demands it)")

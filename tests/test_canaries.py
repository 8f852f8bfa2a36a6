"""Canaries: a run of the whole stack, and a search for its secrets and prompts in all that was written or said."""

import base64
import binascii
import contextlib
import html
import json
import logging
import os
import re
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings

from config.redis import store
from gateway.models import ProviderKey
from tests import processes
from tests.adminpages import page, rows
from tests.conftest import Customer, Gateway, point_at
from tests.contract import SMALL
from tests.ledgerwatch import in_flight, outcome
from tests.ownvalkey import OwnValkey, own_valkey
from tests.test_secrets import everything_in_the_database, everything_in_the_store
from tokens import issuing
from tokens.models import AuditEntry, User

SHORT = {"UPSTREAM_DEADLINE": "4", "LEASE_MARGIN": "1", "SETTLE_RETRY_SECONDS": "0.2", "LOG_LEVEL": "DEBUG"}
DIRECTIVES = ["status=400", "status=401", "status=429", "status=500", "drop=after_draw", "drop=midway", "body=garbage"]


def forms(secret: str) -> dict[str, bytes]:
    """The ways in which a secret may have been written."""
    raw = secret.encode()
    found = {
        "raw": raw,
        "in a URL": urllib.parse.quote(secret, safe="").encode(),
        "in a form": urllib.parse.quote_plus(secret).encode(),
        "in JSON": json.dumps(secret)[1:-1].encode(),
        "in HTML": html.escape(secret).encode(),
        "in hexadecimal": binascii.hexlify(raw),
        "in capital hexadecimal": binascii.hexlify(raw).upper(),
        "backwards": raw[::-1],
        "in UTF-16": secret.encode("utf-16-le"),
    }
    for shift in range(3):  # base64 of the secret within something else; its ends depend on what is beside it
        encoded = base64.b64encode(b"x" * shift + raw)
        inner = encoded[-(-shift * 8 // 6) : len(encoded) - 4]
        found[f"in base64, shifted by {shift}"] = inner
        found[f"in base64 for URLs, shifted by {shift}"] = inner.replace(b"+", b"-").replace(b"/", b"_")
    return found


def leaks(places: dict[str, bytes], canaries: dict[str, str]) -> list[str]:
    """Where a canary is found: which, how it was written, and in what."""
    return [
        f"{name} {form} in {place}"
        for name, secret in canaries.items()
        for form, needle in forms(secret).items()
        for place, text in places.items()
        if needle in text
    ]


@dataclass
class Run:
    """One run: the canaries by name, and all that was said and written, by place."""

    folder: Path
    canaries: dict[str, str] = field(default_factory=dict)
    said: dict[str, bytes] = field(default_factory=dict)
    counter: int = 0

    def note(self, answer: httpx.Response, shown: str = "") -> httpx.Response:
        """Keep an answer for the search, but for the one secret that it is there to show."""
        self.counter += 1
        text = (answer.text + str(answer.headers.multi_items())).replace(shown or "\0", "")
        self.said[f"answer {self.counter}, {answer.request.method} {answer.url.path}"] = text.encode()
        return answer

    def files(self, *roots: Path) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for root in roots for path in root.rglob("*") if path.is_file()}


@contextlib.contextmanager
def monitoring(valkey: OwnValkey) -> Iterator[list[bytes]]:
    """Every command that any process sends to the store, the cache or the broker meanwhile."""
    heard: list[bytes] = []
    ending = threading.Event()

    def listen() -> None:
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                heard.append(connection.recv(1 << 20))

    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(0.2)
        connection.connect(urllib.parse.urlsplit(valkey.url).path)
        connection.sendall(b"MONITOR\r\n")
        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield heard
        finally:
            ending.set()
            thread.join()


class Person:
    """An administrator's browser, over HTTP."""

    def __init__(self, run: Run, client: httpx.Client, password: str) -> None:
        self.run, self.client = run, client
        user = User.objects.create_superuser(f"{uuid.uuid4().hex}@canary.test", password)
        run.note(self.client.get("/admin/login/"))
        wrong = {"username": user.email, "password": f"{password}x"}
        assert self.post("/admin/login/", wrong).status_code == 200
        assert self.post("/admin/login/", {"username": user.email, "password": password}).status_code == 302

    def post(self, path: str, data: dict[str, Any], shows: bool = False) -> httpx.Response:
        token = {"csrfmiddlewaretoken": self.client.cookies["csrftoken"]}
        answer = self.client.post(path, data={**data, **token}, headers={"Referer": str(self.client.base_url) + path})
        secret = secret_in(answer.text) if shows else ""
        return self.run.note(answer, secret)

    def get(self, path: str) -> httpx.Response:
        """The page that is shown in the end; the redirects on the way to it are kept, too."""
        answer = self.client.get(path, follow_redirects=True)
        for one in (*answer.history, answer):
            self.run.note(one)
        return answer


def secret_in(text: str) -> str:
    (found,) = set(re.findall(r'value="(gem_[0-9A-Za-z]{46})"', text))
    return str(found)


def call_in_every_way(run: Run, gateway: Gateway, customer: Customer) -> None:
    """Successes, refusals, faults, a near miss of the token, broken bodies, a replay, a token in the wrong place."""
    prompt, token, key = run.canaries["prompt"], customer.secret, run.canaries["idempotency key"]
    asked = {**SMALL, "prompt": f'a ruby, "{prompt}" & ünï <b>'}
    good = run.note(gateway.post(token, asked, **{"Idempotency-Key": key}))
    assert good.status_code == 200, good.text
    assert "/images/" in good.json()["data"][0]["url"], "an image that was sent as base64"
    run.note(gateway.client.get(good.json()["data"][0]["url"]))
    assert run.note(gateway.post(token, asked, **{"Idempotency-Key": key})).headers["idempotent-replayed"] == "true"
    assert run.note(gateway.post(token, {**asked, "n": 2}, **{"Idempotency-Key": key})).status_code == 422
    with ThreadPoolExecutor(8) as threads:
        bodies = [{**SMALL, "prompt": f"{prompt} [sandbox {directive}]"} for directive in DIRECTIVES]
        for answer in threads.map(lambda body: gateway.post(token, body), bodies):
            assert run.note(answer).status_code in {400, 500, 503}
    near = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert run.note(gateway.post(near, asked)).status_code == 403
    assert run.note(gateway.post(token.swapcase(), asked)).status_code == 403
    for body in (f'{{"prompt":"{prompt}'.encode(), f'{{"prompt":"{prompt}","n":9}}'.encode(), prompt.encode() * 9000):
        assert run.note(gateway.post(token, body)).status_code in {400, 413}
    assert run.note(gateway.post(token, asked, Authorization=f"Bearer {near}")).status_code == 400
    url = f"{gateway.url}/v1/{urllib.parse.quote(prompt)}?token={token}&key={run.canaries['provider key']}"
    assert run.note(gateway.client.post(url, headers={"Cookie": f"a={token}"})).status_code == 404


def administer(run: Run, url: str, customer: Customer, provider: int) -> None:
    """Sign in, issue, rotate and revoke tokens, replace a provider's key, look at every page that may show one."""
    with httpx.Client(base_url=url, timeout=20) as client:
        administer_as(Person(run, client, run.canaries["password"]), run, customer, provider)


def administer_as(person: Person, run: Run, customer: Customer, provider: int) -> None:
    fields = {"tenant": customer.tenant.pk, "email": "ci@example.com", "name": "ci", "expires": "", "networks": ""}
    issued = person.post(page("tokens_proxytoken_add"), fields | rows("limits"), shows=True)
    run.canaries["issued token"] = secret_in(issued.text)
    rotated = person.post(page("tokens_proxytoken_rotate", customer.token.pk), {"grace": 1}, shows=True)
    run.canaries["rotated token"] = secret_in(rotated.text)
    newest = customer.tenant.tokens.latest("pk")
    assert person.post(page("tokens_proxytoken_revoke", newest.pk), {"reason": "lost"}).status_code == 302
    stored = ProviderKey.objects.get(provider=provider)
    keys: list[dict[str, Any]] = [
        {"id": stored.pk, "provider": provider, "label": "old", "active": "on"},
        {"label": "new", "key": run.canaries["new provider key"]},
    ]
    data = {"base_url": stored.provider.base_url, "active": "on"} | rows("keys", *keys, initial=1)
    model = stored.provider.models.get()
    shown = {
        "id": model.pk,
        "provider": provider,
        "name": model.name,
        "upstream_name": model.upstream_name,
        "sizes": "",
        "active": "on",
    }
    changed = person.post(page("gateway_provider_change", provider), data | rows("models", shown, initial=1))
    assert changed.status_code == 302, changed.text
    wrong = data | {"base_url": "nonsense"} | rows("models", shown, initial=1)
    person.post(page("gateway_provider_change", provider), wrong)  # shown again, with what is wrong
    for name, *key in (
        ("index",),
        ("gateway_provider_changelist",),
        ("gateway_provider_change", provider),
        ("tokens_proxytoken_changelist",),
        ("tokens_proxytoken_change", customer.token.pk),
        ("usage_usagerecord_changelist",),
        ("usage_unresolvedcall_changelist",),
        ("tokens_auditentry_changelist",),
    ):
        answer = person.get(page(name, *key))
        assert (answer.status_code, answer.url.path) == (200, page(name, *key))
    look_at_the_trail(person, page("gateway_provider_history", provider), "gateway.provider", provider)
    look_at_the_trail(
        person, page("tokens_proxytoken_history", customer.token.pk), "tokens.proxytoken", customer.token.pk
    )


def look_at_the_trail(person: Person, history: str, kind: str, number: int) -> None:
    """What a history leads to: the list of what was done to it, then the page of each of these entries."""
    shown = person.get(history)
    assert (shown.status_code, shown.url.path) == (200, page("tokens_auditentry_changelist"))
    entries = AuditEntry.objects.filter(object_type=kind, object_id=number)
    assert entries.exists(), "the control: there is something to look at"
    for entry in entries:
        address = page("tokens_auditentry_change", entry.pk)
        assert address in shown.text, "the control: the list shows it"
        assert (answer := person.get(address)).url.path == address and answer.status_code == 200


def spool_a_call(run: Run, gateway: Gateway, customer: Customer, valkey: OwnValkey, spool: Path) -> None:
    """A call that ends with the store frozen and PostgreSQL out of reach; its file is kept for the search."""
    body = {**SMALL, "prompt": f"{run.canaries['prompt']} [sandbox delay=2s]"}
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(gateway.post, run.canaries["rotated token"], body)
        processes.wait_until(lambda: in_flight(customer), what="the call in flight")
        time.sleep(0.3)  # until the process has heard that it was admitted
        with valkey.frozen():
            answer = run.note(call.result())
            assert answer.status_code == 200, answer.text
            spooled = run.files(spool)
            assert [name for name in spooled if name.endswith(".json")], "the control: it is spooled"
            run.said |= {f"spool {name}": content for name, content in spooled.items()}


@pytest.fixture
def run(provider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run of the whole stack with canaries in it; everything that was said and written is in `said`."""
    tmp_path.chmod(0o755)
    mark = uuid.uuid4().hex
    made = Run(tmp_path)
    made.canaries = {
        "prompt": f"canary-prompt-{mark}",
        "provider key": f"sk-canary-{mark}",
        "new provider key": f"sk-second-canary-{mark}",
        "password": f"canary password+{mark}/ü",
        "idempotency key": f"canary-key-{mark}",
        "database password": f"canary-database-{mark}",
        "pepper": settings.TOKEN_PEPPERS[1].decode(),
        "encryption key": settings.ENCRYPTION_KEYS[0],
        "secret key": settings.SECRET_KEY,
    }
    environment: dict[str, Any] = {**SHORT, "DATA": str(tmp_path)}
    away = f"postgresql://gateway:{made.canaries['database password']}@127.0.0.1:1/gateway"
    with (
        processes.sandbox(tmp_path / "provider", made.canaries["provider key"]) as sandbox,
        own_valkey(monkeypatch) as valkey,
        monitoring(valkey) as heard,
    ):
        model = point_at(sandbox, made.canaries["provider key"], f"canary-{mark[:8]}", default=False)
        tenant = issuing.create_tenant(f"canary-{mark[:12]}", "Canary", origins=["*"], model=model.name)
        member = issuing.add_member(tenant, f"{mark}@example.com")
        customer = Customer(tenant, member, *issuing.issue_token(member, name="test"))
        customer.limit("images:1000/day", "tokens:9000000/month")
        made.canaries["token"] = customer.secret
        with (
            processes.web(tmp_path, **environment) as (url, _),
            processes.web(tmp_path, **environment, DATABASE_URL=away) as (other, _),
            processes.worker(tmp_path, **environment),
            httpx.Client(timeout=20) as client,
        ):
            call_in_every_way(made, Gateway(url, tmp_path, client), customer)
            administer(made, url, customer, model.provider_id)
            spool_a_call(made, Gateway(other, tmp_path, client), customer, valkey, tmp_path / "spool")
            made.note(client.get(f"{url}/metrics"))
            booked = made.note(Gateway(url, tmp_path, client).post(made.canaries["rotated token"], SMALL))
            outcome(booked.headers["x-request-id"])
        store().save()
        made.said["store"] = everything_in_the_store()
        made.said["database"] = everything_in_the_database().encode()
        made.said |= made.files(valkey.folder, valkey.log.parent)
        made.said["monitor"] = b"".join(heard)
        provider_folder = tmp_path / "provider"
        made.said |= {
            name: content for name, content in made.files(tmp_path).items() if not name.startswith(str(provider_folder))
        }
        yield made
    for row in ProviderKey.objects.filter(provider=model.provider_id):
        row.delete()
    model.active = False
    model.save()


@pytest.mark.timeout(180)
def test_no_secret_and_no_prompt_is_found_anywhere(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    texts = run.said
    # The control: every place was searched that there is, and holds what it must.
    assert any(name.endswith(".aof") and b"reservation:" in text for name, text in texts.items())
    assert any(name.endswith(".rdb") for name in texts)
    assert any("web-" in name and b'"event":"request"' in text for name, text in texts.items())
    assert any("worker-" in name and text for name, text in texts.items())
    assert any("/images/" in name and text.startswith(b"\x89PNG") for name, text in texts.items())
    assert b"usage.drain" in texts["monitor"], "Celery's messages went by"
    assert b"canary-" in texts["database"]
    assert b"EVALSHA" in texts["monitor"].upper()
    assert sum(name.startswith("answer") for name in texts) > 30

    assert leaks(texts, run.canaries) == []
    halves = {name: run.canaries[name][10:40] for name in ("token", "issued token", "rotated token")}
    assert leaks(texts, halves) == [], "nor a large part of a token"
    shown_elsewhere(run, caplog)


def shown_elsewhere(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The control: the same search finds each canary, in each form, once it is let out."""
    for secret in run.canaries.values():
        for needle in forms(secret).values():
            assert leaks({"planted": b"<<" + needle + b">>"}, {"it": secret})
        with caplog.at_level(logging.INFO):
            logging.getLogger("gateway.lifecycle").info("sending", extra={"prompt": secret})
        assert leaks({"log": str([vars(record) for record in caplog.records]).encode()}, {"it": secret})
    worst = b"Basic " + base64.b64encode(f"user:{run.canaries['token']}".encode())
    assert leaks({"header": worst}, {"token": run.canaries["token"]})


def test_control_a_product_that_logs_prompts_is_caught(provider: Path, customer: Customer, tmp_path: Path) -> None:
    prompt = f"canary-prompt-{uuid.uuid4().hex}"
    entry: dict[str, Any] = {"PYTHONPATH": os.pathsep.join([str(processes.ROOT), os.environ.get("PYTHONPATH", "")])}
    with (
        processes.web(tmp_path, application="tests.controls.logging_prompts:application", **entry) as (url, process),
        httpx.Client(timeout=20) as client,
    ):
        answer = Gateway(url, provider, client).post(customer.secret, {**SMALL, "prompt": prompt})
        assert answer.status_code == 200
        assert leaks({"log": process.text().encode()}, {"prompt": prompt})

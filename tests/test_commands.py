"""The commands about tenants, tokens and limits, as people and scripts run them; and with a server down."""

import datetime as dt
import io
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command

from config.redis import store
from tests.conftest import Customer
from tests.embedded import Servers, start_servers
from tests.test_issuing import principal, works
from tokens import installation, issuing, secrets
from tokens.admission import keys
from tokens.management.base import operator
from tokens.models import Installation, Limit, ProxyToken, Secret, Tenant


@pytest.fixture
def slug() -> str:
    return f"acme-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def email() -> str:
    return f"alice-{uuid.uuid4().hex[:12]}@acme.test"


def run(*words: str) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    output, errors = io.StringIO(), io.StringIO()
    call_command(*words, stdout=output, stderr=errors)
    return output.getvalue(), errors.getvalue()


def refusal(*words: str) -> str:
    """The sentence with which a command refuses."""
    with pytest.raises(CommandError) as refused:
        run(*words)
    sentence = str(refused.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_from_a_tenant_to_a_token(slug: str, email: str) -> None:
    run("tenant", "create", slug, "--name", "Acme Ltd", "--timezone", "Europe/Berlin", "--limit", "images:9/day")
    words = ["--tenant", slug, "--user", email, "--name", "ci", "--expires", "90d", "--limit", "images:5/day"]
    output, errors = run("token", "issue", *words, "--limit", "requests:60/minute:burst=5")
    secret = output.removesuffix("\n")
    assert secrets.is_plausible(secret) and "\n" not in secret
    assert secret not in errors
    token = ProxyToken.objects.get(tenant__slug=slug)
    assert f"Token {token.pk}" in errors and token.created_by == operator()
    found = principal(secret)
    assert found is not None and works(secret)
    assert [(scoped.scope, str(scoped.limit.amount)) for scoped in found.limits] == [
        ("token", "5"),
        ("token", "60"),
        ("tenant", "9"),
    ]
    days = (token.expires_at - dt.datetime.now(dt.UTC)) / dt.timedelta(days=1) if token.expires_at else 0
    assert 89.9 < days <= 90
    (line,) = (line for line in run("tenant", "list")[0].splitlines() if line.startswith(slug))
    assert line.split("\t") == [slug, "Acme Ltd", "active", "Europe/Berlin", "1", "1"]


def test_lists_show_a_token_a_line(customer: Customer) -> None:
    token, _ = issuing.issue_token(customer.member, "two\nlines\tand a tab")
    output, _ = run("token", "list", "--tenant", customer.tenant.slug)
    lines = [line.split("\t") for line in output.splitlines()]
    assert [line[0] for line in lines] == [str(customer.token.pk), str(token.pk)]
    assert lines[0] == [
        *(str(customer.token.pk), "test", customer.tenant.slug, customer.member.user.email),
        *("active", customer.secret[:10], "never", "never"),
    ]
    assert lines[1][1] == "two lines and a tab"
    assert str(token.pk) in {line.split("\t")[0] for line in run("token", "list")[0].splitlines()}


def test_show_tells_where_each_secret_was_last_used(customer: Customer) -> None:
    run("token", "rotate", str(customer.token.pk), "--grace", "12h")
    at = dt.datetime(2026, 11, 22, 8, 30, tzinfo=dt.UTC)
    Secret.objects.filter(token=customer.token, accepted_until__isnull=False).update(
        last_used_at=at, last_used_from="203.0.113.9", last_used_by="curl/8.5"
    )
    customer.limit("images:5/day", scope="token")
    output, _ = run("token", "show", str(customer.token.pk))
    assert "images:5/day" in output and "current; never used" in output
    assert "last used 2026-11-22T08:30:00Z from 203.0.113.9 by curl/8.5" in output
    digests = Secret.objects.filter(token=customer.token).values_list("digest", flat=True)
    assert not any(digest in output for digest in digests)


def test_rotate_and_end_the_old_secret(customer: Customer) -> None:
    number = str(customer.token.pk)
    output, errors = run("token", "rotate", number)
    second = output.strip()
    assert works(customer.secret) and works(second) and "accepted until" in errors
    run("token", "revoke", number, "--secret", "old")
    assert not works(customer.secret) and works(second)
    assert "no old secret" in refusal("token", "end-grace", number)
    third = run("token", "rotate", number, "--grace", "0h")[0].strip()
    assert not works(second) and works(third)
    run("token", "rotate", number)
    run("token", "end-grace", number)
    assert not works(third)


def test_revoke(customer: Customer) -> None:
    run("token", "revoke", str(customer.token.pk), "--reason", "lost laptop")
    assert not works(customer.secret)
    output, _ = run("token", "show", str(customer.token.pk))
    assert "revoked" in output and f"by {operator()}" in output and "lost laptop" in output
    assert "final" in refusal("token", "rotate", str(customer.token.pk))


def test_import_reads_standard_input(customer: Customer, email: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = f"former-{uuid.uuid4().hex}"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{secret}\n"))
    output, errors = run("token", "import", "--tenant", customer.tenant.slug, "--user", email, "--name", "former")
    assert works(secret) and secret not in output + errors
    monkeypatch.setattr(sys, "stdin", io.StringIO("too short\n"))
    assert "20 to 255" in refusal(
        "token", "import", "--tenant", customer.tenant.slug, "--user", email, "--name", "former"
    )


def test_limits_are_set_listed_and_removed(customer: Customer) -> None:
    tenant, user = customer.tenant.slug, customer.member.user.email
    run("limit", "set", "--tenant", tenant, "tokens:2000000/month", "requests:60/minute", "concurrent:8")
    run("limit", "set", "--tenant", tenant, "--user", user, "images:7/total")
    run("limit", "set", "--tenant", tenant, "--token", str(customer.token.pk), "images:3/day")
    assert run("limit", "list", "--tenant", tenant)[0].splitlines() == [
        f"tenant {tenant}\ttokens:2000000/month",
        f"tenant {tenant}\trequests:60/minute",
        f"tenant {tenant}\tconcurrent:8",
    ]
    assert run("limit", "list", "--tenant", tenant, "--user", user)[0] == f"member {user}\timages:7/total\n"
    run("limit", "remove", "--tenant", tenant, "requests/minute", "concurrent")
    assert Limit.objects.filter(tenant=customer.tenant).count() == 3
    found = principal(customer.secret)
    assert found is not None and len(found.limits) == 3


def test_stop_and_start_a_tenant(customer: Customer) -> None:
    for stop, start in ((["stop", "--tenant"], ["start", "--tenant"]), (["tenant", "suspend"], ["tenant", "activate"])):
        run(*stop, customer.tenant.slug)
        assert not works(customer.secret)
        assert Tenant.objects.get(pk=customer.tenant.pk).status == "suspended"
        run(*start, customer.tenant.slug)
        assert works(customer.secret)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["tenant", "create", "not a slug"], "slug"),
        (["tenant", "create", "x", "--timezone", "Mars"], "time zone"),
        (["tenant", "suspend", "there-is-none"], "no tenant 'there-is-none'"),
        (["token", "list", "--tenant", "there-is-none"], "no tenant"),
        (["token", "show", "999999999"], "no token 999999999"),
        (["token", "revoke", "999999999"], "no token 999999999"),
        (["token", "issue", "--tenant", "SLUG", "--user", "nobody", "--name", "ci"], "valid email"),
        (["token", "issue", "--tenant", "SLUG", "--user", "a@b.test", "--name", " "], "name"),
        (["token", "issue", "--tenant", "SLUG", "--user", "a@b.test", "--name", "x", "--expires", "soon"], "expiry"),
        (
            ["token", "issue", "--tenant", "SLUG", "--user", "a@b.test", "--name", "x", "--expires", "2020-01-01"],
            "come",
        ),
        (["token", "issue", "--tenant", "SLUG", "--user", "a@b.test", "--name", "x", "--limit", "images"], "a limit"),
        (["limit", "set", "--tenant", "SLUG", "images:5/week"], "period"),
        (["limit", "set", "--tenant", "SLUG", "--user", "nobody@x.test", "images:5/day"], "no member"),
        (["limit", "set", "--tenant", "SLUG", "--token", "999999999", "images:5/day"], "no token"),
        (["limit", "remove", "--tenant", "SLUG", "images/day"], "no limit"),
        (["stop", "--tenant", "there-is-none"], "no tenant"),
    ],
)
def test_refusals_are_one_sentence_and_change_nothing(customer: Customer, words: list[str], part: str) -> None:
    before = (Tenant.objects.count(), ProxyToken.objects.count(), Limit.objects.count(), Secret.objects.count())
    members = customer.tenant.members.count()
    assert part in refusal(*(customer.tenant.slug if word == "SLUG" else word for word in words))
    assert before == (Tenant.objects.count(), ProxyToken.objects.count(), Limit.objects.count(), Secret.objects.count())
    assert customer.tenant.members.count() == members


def test_the_number_of_shards_is_fixed(settings: Any) -> None:
    assert installation.ensure_installation().shards == settings.SHARDS
    settings.SHARDS = 8
    with pytest.raises(ImproperlyConfigured, match="SHARDS is 8 but this installation was made with 16"):
        installation.ensure_installation()


def test_an_expiry_without_an_offset_is_the_tenants(make_customer: Any, email: str) -> None:
    customer = make_customer(timezone="Asia/Tokyo")
    run("token", "issue", "--tenant", customer.tenant.slug, "--user", email, "--name", "x", "--expires", "2099-01-31")
    token = ProxyToken.objects.get(tenant=customer.tenant, name="x")
    assert token.expires_at == dt.datetime(2099, 1, 30, 15, tzinfo=dt.UTC)


@dataclass
class Stack:
    """Servers of one's own that a test may stop, with a tenant `acme` and one token."""

    servers: Servers
    secret: str = ""
    token: str = ""

    def manage(self, *words: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run manage.py, which must end with `status` and without a traceback."""
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            env={**os.environ, "DATABASE_URL": self.servers.database_url, "REDIS_URL": self.servers.redis_url},
            cwd=settings.BASE_DIR,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def publish(self) -> None:
        """What the worker's task does every two seconds."""
        self.manage("shell", "--no-imports", "-c", "from tokens import tasks; tasks.publish()")

    def query(self, sql: str) -> Any:
        """One value of the database."""
        with psycopg.connect(self.servers.database_url) as database:
            row = database.execute(sql.encode()).fetchone()
        assert row is not None
        return row[0]

    def store(self) -> "redis.Redis":
        return redis.Redis.from_url(self.servers.redis_url)

    def status(self, kind: str, number: str) -> bytes | None:
        """A record's status in the store."""
        shard = int(self.query("SELECT id FROM tokens_tenant WHERE slug = 'acme'")) % 16
        found: bytes | None = self.store().hget(f"{{s{shard}}}:{kind}:{number}", "status")  # type: ignore[assignment]
        return found


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="gateway-commands-"))
    folder.chmod(0o755)  # PostgreSQL's account must be able to enter
    found = Stack(start_servers(folder / "servers"))
    try:
        found.manage("migrate", "--no-input")
        found.manage("bootstrap")
        found.manage("tenant", "create", "acme")
        yield found
    finally:
        found.servers.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def issued(stack: Stack) -> Stack:
    """The stack with a fresh token."""
    done = stack.manage("token", "issue", "--tenant", "acme", "--user", "alice@acme.test", "--name", "ci")
    stack.secret = done.stdout.strip()
    stack.token = str(stack.query("SELECT max(id) FROM tokens_proxytoken"))
    assert stack.status("token", stack.token) == b"active"
    return stack


@pytest.fixture
def without_valkey(issued: Stack) -> Iterator[Stack]:
    child = issued.servers.valkey.child
    assert child is not None
    child.stop(10)
    yield issued
    if child.exit_status() is not None and issued.servers.valkey.child is child:
        issued.servers.valkey.start()


@pytest.fixture
def without_postgres(issued: Stack) -> Iterator[Stack]:
    child = issued.servers.postgres.child
    assert child is not None
    child.stop(10)
    yield issued
    if issued.servers.postgres.child is child:
        issued.servers.postgres.start()


def test_the_outbox_outlives_a_store_that_is_down(without_valkey: Stack) -> None:
    stack = without_valkey
    done = stack.manage("token", "issue", "--tenant", "acme", "--user", "bob@acme.test", "--name", "later")
    assert secrets.is_plausible(done.stdout.strip()) and "takes effect when it is back" in done.stderr
    number = str(stack.query("SELECT max(id) FROM tokens_proxytoken"))
    for words in (["token", "set", number, "--expires", "90d"], ["tenant", "set", "acme", "--timezone", "Asia/Tokyo"]):
        assert "takes effect when it is back" in stack.manage(*words).stderr
    assert stack.query("SELECT count(*) FROM tokens_outboxentry") > 0
    stack.publish()  # which changes nothing yet, and says so
    assert stack.query("SELECT count(*) FROM tokens_outboxentry") > 0
    stack.servers.valkey.start()
    assert stack.status("token", number) is None
    stack.publish()
    assert stack.status("token", number) == b"active"
    assert stack.query("SELECT count(*) FROM tokens_outboxentry") == 0


def test_what_must_hold_at_once_fails_when_the_store_is_down(without_valkey: Stack) -> None:
    stack = without_valkey
    for words in (["token", "revoke", stack.token], ["stop", "--tenant", "acme"], ["stop", "--all"]):
        done = stack.manage(*words, status=1)
        assert "admission store did not answer" in done.stderr and done.stderr.count("\n") == 1
    assert stack.query(f"SELECT status FROM tokens_proxytoken WHERE id = {stack.token}") == "active"
    assert stack.query("SELECT status FROM tokens_tenant WHERE slug = 'acme'") == "active"


def test_revoke_and_stop_work_without_the_database(without_postgres: Stack) -> None:
    stack = without_postgres
    for words in (
        ["token", "revoke", stack.token, "--reason", "leaked"],
        ["stop", "--tenant", "acme"],
        ["stop", "--all"],
    ):
        assert "keeps" in stack.manage(*words).stderr
    assert "no tenant" in stack.manage("stop", "--tenant", "other", status=1).stderr
    assert "database" in stack.manage("token", "revoke", "999999999", status=1).stderr
    assert "database did not answer" in stack.manage("tenant", "list", status=1).stderr
    assert stack.store().hget(keys.meta(15), "stopped") == b"1"
    stack.publish()
    stack.servers.postgres.start()
    assert stack.status("token", stack.token) == b"revoked"
    tenant = str(stack.query("SELECT id FROM tokens_tenant WHERE slug = 'acme'"))
    assert stack.status("tenant", tenant) == b"suspended"
    stack.publish()
    assert stack.query(f"SELECT status FROM tokens_proxytoken WHERE id = {stack.token}") == "revoked"
    assert stack.query(f"SELECT revoke_reason FROM tokens_proxytoken WHERE id = {stack.token}") == "leaked"
    assert stack.query("SELECT status FROM tokens_tenant WHERE slug = 'acme'") == "suspended"
    assert stack.query("SELECT stopped_at IS NOT NULL FROM tokens_installation") is True
    assert stack.query("SELECT way FROM tokens_auditentry WHERE reason = 'leaked' AND at < recorded_at") == "command"
    newest = "SELECT verb FROM tokens_auditentry WHERE way = 'command' ORDER BY id DESC LIMIT 3"
    told = stack.query(f"SELECT string_agg(verb, ' ' ORDER BY verb) FROM ({newest}) newest")
    assert told == "revoked stopped all calls suspended", "by whoever ordered it, not by the task that wrote it"
    assert not any(stack.store().exists(keys.control(shard)) for shard in range(16))
    stack.manage("start", "--all")
    stack.manage("start", "--tenant", "acme")
    assert stack.query("SELECT stopped_at IS NULL FROM tokens_installation") is True
    assert stack.status("tenant", tenant) == b"active"
    assert not any(stack.store().hexists(keys.meta(shard), "stopped") for shard in range(16))


def test_stop_all_reaches_every_shard(issued: Stack) -> None:
    issued.manage("stop", "--all")
    assert all(issued.store().hget(keys.meta(shard), "stopped") == b"1" for shard in range(16))
    assert issued.query("SELECT stopped_at IS NOT NULL FROM tokens_installation") is True
    issued.manage("start", "--all")
    assert not any(issued.store().hexists(keys.meta(shard), "stopped") for shard in range(16))
    assert issued.query("SELECT stopped_at IS NULL FROM tokens_installation") is True


def test_the_run_is_not_stopped() -> None:
    assert Installation.objects.get().stopped_at is None
    assert not any(store().hexists(keys.meta(shard), "stopped") for shard in range(settings.SHARDS))

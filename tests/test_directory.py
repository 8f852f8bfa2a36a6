"""The token directory stays equal to the database, whatever changes it, in whatever order, and however often."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings
from django.db import connection, transaction

from config import redis as config_redis
from config.redis import store
from tests.conftest import Customer
from tests.test_issuing import principal, works
from tokens import comparison, directory, installation, issuing, records, secrets, stopping, tasks
from tokens.admission import keys
from tokens.admission.connection import StoreUnavailable
from tokens.errors import Refused
from tokens.models import Limit, OutboxEntry, ProxyToken, Secret, Status, Tenant
from tokens.outbox import Entry, Kind


def held(entry: Entry) -> dict[str, str]:
    """A record as the store holds it."""
    raw: Any = store().hgetall(records.key_of(entry))
    return {name.decode(): value.decode() for name, value in raw.items()}


def made(entry: Entry) -> records.Record:
    """A record as the database makes it."""
    (record,) = records.read(entry.kind, [entry.object_id])
    return record


def entries_of(customer: Customer) -> list[Entry]:
    tokens = [token.entry() for token in ProxyToken.objects.filter(tenant=customer.tenant)]
    return [customer.tenant.entry(), *(member.entry() for member in customer.tenant.members.all()), *tokens]


def assert_equal(customer: Customer) -> None:
    """Every record of the tenant is in the store as the database makes it."""
    for entry in entries_of(customer):
        record, stored = made(entry), held(entry)
        assert stored["status"] == record.status
        if record.status != "revoked":
            assert stored == record.fields
        for name, value in record.locators.items():
            assert store().get(name) == value.encode()


def differences_of(customer: Customer) -> set[Entry]:
    """What a comparison finds wrong with the tenant's records."""
    found = comparison.compare()
    wrong = found.missing | found.revoked | found.different.keys()
    return {entry for entry in wrong if entry.tenant_id == customer.tenant.pk}


@pytest.fixture
def other_store(settings: Any) -> Iterator[None]:
    """An empty store: another database of the run's Valkey."""
    settings.REDIS_URL = settings.REDIS_URL.replace("?db=0", "?db=11")
    config_redis.store.cache_clear()
    store().flushdb()
    yield
    store().flushdb()
    config_redis.store.cache_clear()


def test_plain_saves_and_deletes_are_published(customer: Customer) -> None:
    customer.tenant.origins = ["https://app.example"]
    customer.tenant.save()
    limit = Limit(tenant=customer.tenant, token=customer.token, metric="images", period="day", amount=5)
    limit.save()
    assert_equal(customer)
    limit.amount = 6
    limit.save()
    assert_equal(customer)
    found = principal(customer.secret)
    assert found is not None and [scoped.limit.amount for scoped in found.limits] == [6]
    limit.delete()
    assert_equal(customer)
    for amount, metric in enumerate(("images", "tokens"), start=1):
        Limit.objects.create(tenant=customer.tenant, metric=metric, period="day", amount=amount)
    Limit.objects.filter(tenant=customer.tenant).delete()
    assert_equal(customer)
    found = principal(customer.secret)
    assert found is not None and found.limits == ()


def test_a_limit_that_moves_leaves_one_record_and_enters_another(customer: Customer) -> None:
    limit = Limit.objects.create(tenant=customer.tenant, metric="images", period="day", amount=5)
    limit.member = customer.member
    limit.save()
    assert_equal(customer)
    found = principal(customer.secret)
    assert found is not None and [scoped.scope for scoped in found.limits] == ["member"]


def test_a_deleted_token_leaves_a_tombstone(customer: Customer) -> None:
    token, secret = issuing.issue_token(customer.member, "gone", limit_texts=["images:5/day"])
    entry = token.entry()
    token.delete()
    assert held(entry)["status"] == "revoked" and not works(secret)
    assert not OutboxEntry.objects.filter(tenant_id=customer.tenant.pk).exists()
    comparison.repair(comparison.compare())
    assert principal(secret) is None
    assert held(entry)["status"] == "revoked"


def test_a_deleted_member_and_tenant_leave_nothing(customer: Customer) -> None:
    entries = entries_of(customer)
    customer.token.delete()
    customer.member.delete()
    customer.tenant.delete()
    assert [bool(held(entry)) for entry in entries] == [False, False, True]


def test_a_rolled_back_change_is_not_published(customer: Customer) -> None:
    before = held(customer.tenant.entry())
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        customer.tenant.model = "other"
        customer.tenant.save()
        raise ZeroDivisionError
    assert held(customer.tenant.entry()) == before
    assert_equal(customer)


def test_an_older_put_changes_nothing(customer: Customer) -> None:
    entry = customer.tenant.entry()
    old = made(entry)
    customer.limit("images:5/day")
    new = held(entry)
    directory._put(store(), old)
    assert held(entry) == new
    customer.limit("images:6/day")
    assert held(entry)["version"] > new["version"]


def test_no_put_leaves_a_tombstone_whatever_its_version(customer: Customer) -> None:
    record = made(customer.token.entry())
    stopping.revoke(customer.token.pk, "test")
    later = records.Record(record.entry, 1_000_000, {**record.fields, "version": "1000000"}, record.locators)
    directory._put(store(), later)
    assert held(record.entry)["status"] == "revoked" and not works(customer.secret)


def test_a_revocation_lands_over_any_version(customer: Customer) -> None:
    entry = customer.token.entry()
    store().hset(records.key_of(entry), "version", "5000")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE tokens_proxytoken SET status = 'revoked' WHERE id = %s", [customer.token.pk])
    directory.publish([entry])
    assert held(entry)["status"] == "revoked" and int(held(entry)["version"]) == 5001


def break_missing(customer: Customer) -> None:
    store().delete(records.key_of(customer.member.entry()))


def break_locator(customer: Customer) -> None:
    store().delete(*made(customer.token.entry()).locators)


def break_older(customer: Customer) -> None:
    store().hset(records.key_of(customer.tenant.entry()), "version", "0")


def break_content(customer: Customer) -> None:
    store().hset(records.key_of(customer.tenant.entry()), "limits", '[{"id":1}]')


def break_ahead(customer: Customer) -> None:
    """As when the database came back from a backup."""
    store().hset(records.key_of(customer.member.entry()), mapping={"version": "70", "status": "suspended"})


def break_behind_the_back(customer: Customer) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE tokens_tenant SET model = 'other' WHERE id = %s", [customer.tenant.pk])


@pytest.mark.parametrize(
    "damage", [break_missing, break_locator, break_older, break_content, break_ahead, break_behind_the_back]
)
def test_a_comparison_finds_and_repairs(customer: Customer, damage: Callable[[Customer], None]) -> None:
    assert differences_of(customer) == set()
    seen = principal(customer.secret)
    damage(customer)
    assert len(differences_of(customer)) == 1
    tasks.compare()
    assert_equal(customer)
    assert differences_of(customer) == set()
    assert works(customer.secret)
    if damage in (break_content, break_ahead, break_behind_the_back):
        now = principal(customer.secret)
        assert seen is not None and now is not None
        assert now.versions != seen.versions, "processes that remember the wrong content must reload"


def test_a_comparison_makes_a_revocation_durable(customer: Customer) -> None:
    store().hset(records.key_of(customer.token.entry()), "status", "revoked")
    tasks.compare()
    row = ProxyToken.objects.get(pk=customer.token.pk)
    assert row.status == "revoked" and "store" in row.revoke_reason and not works(customer.secret)


def test_a_comparison_removes_what_no_row_stands_behind(customer: Customer) -> None:
    shard = records.shard_of(customer.tenant.pk)
    stray = keys.locator(secrets.digest("stray", b"pepper"))
    store().set(stray, f"{shard}:{customer.tenant.pk}:{customer.member.pk}:{customer.token.pk}:1")
    ghost = keys.member(shard, 987_654_321)
    wrong_shard = keys.token((shard + 1) % settings.SHARDS, customer.token.pk)
    store().hset(ghost, "status", "active")
    store().hset(wrong_shard, "status", "active")
    found = comparison.compare()
    assert {stray, ghost, wrong_shard} <= found.orphans
    comparison.repair(found)
    assert store().exists(stray, ghost, wrong_shard) == 0
    assert works(customer.secret)


def test_what_waits_in_the_outbox_is_no_difference(customer: Customer) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE tokens_tenant SET version = version + 1 WHERE id = %s", [customer.tenant.pk])
    assert differences_of(customer) == {customer.tenant.entry()}
    OutboxEntry.objects.create(kind=Kind.TENANT, object_id=customer.tenant.pk, tenant_id=customer.tenant.pk)
    waiting = differences_of(customer)
    directory.publish_outbox()
    assert waiting == set()
    assert_equal(customer)


def test_a_complete_load_fills_an_empty_store(customer: Customer, other_store: None) -> None:
    revoked, secret = issuing.issue_token(customer.member, "revoked")
    stopping.revoke(revoked.pk, "test")
    store().flushdb()
    assert store().hget(keys.DIRECTORY, "complete") is None
    assert directory.load_all() >= 4
    assert store().hget(keys.DIRECTORY, "complete") == b"1"
    assert_equal(customer)
    assert works(customer.secret) and not works(secret)
    assert not comparison.compare()


def test_a_load_restores_the_emergency_stop(other_store: None) -> None:
    def stopped() -> bool:
        return all(store().hexists(keys.meta(shard), "stopped") for shard in range(settings.SHARDS))

    try:
        assert installation.stop_all()
        store().flushdb()
        directory.load_all()
        assert stopped()
    finally:
        assert installation.start_all()
    directory.load_all()
    assert not stopped()


def test_a_load_passes_over_batches(customer: Customer, other_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "BATCH", 2)
    for number in range(5):
        issuing.issue_token(customer.member, f"token {number}")
    store().flushdb()
    directory.load_all()
    assert_equal(customer)


def test_a_stopped_server_is_reported_without_its_keys(settings: Any, customer: Customer) -> None:
    settings.REDIS_URL = "unix:///tmp/there-is-no-such-socket?db=0"
    config_redis.store.cache_clear()
    try:
        with pytest.raises(StoreUnavailable) as refused:
            directory.publish([customer.token.entry()])
    finally:
        config_redis.store.cache_clear()
    assert "token:" not in str(refused.value)


def change_something(customer: Customer, dice: random.Random) -> None:
    """One change of many kinds, as several people and scripts make them at once."""
    choice = dice.randrange(6)
    tokens = list(ProxyToken.objects.filter(tenant=customer.tenant, status="active")[:20])
    token = dice.choice(tokens)
    if choice == 0:
        issuing.issue_token(customer.member, "busy", limit_texts=["images:5/day"])
    elif choice == 1:
        issuing.set_limits(customer.tenant, [f"images:{dice.randint(1, 999)}/day"])
    elif choice == 2:
        issuing.set_limits(token, [f"images:{dice.randint(1, 999)}/day", f"tokens:{dice.randint(1, 999)}/day"])
    elif choice == 3 and len(tokens) > 5:
        stopping.revoke(token.pk, "test")
    elif choice == 4:
        stopping.suspend_tenant(customer.tenant.slug, "test")
        stopping.activate_tenant(customer.tenant.slug)
    else:
        member = customer.tenant.members.get()
        member.status = dice.choice([Status.ACTIVE, Status.SUSPENDED])
        member.save()


def test_many_changes_at_once_leave_no_difference(make_customer: Callable[..., Customer]) -> None:
    customers = [make_customer() for _ in range(4)]
    for customer in customers:
        for number in range(8):
            issuing.issue_token(customer.member, f"token {number}")
    failures: list[BaseException] = []
    done = threading.Event()

    def work(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(60):
                with contextlib.suppress(Refused):  # a token that another thread revoked first
                    change_something(dice.choice(customers), dice)
        except BaseException as exc:
            failures.append(exc)
        finally:
            connection.close()

    def publish() -> None:
        try:
            while not done.is_set():
                directory.publish_outbox()
                stopping.apply_orders()
                time.sleep(0.1)
        except BaseException as exc:
            failures.append(exc)
        finally:
            connection.close()

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    publisher = threading.Thread(target=publish)
    for thread in (*workers, publisher):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    publisher.join()
    assert failures == []
    for customer in customers:
        assert not OutboxEntry.objects.filter(tenant_id=customer.tenant.pk).exists()
        assert_equal(customer)
        assert differences_of(customer) == set()


def test_control_a_bulk_change_in_sql_is_seen_as_a_difference(customer: Customer) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE tokens_limit SET amount = amount + 1 WHERE tenant_id = %s", [customer.tenant.pk])
    assert differences_of(customer) == set()
    customer.limit("images:5/day", scope="token")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE tokens_limit SET amount = amount + 1 WHERE tenant_id = %s", [customer.tenant.pk])
    assert differences_of(customer) == {customer.token.entry()}
    assert (
        Tenant.objects.filter(pk=customer.tenant.pk).exists() and Secret.objects.filter(token=customer.token).exists()
    )

"""Copies of rows that were read before somebody else changed the row: saving one undoes nothing."""

import pytest
from django.core.management import call_command
from django.db import connection, transaction

from tests.conftest import Customer
from tests.test_directory import assert_equal, held
from tokens import stopping
from tokens.models import Membership, Status, Tenant


def test_an_old_copy_doesnt_end_a_suspension(customer: Customer) -> None:
    tenant, member = Tenant.objects.get(pk=customer.tenant.pk), Membership.objects.get(pk=customer.member.pk)
    stopping.suspend_tenant(customer.tenant.slug, "test")
    stopping.suspend_member(customer.member)
    tenant.name = "new"
    for copy in (tenant, member):
        copy.save()
        assert copy.status == Status.SUSPENDED, "the copy knows now"
        copy.refresh_from_db()
        assert copy.status == Status.SUSPENDED
        assert held(copy.entry())["status"] == "suspended"
    assert tenant.name == "new"


def test_each_copy_saves_what_was_changed_in_it(customer: Customer) -> None:
    first, second = (Tenant.objects.get(pk=customer.tenant.pk) for _ in range(2))
    partial = Tenant.objects.only("id", "slug").get(pk=customer.tenant.pk)
    first.origins.append("https://app.example")  # in place
    first.save()
    second.name = "second"
    second.save()
    assert partial.name == "second"  # read only now
    partial.model = "third"
    partial.save()
    first.status = Status.SUSPENDED
    first.save()
    first.status = Status.ACTIVE
    first.save()
    stored = Tenant.objects.get(pk=customer.tenant.pk)
    assert (stored.origins, stored.name, stored.model, stored.status) == (
        ["*", "https://app.example"],
        "second",
        "third",
        Status.ACTIVE,
    )
    assert_equal(customer)


def test_a_change_that_was_rolled_back_can_be_saved_again(customer: Customer) -> None:
    tenant = Tenant.objects.get(pk=customer.tenant.pk)
    tenant.name = "new"
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        tenant.save()
        raise ZeroDivisionError
    tenant.save()
    assert Tenant.objects.get(pk=tenant.pk).name == "new"


def test_an_old_copy_doesnt_change_the_time_zone_back(customer: Customer) -> None:
    old, stale = (Tenant.objects.get(pk=customer.tenant.pk) for _ in range(2))
    tenant = Tenant.objects.get(pk=customer.tenant.pk)
    tenant.timezone = "Asia/Tokyo"
    tenant.save()
    with connection.cursor() as cursor:  # the month has turned
        cursor.execute("UPDATE tokens_tenant SET next_timezone_from = now() WHERE id = %s", [tenant.pk])
    Tenant.objects.get(pk=tenant.pk).save()
    old.name = "old"
    old.save()
    stale.save(update_fields=["name"])
    stored = Tenant.objects.get(pk=tenant.pk)
    assert (stored.timezone, stored.next_timezone, stored.next_timezone_from) == ("Asia/Tokyo", "", None)


def test_the_time_zone_in_force_saved_by_name_cancels_a_change(customer: Customer) -> None:
    tenant = Tenant.objects.get(pk=customer.tenant.pk)
    tenant.timezone = "Asia/Tokyo"
    tenant.save()
    tenant.save()
    assert tenant.next_timezone == "Asia/Tokyo"
    tenant.timezone = "UTC"
    tenant.save(update_fields=["timezone"])
    stored = Tenant.objects.get(pk=tenant.pk)
    assert (stored.timezone, stored.next_timezone, stored.next_timezone_from) == ("UTC", "", None)
    assert_equal(customer)


def test_the_migrations_make_what_the_models_say() -> None:
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)

"""Pages of the admin when something is wrong: a sentence, never a trace."""

from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client

from tests.adminpages import page
from tests.conftest import Customer
from tokens import roles
from tokens.models import Role, User


def test_it_says_so_when_the_database_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OperationalError("connection refused: host=secret-host")

    monkeypatch.setattr(User.objects, "get_by_natural_key", fail)
    client = Client(raise_request_exception=False)
    answer = client.post("/admin/login/", {"username": "a@example.com", "password": "x"})
    assert answer.status_code == 503
    assert answer["Retry-After"] == "10"
    assert "The database is out of reach" in answer.text
    assert "secret-host" not in answer.text


def test_any_other_error_is_a_plain_500(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ValueError("a secret")

    monkeypatch.setattr(User.objects, "get_by_natural_key", fail)
    answer = Client(raise_request_exception=False).post("/admin/login/", {"username": "a@b.c", "password": "x"})
    assert answer.status_code == 500
    assert "Something went wrong" in answer.text
    assert "a secret" not in answer.text
    assert "Traceback" not in answer.text


def test_an_unknown_page_is_a_plain_404_and_the_root_leads_to_the_admin() -> None:
    answer = Client().get("/nowhere/")
    assert answer.status_code == 404
    assert "There is nothing here" in answer.text
    assert 'href="/admin/"' in answer.text
    assert Client().get("/").headers["Location"] == "/admin/"


def test_a_page_that_a_role_does_not_open_says_so(customer: Customer) -> None:
    roles.set_role(customer.member, Role.VIEWER)
    client = Client()
    client.force_login(User.objects.get(pk=customer.member.user_id))
    answer = client.get(page("gateway_provider_changelist"))
    assert answer.status_code == 403
    assert "Your role doesn&#x27;t open this page" in answer.text
    assert 'href="/admin/"' in answer.text

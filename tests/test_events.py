"""Reading usage events: a good one whole, a bad one never."""

import pytest

from tests.bookkeeping import Customer
from usage.events import VERSION, BadEventError, FutureEventError, parse


@pytest.fixture
def alice() -> Customer:
    return Customer()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"request_id", b"not-a-uuid"),
        (b"request_id", b"6ba7b810-9dad-41d1-80b4-00c04fd430c8"),
        (b"request_id", b"ffffffff-ffff-7fff-bfff-ffffffffffff"),
        (b"kind", b"correction"),
        (b"sequence", b"-1"),
        (b"sequence", b"one"),
        (b"generation", b"\xff"),
        (b"call", b"{"),
        (b"call", b'{"v": 0}'),
        (b"call", b'{"v": 1}'),
        (b"call", b'{"v": "2"}'),
        (b"result", b"[]"),
        (b"result", b'{"images": "\xff"}'),
        (b"result", None),
    ],
)
def test_it_refuses_to_read_a_bad_event(alice: Customer, field: bytes, value: bytes | None) -> None:
    fields = {name: old for name, old in alice.fields().items() if name != field}
    with pytest.raises(BadEventError):
        parse(fields if value is None else {**fields, field: value})


def test_an_event_of_a_newer_version_is_told_apart_whatever_else_is_new(alice: Customer) -> None:
    for change in ({}, {b"kind": b"refunded"}, {b"result": b"<xml/>"}, {b"request_id": b"another form"}):
        with pytest.raises(FutureEventError) as caught:
            parse({**alice.fields(), b"call": b'{"v": 2, "other": "names"}', **change})
        assert caught.value.version == VERSION + 1


def test_a_void_event_that_charges_is_bad(alice: Customer) -> None:
    with pytest.raises(BadEventError):
        parse(alice.fields("void", charged=1))


def test_a_number_that_no_column_holds_is_not_kept_as_reported(alice: Customer) -> None:
    assert alice.event(reported=10**30).reported is None

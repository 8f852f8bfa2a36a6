"""Tables for spreadsheets: safe to open, the same from Python and from PostgreSQL, and whole or plainly broken off."""

import asyncio
import csv
import datetime as dt
import io
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import httpx
import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.conf import settings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.adminpages import page
from tests.bookkeeping import Customer, request_id
from tests.conftest import Gateway
from tests.processes import wait_until
from tokens.models import User
from usage.admin.readonly import Pieces
from usage.exports import csv_pieces, plain, write_csv
from usage.ledger import record
from usage.models import Price, UsageRecord

START = dt.date(2026, 11, 1)


@pytest.fixture
def alice() -> Customer:
    return Customer()


DANGEROUS = [
    *((f"{start}HYPERLINK(1)", f"'{start}HYPERLINK(1)") for start in ["=", "+", "-", "@", "\t", "\r", "\n"]),
    *((f"{start}1", f"'{start}1") for start in "＝＋－＠"),
    *((f"{space}=1", f"'{space}=1") for space in " \v\f\x1c\x85\xa0\u2003\u2028\u3000"),
    ("\t=1", "'\t'=1"),
    ("x;=HYPERLINK(1)", "x;'=HYPERLINK(1)"),  # where the semicolon parts the cells
    ('x;"=1"', 'x;\'"=1"'),
    ("x\t@SUM(1)", "x\t'@SUM(1)"),
    ("x\n =1", "x\n' =1"),
    ("a-b, -c; d=e", "a-b, -c; d=e"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "cell"), DANGEROUS)
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str, cell: str) -> None:
    out = io.StringIO(newline="")
    write_csv([["name"], [text]], out)
    assert list(csv.reader(io.StringIO(out.getvalue(), newline="")))[1] == [cell]
    assert out.getvalue().count('"') == 4 + 2 * text.count('"'), "text stands in quotes always"


def test_numbers_stay_numbers_in_csv() -> None:
    out = io.StringIO(newline="")
    write_csv([["a", "b", "c", "d"], [-1, Decimal("-0.00000100"), None, "a,b"]], out)
    assert out.getvalue() == '"a","b","c","d"\r\n-1,-0.000001,,"a,b"\r\n'


def test_csv_is_written_as_the_rows_come() -> None:
    out = io.StringIO()
    seen = []

    def endless() -> Any:
        for number in range(3):
            seen.append(len(out.getvalue()))
            yield [number]

    write_csv(endless(), out)
    assert seen == [0, 3, 6]


COLUMNS = {"id": "request_id", "at": "at", "day": "day", "user": "member__user__email", "token": "token_id"}
COLUMNS |= {"reason": "reason", "n": "n", "reported": "reported_tokens", "cost": "cost", "latency": "latency_ms"}


def test_postgresql_writes_the_same_csv(alice: Customer) -> None:
    letters = random.Random(7)
    made = ["".join(letters.choices("=+-@＝\t\r\n;\"' a,\\\u3000\xa0\x1c%é\u2028", k=6)) for _ in range(300)]
    texts = [*(text for text, _ in DANGEROUS), *made, "\\.", "NULL"]
    record([alice.event(reason=text) for text in texts])
    prices = [("0.00000001", "one"), ("12.50000000", "two"), ("1000", "three")]
    for amount, model in prices:
        Price.objects.create(model=f"{alice.model}-{model}", per_image=amount, currency="EUR", valid_from=START)
    at = dt.datetime(2026, 11, 22, 13, tzinfo=dt.UTC)  # a whole second has no microseconds
    record([alice.event(model=f"{alice.model}-{model}", of=request_id(at)) for _, model in prices])
    record([alice.event("void"), alice.event("unresolved")])
    rows = UsageRecord.objects.filter(tenant=alice.tenant).order_by("-id")
    out = io.StringIO(newline="")
    write_csv([list(COLUMNS), *rows.values_list(*COLUMNS.values())], out)
    assert b"".join(csv_pieces(rows, COLUMNS)).decode() == out.getvalue()
    read = {row["reason"] for row in csv.DictReader(io.StringIO(out.getvalue(), newline=""))}
    assert {cell for _, cell in DANGEROUS} <= read


def test_a_filter_that_nothing_passes_gives_the_header_alone() -> None:
    for rows in (UsageRecord.objects.none(), UsageRecord.objects.filter(model__in=[])):
        assert b"".join(csv_pieces(rows, {"day": "day", "model": "model"})) == b'"day","model"\r\n'


def test_it_is_written_while_queries_are_watched(alice: Customer) -> None:
    record([alice.event()])
    with CaptureQueriesContext(connection):
        written = b"".join(csv_pieces(UsageRecord.objects.filter(tenant=alice.tenant), {"model": "model"}))
    assert written == f'"model"\r\n"{alice.model}"\r\n'.encode()


def test_a_kind_of_column_without_a_form_is_refused() -> None:
    with pytest.raises(TypeError, match="no CSV for is_active, a BooleanField"):
        next(csv_pieces(User.objects.all(), {"active": "is_active"}))


def long_rows(customer: Customer) -> Any:
    """More than sockets hold, so PostgreSQL is still sending when the first piece has come."""
    record([customer.event(reason="x" * 100_000) for _ in range(400)])
    return UsageRecord.objects.filter(tenant=customer.tenant)


def copying() -> list[int]:
    """The server processes that send a table to somebody."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COPY (SELECT%'")
        return [pid for (pid,) in cursor.fetchall()]


def test_an_export_comes_in_pieces_and_sees_one_moment(alice: Customer) -> None:
    rows = long_rows(alice)
    pieces = csv_pieces(rows, COLUMNS)
    first = next(pieces)
    assert 128 * 1024 <= len(first) < 256 * 1024
    with ThreadPoolExecutor(1) as other:
        other.submit(record, [alice.event()]).result()
        assert len(other.submit(copying).result()) == 1
        other.submit(lambda: connection.close()).result()
    assert (first + b"".join(pieces)).count(b"\r\n") == 401
    assert rows.count() == 401


@contextmanager
def download(gateway: Gateway, admin: Client, customer: Customer) -> Iterator[Iterator[bytes]]:
    """The ledger of a customer on its way from a running server to a browser, which has read the beginning."""
    cookies = {settings.SESSION_COOKIE_NAME: admin.cookies[settings.SESSION_COOKIE_NAME].value}
    address = f"{gateway.url}{page('usage_usagerecord_csv')}?tenant__id__exact={customer.tenant.pk}"
    with httpx.stream("GET", address, cookies=cookies, timeout=30) as answer:
        pieces = answer.iter_raw()
        assert next(pieces).startswith(b'"request_id","kind"')
        yield pieces


def test_a_client_that_leaves_frees_the_database(alice: Customer, gateway: Gateway, admin: Client) -> None:
    long_rows(alice)
    with download(gateway, admin, alice):
        assert len(copying()) == 1
    wait_until(lambda: not copying())


def test_a_client_that_takes_nothing_is_given_up(alice: Customer) -> None:
    rows = long_rows(alice)

    def still_copying() -> list[int]:
        try:
            return copying()
        finally:
            connection.close()  # of this thread

    async def read_slowly() -> None:
        pieces = Pieces(csv_pieces(rows, COLUMNS), patience=0.2)
        async with ThreadSensitiveContext():
            await anext(pieces)
            end = time.monotonic() + 10
            while await sync_to_async(still_copying, thread_sensitive=False)():
                assert time.monotonic() < end, "the statement still runs"
                await asyncio.sleep(0.02)
            with pytest.raises(TimeoutError):
                await anext(pieces)
            await sync_to_async(pieces.close)()
            await sync_to_async(lambda: connection.close())()

    asyncio.run(read_slowly())


def test_an_export_that_breaks_off_is_no_whole_file(alice: Customer, gateway: Gateway, admin: Client) -> None:
    long_rows(alice)
    with (
        pytest.raises(httpx.RemoteProtocolError),
        download(gateway, admin, alice) as pieces,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT pg_terminate_backend(%s)", copying())
        list(pieces)


@pytest.mark.parametrize(
    ("amount", "text"), [("12.5", "12.50"), ("1E+3", "1000.00"), ("0.00041800", "0.000418"), ("0E-14", "0.00")]
)
def test_amounts_are_written_plainly(amount: str, text: str) -> None:
    assert plain(Decimal(amount)) == text

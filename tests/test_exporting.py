"""Exports of a ledger of 200,000 records: the same totals in every format, and the same bytes every time."""

import csv
import datetime as dt
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from xml.etree import ElementTree

import openpyxl
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pypdf
import pytest
from django.db import connection, transaction
from django.test import Client

from gateway.admin import dashboard
from tests.generatedledger import EVIL, RECORDS, Generated, generated_ledger
from tokens import apikeys
from tokens.apikeyrow import ApiScope
from tokens.models import User
from usage import reports
from usage.exceptions import ExceptionKind
from usage.exporting import bookings, formats, parquet, snapshot, spreadsheet
from usage.exporting.formats import FORMATS, export
from usage.exporting.snapshot import Snapshot
from usage.exports import separated
from usage.ledger import record
from usage.models import UsageRecord
from usage.reports import Query, report

START = dt.date(2026, 10, 1)
GROUPS = ["day", "tenant", "token", "model"]
COUNTED = ("requests", "images", "tokens")
Sums = dict[str, Any]

# What is to be invoiced, from the ledger alone: calls whose newest row says exact, by the sum of their rows. Only the
# rows since a price is known have a cost; a call without any has none. Of some days it is what had come in by their
# end, less what had come in before them.
LEDGER = """
SELECT currency, count(*), sum(images)::bigint, sum(tokens)::bigint, sum(cost) FROM (
    SELECT (array_agg(currency ORDER BY number DESC))[1] AS currency, sum(images) AS images, sum(cost) AS cost,
           sum(charged_tokens) AS tokens
    FROM usage_record WHERE tenant_id = ANY(%s) AND booked_day < %s GROUP BY request_id
    HAVING (array_agg(outcome ORDER BY number DESC))[1] = 'exact'
) calls GROUP BY currency
"""


@pytest.fixture(scope="module")
def books(django_db_setup: None, django_db_blocker: Any) -> Iterator[Generated]:
    with django_db_blocker.unblock(), generated_ledger() as generated:
        yield generated


@pytest.fixture(scope="module")
def exported(books: Generated) -> dict[str, bytes]:
    """Every format once, of the first tenant; the others together hold too little to matter."""
    return {name: written(query(books, one_tenant=True), name) for name in FORMATS}


def query(books: Generated, *, one_tenant: bool = False, groups: list[str] | None = None) -> Query:
    tenant = books.customers[0].tenant if one_tenant else None
    return Query(tenant, START, books.last + dt.timedelta(days=1), groups or GROUPS)


def written(asked: Query, name: str) -> bytes:
    out = io.BytesIO()
    export(asked, name, out)
    return out.getvalue()


def ledger(books: Generated, *, one_tenant: bool = False, end: dt.date = dt.date.max) -> Sums:
    tenants = [customer.tenant.pk for customer in books.customers[: 1 if one_tenant else None]]
    before, until = _by_then(tenants, START), _by_then(tenants, end)
    return {name: figure - before.get(name, 0) for name, figure in until.items()}


def _by_then(tenants: list[int], day: dt.date) -> Sums:
    with connection.cursor() as cursor:
        cursor.execute(LEDGER, [tenants, day])
        rows = cursor.fetchall()
    sums = {name: sum(row[place] for row in rows) for place, name in enumerate(COUNTED, 1)}
    unpriced = sum(row[1] for row in rows if not row[0])
    return {**sums, "unpriced": unpriced, **{currency: cost for currency, _, _, _, cost in rows if currency}}


def summed(rows: Any) -> Sums:
    """The sums of a report's rows, however they were written."""
    sums: Counter[str] = Counter()
    costs: dict[str, Decimal] = {}
    for row in rows:
        for name in ("requests", "images", "tokens"):
            sums[name] += int(row[name])
        sums["unpriced"] += int(row["unpriced_requests"])
        if row["currency"]:
            costs[row["currency"]] = costs.get(row["currency"], Decimal(0)) + Decimal(row["cost"])
    return {**sums, **costs}


def from_csv(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def from_xlsx(content: bytes) -> list[dict[str, str]]:
    """The rows of the sheet Usage with every digit, which only the XML itself has; the last ones are its totals."""
    space = f"{{{spreadsheet.MAIN}}}"
    sheet = ElementTree.fromstring(zipfile.ZipFile(io.BytesIO(content)).read("xl/worksheets/sheet1.xml"))
    header, *rows = [
        {re.sub(r"\d", "", cell.attrib["r"]): "".join(cell.itertext()) for cell in row}
        for row in sheet.iter(f"{space}row")
    ]
    return [{name: row.get(place, "") for place, name in header.items()} for row in rows]


def from_parquet(content: bytes) -> Sums:
    table = pq.read_table(io.BytesIO(content))
    sums = {name: pc.sum(table[name]).as_py() for name in ("requests", "images", "tokens")}
    costs = table.group_by("currency").aggregate([("cost", "sum")]).to_pylist()
    unpriced = pc.sum(table["unpriced_requests"]).as_py()
    return {**sums, "unpriced": unpriced, **{row["currency"]: row["cost_sum"] for row in costs if row["currency"]}}


def from_focus(content: bytes) -> Sums:
    sums: Counter[str] = Counter()
    costs: dict[str, Decimal] = {}
    for row in from_csv(content):
        if row["ConsumedUnit"]:
            sums[row["ConsumedUnit"].lower()] += int(row["ConsumedQuantity"])
        sums["requests"] += int(row["x_Requests"] or 0)
        if row["x_PriceKnown"] == "no":
            sums["unpriced"] += int(row["x_Requests"] or 0)
        else:
            costs[row["BillingCurrency"]] = costs.get(row["BillingCurrency"], Decimal(0)) + Decimal(row["BilledCost"])
    return {**sums, **costs}


def from_pdf(content: bytes) -> Sums:
    text = " ".join(pypdf.PdfReader(io.BytesIO(content)).pages[0].extract_text().split())
    shown = re.search(r"CALLS IMAGES TOKENS AMOUNT ((?:[\d,]+ ){3})((?:[\d,.]+ [A-Z]{3} (?:exactly [\d,.]+ )?)+)", text)
    unpriced = re.search(r"For ([\d,]+) of these calls no price was known", text)
    assert shown and unpriced
    counts, costs = shown.groups()
    requests, images, tokens = (int(number.replace(",", "")) for number in counts.split())
    amounts = {}
    for rounded, currency, whole in re.findall(r"(\S+) ([A-Z]{3}) (?:exactly (\S+) )?", costs.replace(",", "")):
        amounts[currency] = Decimal(whole or rounded)
        assert Decimal(rounded) == amounts[currency].quantize(Decimal("0.01"), ROUND_HALF_UP), "what is to be paid"
    without_price = int(unpriced[1].replace(",", ""))
    return {"requests": requests, "images": images, "tokens": tokens, "unpriced": without_price, **amounts}


def test_the_ledger_is_as_large_and_as_odd_as_it_claims(books: Generated) -> None:
    assert UsageRecord.objects.count() >= RECORDS
    with Snapshot(query(books)) as taken:
        kinds = Counter(found.kind for found in taken.exceptions())
    assert set(kinds) == set(ExceptionKind) - {ExceptionKind.PROVIDER}
    assert min(kinds[kind] for kind in ExceptionKind if kind.value.startswith(("u", "unk"))) > 400
    assert {"CHF", "EUR", "USD", ""} == set(UsageRecord.objects.values_list("currency", flat=True).distinct())
    booked = UsageRecord.objects.filter(tenant=books.customers[0].tenant, day__lt=START)
    late = Counter(booked.filter(booked_day__gte=START).values_list("kind", flat=True))
    assert late == {"exact": 10, "correction": 10}, "what came after September was closed"
    books.customers[-1].check_books()


def test_all_totals_agree_to_the_last_digit(books: Generated, exported: dict[str, bytes]) -> None:
    expected = ledger(books, one_tenant=True)
    xlsx = from_xlsx(exported["xlsx"])
    found = {
        "report": summed(report(query(books, one_tenant=True))),
        "csv": summed(from_csv(exported["csv"])),
        "json": summed(json.loads(exported["json"])["rows"]),
        "xlsx": summed(row for row in xlsx if row["day"] != "total"),
        "xlsx's total": summed(row for row in xlsx if row["day"] == "total"),
        "pdf": from_pdf(exported["pdf"]),
        "parquet": from_parquet(exported["parquet"]),
        "focus": from_focus(exported["focus"]),
    }
    assert expected["EUR"].as_tuple().exponent == -14 and expected["EUR"] > 1000, "so that rounding would show"
    assert found == dict.fromkeys(found, expected)


def from_api(books: Generated, *, one_tenant: bool) -> dict[str, Sums]:
    """The rows of all pages, and the totals that stand on the first."""
    _, secret = apikeys.issue("totals", [ApiScope.USAGE_READ], None, "tests")
    asked: dict[str, Any] = {
        "from": START,
        "to": books.last + dt.timedelta(days=1),
        "group_by": ",".join(GROUPS),
        "limit": 1000,
    }
    asked |= {"tenant": books.customers[0].tenant.slug} if one_tenant else {}
    rows: list[Any] = []
    totals: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        answer = Client().get("/api/usage", {**asked, "cursor": cursor}, headers={"Authorization": f"Bearer {secret}"})
        page = answer.json()
        rows, totals, cursor = rows + page["rows"], totals + page.get("totals", []), page["next"]
    return {"api": summed(rows), "api's totals": summed(totals)}


def exact(cell: Any) -> tuple[str, Decimal]:
    """A currency and the amount that stands in a cell's title."""
    amount, currency = cell.exact.split()
    return currency, Decimal(amount)


def from_report_page(client: Client, books: Generated, *, one_tenant: bool) -> Sums:
    """What stands above the table: the figures, and the amounts with all their digits."""
    asked: dict[str, Any] = {"period": "days", "from": START, "to": books.last, "by": "month"}
    asked |= {"tenant": books.customers[0].tenant.slug} if one_tenant else {}
    shown = client.get("/admin/reports/", asked).context["summary"]
    counts = {name: int(shown[place][1].text.replace(",", "")) for place, name in enumerate(COUNTED)}
    return {**counts, **dict(exact(cell) for name, cell, _ in shown if name == "Cost")}


def from_dashboard(client: Client, books: Generated, *, one_tenant: bool) -> Sums:
    """The cards of "this month", as they were told on the last day of October."""
    asked: dict[str, Any] = {"period": "month"}
    asked |= {"tenant": books.customers[0].tenant.pk} if one_tenant else {}
    cards = {card.name: card for card in client.get("/admin/", asked).context["cards"]}
    shown = [cards[name] for name in ("calls", "images", "tokens")]
    counts = {name: int(card.value.replace(",", "")) for name, card in zip(COUNTED, shown, strict=True)}
    words = cards["cost"].exact.replace(",", "").split()
    costs = {currency: Decimal(amount) for amount, currency in zip(words[::2], words[1::2], strict=True)}
    return {**counts, "unpriced": int(cards["cost"].note.split()[0].replace(",", "")), **costs}


@pytest.fixture(scope="module")
def finance(books: Generated) -> Client:
    client = Client()
    client.force_login(User.objects.create_user("totals@books.test", is_finance=True))
    return client


@pytest.mark.parametrize("one_tenant", [True, False])
def test_pages_and_api_agree_to_the_last_digit_too(
    books: Generated, finance: Client, monkeypatch: pytest.MonkeyPatch, one_tenant: bool
) -> None:
    expected = ledger(books, one_tenant=one_tenant)
    found = from_api(books, one_tenant=one_tenant)
    assert found == dict.fromkeys(found, expected)
    page = from_report_page(finance, books, one_tenant=one_tenant)
    assert page == {name: figure for name, figure in expected.items() if name != "unpriced"}
    monkeypatch.setattr(dashboard, "now", lambda: dt.datetime(2026, 10, 31, 8, tzinfo=dt.UTC))
    october = ledger(books, one_tenant=one_tenant, end=dt.date(2026, 11, 1))
    assert from_dashboard(finance, books, one_tenant=one_tenant) == october != expected


def test_control_amounts_that_are_rounded_row_by_row_are_noticed(
    books: Generated, finance: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the eighth place of each row: in no row could anybody see it."""
    told = reports._told

    def rounded(row: reports.Row, asked: Query) -> reports.Row:
        return told({**row, "cost": row["cost"] and round(row["cost"], 8)}, asked)

    expected = ledger(books, one_tenant=True)
    monkeypatch.setattr(reports, "_told", rounded)
    for name, found in {
        "report": summed(report(query(books, one_tenant=True))),
        "csv": summed(from_csv(written(query(books, one_tenant=True), "csv"))),
        **from_api(books, one_tenant=True),
        "page": from_report_page(finance, books, one_tenant=True),
    }.items():
        assert found["requests"] == expected["requests"]
        assert found["EUR"] != expected["EUR"], name


def test_totals_of_all_tenants_agree(books: Generated) -> None:
    asked, expected = query(books, groups=["month", "user"]), ledger(books)
    assert summed(report(asked)) == expected
    assert from_focus(written(asked, "focus")) == expected


def test_months_sum_to_the_whole_in_every_format(books: Generated) -> None:
    """A call of October that was decided in November counts there, and only there."""
    tenant, cut = books.customers[1].tenant, dt.date(2026, 11, 1)
    whole = Query(tenant, START, books.last + dt.timedelta(days=1), GROUPS)
    halves = [Query(tenant, START, cut, GROUPS), Query(tenant, cut, whole.end, GROUPS)]
    for name, sums in (("parquet", from_parquet), ("focus", from_focus)):
        first, second = (Counter(sums(written(half, name))) for half in halves)
        assert second["requests"] > 100
        assert {key: first[key] + second[key] for key in first | second} == sums(written(whole, name))
    late = from_csv(written(halves[1], "focus"))
    assert {row["ChargeClass"] for row in late} == {"Correction"}
    assert (
        {row["ChargePeriodStart"][:7] for row in late} == {"2026-10"} != {row["BillingPeriodStart"][:7] for row in late}
    )


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_books_give_the_same_bytes(books: Generated, name: str) -> None:
    asked = Query(books.customers[1].tenant, START, books.last + dt.timedelta(days=1), GROUPS)
    assert written(asked, name) == written(asked, name)


def test_control_other_books_give_other_bytes(books: Generated) -> None:
    tenant = books.customers[1].tenant
    asked, shorter = (Query(tenant, START, dt.date(2026, 10, day), GROUPS) for day in (31, 30))
    for name in FORMATS:
        assert written(asked, name) != written(shorter, name), name


def write_meanwhile(books: Generated) -> None:
    """Another process books a call."""
    event = books.customers[2].event(day="2026-10-05", model="alpha", charged=123_456_789)

    def book() -> None:
        record([event])
        connection.close()  # this thread's own

    with ThreadPoolExecutor(1) as other:
        other.submit(book).result()


def taken_while_writing(books: Generated) -> list[dict[str, bytes]]:
    """Every format of one snapshot, before and after somebody wrote to the books."""
    asked, both = Query(books.customers[2].tenant, START, dt.date(2026, 10, 9), GROUPS), []
    with Snapshot(asked) as taken:
        for write_first in (False, True):
            if write_first:
                write_meanwhile(books)
            outs = {name: io.BytesIO() for name in FORMATS}
            for name, out in outs.items():
                FORMATS[name].write(taken, out)
            both.append({name: out.getvalue() for name, out in outs.items()})
    return both


def test_every_format_is_of_the_same_moment(books: Generated) -> None:
    before, after = taken_while_writing(books)
    assert before == after


def test_control_without_a_snapshot_every_format_would_differ(
    books: Generated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "one_moment", lambda: transaction.atomic(durable=True))
    before, after = taken_while_writing(books)
    assert [name for name in FORMATS if before[name] == after[name]] == []


def test_a_snapshot_writes_nothing(books: Generated) -> None:
    with pytest.raises(Exception, match="read-only transaction"), Snapshot(query(books)), connection.cursor() as cursor:
        cursor.execute("DELETE FROM usage_price")


def test_no_text_of_a_csv_or_focus_file_runs(books: Generated, exported: dict[str, bytes]) -> None:
    asked = query(books, one_tenant=True, groups=["token"])
    names = {row["token_name"] for row in from_csv(written(asked, "csv"))}
    assert len(names) == len(EVIL) + 1  # "first"
    texts = names | {text for row in from_csv(exported["focus"]) for name, text in row.items() if "Cost" not in name}
    assert len({text for text in texts if text.startswith("'")}) > len(EVIL) - 2
    assert [text for text in texts if re.match(r"[\s;]*[=+\-@＝＋－＠]|[\t\r\n]", text)] == []
    assert [text for text in texts if re.search(r"[;\t\r\n][\"\s]*[=+\-@＝＋－＠]", text)] == []


def two_days(books: Generated) -> Query:
    """With every kind of exception; a workbook of all days takes the reader ten seconds."""
    return Query(books.customers[0].tenant, dt.date(2026, 10, 12), dt.date(2026, 10, 14), GROUPS)


@pytest.fixture(scope="module")
def xlsx(books: Generated) -> bytes:
    return written(two_days(books), "xlsx")


@pytest.fixture(scope="module")
def book(xlsx: bytes) -> openpyxl.Workbook:
    return openpyxl.load_workbook(io.BytesIO(xlsx))


def test_no_cell_of_a_workbook_runs(xlsx: bytes, book: openpyxl.Workbook) -> None:
    assert book.sheetnames == ["Usage", "Exceptions", "About"]
    cells = [cell for sheet in book.worksheets for row in sheet.iter_rows() for cell in row]
    assert {cell.data_type for cell in cells} <= {"s", "n", "d"}
    shown = {str(cell.value).replace("_x000D_", "\r") for cell in cells}
    assert set(EVIL) <= shown, "nothing but a carriage return is written otherwise than it is"
    assert all(sheet.freeze_panes == "A2" for sheet in book.worksheets)
    with zipfile.ZipFile(io.BytesIO(xlsx)) as parts:
        assert not any(b"<f>" in parts.read(name) or b"<f " in parts.read(name) for name in parts.namelist())
        assert {part.date_time for part in parts.infolist()} == {spreadsheet.STAMP}


def test_the_exceptions_sheet_is_typed_and_complete(books: Generated, book: openpyxl.Workbook) -> None:
    header, *rows = [[cell.value for cell in row] for row in book["Exceptions"].iter_rows()]
    with Snapshot(two_days(books)) as taken:
        expected = Counter(found.kind.value for found in taken.exceptions())
    assert Counter(row[0] for row in rows) == expected
    assert set(expected) == {kind.value for kind in set(ExceptionKind) - {ExceptionKind.PROVIDER}}
    first = dict(zip(header, rows[0], strict=True))
    assert isinstance(first["at"], dt.datetime) and isinstance(first["tokens"], int)
    quarantined = dict(zip(header, rows[-1], strict=True))
    assert (quarantined["kind"], quarantined["tokens"]) == ("quarantined", 4711)
    assert quarantined["what"] == "DataError: =bad"
    assert str(quarantined["link"]).startswith("http://127.0.0.1:8000/admin/usage/quarantinedevent/")


def test_parquet_has_types_groups_and_metadata(books: Generated, exported: dict[str, bytes]) -> None:
    file = pq.ParquetFile(io.BytesIO(exported["parquet"]))
    assert file.schema_arrow.equals(parquet.SCHEMA)
    groups = [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)]
    assert groups[0] == parquet.ROW_GROUP and all(rows == parquet.ROW_GROUP for rows in groups[:-1])
    metadata = {name.decode(): value.decode() for name, value in file.metadata.metadata.items()}
    with Snapshot(query(books, one_tenant=True)) as taken:
        assert metadata["content"] == taken.content_hash()
    assert (metadata["tenant"], metadata["from"]) == (books.customers[0].tenant.slug, "2026-10-01")
    first = file.read_row_group(0).slice(0, 200).to_pylist()
    one = next(row for row in first if row["kind"] == "exact" and row["cost"] is not None)
    assert one["at"].tzinfo is not None and type(one["cost"]) is Decimal and type(one["day"]) is dt.date
    record_ = UsageRecord.objects.get(request_id=one["request_id"], number=0)
    assert (one["at"], one["tokens"], one["cost"]) == (record_.at, record_.charged_tokens, record_.cost)


def test_a_statement_tells_its_number_and_pages(books: Generated, exported: dict[str, bytes]) -> None:
    tenant = books.customers[0].tenant
    pages = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(exported["pdf"])).pages]
    assert all(f"Page {place} of {len(pages)}" in page for place, page in enumerate(pages, 1)) and len(pages) > 1
    assert "Draft statement" in pages[0] and tenant.name in pages[0]
    assert "Not invoiced: outcome not known yet" in "".join(pages) and "more." in pages[-1]
    final = io.BytesIO()
    export(Query(tenant, START, dt.date(2026, 11, 1), []), "pdf", final, number="2026-10-0007")
    text = pypdf.PdfReader(final).pages[0].extract_text()
    assert "2026-10-0007" in text and "Draft" not in text and "1 October 2026 to\n31 October 2026" in text
    with pytest.raises(ValueError, match="one tenant's"):
        export(query(books), "pdf", io.BytesIO())


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("1234567.5", "1,234,567.50"),
        ("-7123456789012345.12345678901234", "−7,123,456,789,012,345.12345678901234"),
        ("-0.00000001", "−0.00000001"),
        ("0E-14", "0.00"),
    ],
)
def test_amounts_of_a_statement_keep_their_digits(amount: str, text: str) -> None:
    assert separated(Decimal(amount)) == text


def test_control_a_figure_that_is_counted_twice_is_noticed(books: Generated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what a correction takes back, unresolved calls would stand in the details for ever."""
    asked = Query(books.customers[1].tenant, START, books.last + dt.timedelta(days=1), GROUPS)
    expected = sum(row["unresolved_requests"] for row in report(asked))

    def unresolved() -> int:
        with Snapshot(asked) as taken:
            return sum(count for (count,) in taken.select("SELECT unresolved_requests FROM ({bookings}) b"))

    assert unresolved() == expected
    broken = bookings.bookings
    monkeypatch.setattr(
        snapshot, "bookings", lambda asked: (broken(asked)[0].replace("(-1, b.", "(0, b."), broken(asked)[1])
    )
    assert unresolved() > expected


def test_the_table_of_formats_is_whole() -> None:
    assert list(FORMATS) == ["csv", "json", "xlsx", "parquet", "pdf", "focus"]
    assert len({chosen.suffix for chosen in FORMATS.values()}) == len(FORMATS)
    assert formats.FORMATS["pdf"].one_tenant

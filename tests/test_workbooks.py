"""`manage.py usage report --format xlsx`: a workbook that opens, counts and runs nothing."""

import datetime as dt
import io
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from django.core.management import CommandError, call_command

from tests.bookkeeping import Customer
from usage.exporting import spreadsheet
from usage.exporting import workbook as workbook_module
from usage.ledger import record
from usage.models import Price

ROOT = Path(__file__).resolve().parent.parent
NOVEMBER = ("--from", "2026-11-01", "--to", "2026-12-01", "--format", "xlsx")


@pytest.fixture
def alice() -> Customer:
    return Customer()


def price(customer: Customer, model: str, currency: str, amount: str = "0.00000105") -> None:
    Price.objects.create(model=model, per_image=amount, currency=currency, valid_from=dt.date(2026, 1, 1))


def workbook(customer: Customer, folder: Path, *groups: str) -> list[list[Any]]:
    """The cells of the written workbook."""
    file = folder / "usage.xlsx"
    words = ("--tenant", customer.tenant.slug, "--group-by", ",".join(groups), "--output", str(file))
    call_command("usage", "report", *NOVEMBER, *words)
    sheet = openpyxl.load_workbook(file)["Usage"]
    assert sheet.freeze_panes == "A2"
    return [list(row) for row in sheet.iter_rows()]


def values(cells: list[list[Any]]) -> list[dict[str, Any]]:
    """The rows by the names in the header."""
    header, *rows = [[cell.value for cell in row] for row in cells]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_days_numbers_and_amounts_are_such(alice: Customer, tmp_path: Path) -> None:
    price(alice, alice.model, "EUR")
    record([alice.event(day="2026-11-01"), alice.event(day="2026-11-02"), alice.event("unresolved", day="2026-11-02")])
    cells = workbook(alice, tmp_path, "day", "token")
    header = [cell.value for cell in cells[0]]
    first = dict(zip(header, cells[1], strict=True))
    assert all(cell.font.bold for cell in (*cells[0], *cells[-1]))
    assert first["day"].is_date and first["day"].value == dt.datetime(2026, 11, 1)  # noqa: DTZ001 - a workbook's own
    assert (first["day"].number_format, first["token"].number_format) == ("yyyy-mm-dd", "General")
    kinds = {name: first[name].data_type for name in ("token", "requests", "tokens", "cost", "currency")}
    assert kinds == {"token": "n", "requests": "n", "tokens": "n", "cost": "n", "currency": "s"}
    assert first["cost"].value == 0.0000021
    first_row, second, total = values(cells)
    assert (first_row["requests"], first_row["tokens"], second["unresolved_tokens"]) == (1, 4182, 4850)
    assert (total["day"], total["token"], total["requests"], total["tokens"]) == ("total", None, 2, 2 * 4182)
    assert (total["cost"], total["currency"], total["unresolved_requests"]) == (0.0000042, "EUR", 1)


def test_each_currency_has_its_total(alice: Customer, tmp_path: Path) -> None:
    for model, currency in (("a", "USD"), ("b", "EUR"), ("c", "EUR"), ("d", "")):
        if currency:
            price(alice, f"{alice.model}-{model}", currency, "0.25")
        record([alice.event(model=f"{alice.model}-{model}")])
    *_, euro, dollar, none = values(workbook(alice, tmp_path, "model"))
    assert [(row["model"], row["requests"], row["cost"], row["currency"]) for row in (euro, dollar, none)] == [
        ("total", 2, 1.0, "EUR"),
        ("total", 1, 0.5, "USD"),
        ("total", 1, None, None),
    ]


def test_what_had_no_price_joins_the_only_currency(alice: Customer, tmp_path: Path) -> None:
    price(alice, f"{alice.model}-a", "EUR", "0.25")
    record([alice.event(model=f"{alice.model}-{model}") for model in "ab"])
    *rows, total = values(workbook(alice, tmp_path, "model"))
    assert [row["cost"] for row in rows] == [0.5, None]
    assert (total["requests"], total["cost"], total["currency"], total["unpriced_requests"]) == (2, 0.5, "EUR", 1)


def test_a_total_without_any_price_is_unknown(alice: Customer, tmp_path: Path) -> None:
    price(alice, alice.model, "EUR")
    record([alice.event("void", day="2026-11-01"), alice.event(model=f"{alice.model}-new", day="2026-11-02")])
    *_, total = values(workbook(alice, tmp_path, "day"))
    assert (total["requests"], total["cost"], total["currency"], total["unpriced_requests"]) == (1, None, None, 1)


def test_nothing_used_is_a_header_and_zeros(alice: Customer, tmp_path: Path) -> None:
    (total,) = values(workbook(alice, tmp_path, "day"))
    assert (total["day"], total["requests"], total["cost"]) == ("total", 0, None)


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "@SUM(1)", "#N/A", "12", "2026-11-01", "TRUE"])
def test_text_is_text_whatever_it_looks_like(alice: Customer, tmp_path: Path, name: str) -> None:
    alice.token, alice.secret = alice.add_token(name)
    record([alice.event()])
    cells = workbook(alice, tmp_path, "token")
    assert (cells[1][1].value, cells[1][1].data_type) == (name, "s")


def test_a_character_that_no_workbook_holds_is_replaced(alice: Customer, tmp_path: Path) -> None:
    alice.token, alice.secret = alice.add_token("be\x07ll")
    record([alice.event()])
    assert workbook(alice, tmp_path, "token")[1][1].value == "be\N{REPLACEMENT CHARACTER}ll"


def test_more_rows_than_a_worksheet_takes_are_refused(
    alice: Customer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record([alice.event(day=f"2026-11-{day:02}") for day in range(1, 19)])
    monkeypatch.setattr(spreadsheet, "MOST_ROWS", 20)
    assert len(workbook(alice, tmp_path, "day")) == 20
    monkeypatch.setattr(spreadsheet, "MOST_ROWS", 19)
    before = (tmp_path / "usage.xlsx").read_bytes()
    with pytest.raises(CommandError, match="A worksheet takes 19 rows, and this report has more"):
        workbook(alice, tmp_path, "day")
    assert (tmp_path / "usage.xlsx").read_bytes() == before


def test_exceptions_beyond_the_first_are_counted(
    alice: Customer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record([alice.event("unresolved") for _ in range(5)])
    monkeypatch.setattr(workbook_module, "MOST_EXCEPTIONS", 3)
    workbook(alice, tmp_path, "day")
    sheet = openpyxl.load_workbook(tmp_path / "usage.xlsx")["Exceptions"]
    kinds = [row[0].value for row in sheet.iter_rows(min_row=2)]
    assert kinds == ["unresolved"] * 3 + [None]
    assert sheet.cell(5, 5).value == "And 2 more: choose fewer days, or one tenant."


def manage(customer: Customer, stdout: int) -> "subprocess.CompletedProcess[bytes]":
    """Run the command without --output."""
    words = ["usage", "report", *NOVEMBER, "--tenant", customer.tenant.slug]
    command = [sys.executable, str(ROOT / "manage.py"), *words]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT, timeout=60)


def test_without_a_file_it_goes_to_the_standard_output(alice: Customer, tmp_path: Path) -> None:
    record([alice.event()])
    piped = manage(alice, subprocess.PIPE)
    assert (piped.returncode, piped.stderr) == (0, b"")
    with (tmp_path / "redirected").open("wb") as file:
        assert manage(alice, file.fileno()).returncode == 0
    for content in (piped.stdout, (tmp_path / "redirected").read_bytes()):
        sheet = openpyxl.load_workbook(io.BytesIO(content)).active
        assert sheet is not None and sheet.max_row == 3


def test_a_terminal_gets_a_sentence() -> None:
    master, terminal = pty.openpty()
    try:
        refused = manage(Customer(), terminal)
    finally:
        os.close(terminal)
        os.close(master)
    assert refused.returncode == 1
    assert refused.stderr == b"CommandError: Excel is no text for a terminal: give --output FILE.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "/no/such/folder/usage.xlsx"], "/no/such/folder/usage.xlsx can't be written: No such file"),
        ([], "give --output FILE"),
        (["--format", "pdf"], "give --output FILE"),
    ],
)
def test_it_says_what_is_wrong(alice: Customer, words: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        call_command("usage", "report", *NOVEMBER, "--tenant", alice.tenant.slug, *words, stdout=io.StringIO())

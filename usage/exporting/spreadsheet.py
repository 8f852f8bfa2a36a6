"""A small writer of Excel workbooks (ECMA-376), because two things matter here that no library gives.

An amount is written with all of its digits (libraries write the nearest binary number, in 16), and the same rows give
the same bytes, whenever they are written. Rows go to the file as they come, so memory stays constant. Text is always
text, never a formula: there is no way to write one.
"""

import datetime as dt
import re
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from decimal import Decimal
from typing import IO, BinaryIO, Self
from xml.sax.saxutils import escape, quoteattr

MOST_ROWS = 1_048_576  # of a worksheet, the header among them
MOST_TEXT = 32_767  # characters of a cell
STAMP = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file knows
EPOCH = dt.datetime(1899, 12, 30, tzinfo=dt.UTC)  # day 0 of a spreadsheet that also has Lotus's 29 February 1900
# What XML 1.0 can't hold, and "_x000D_", which Excel would read as a carriage return.
UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
ESCAPE = re.compile("_(?=x[0-9A-Fa-f]{4}_)")

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
DOCUMENT = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
# Cell formats by their place in STYLES' cellXfs; a bold one stands BOLD places after its plain one.
TEXT, WHOLE, AMOUNT, DAY, MOMENT, IDENTIFIER, BOLD = range(7)
NUMBER_FORMATS = {164: "#,##0", 165: "#,##0.00############", 166: "yyyy-mm-dd", 167: "yyyy-mm-dd hh:mm:ss"}
FORMATS = [f'<numFmt numFmtId="{number}" formatCode="{code}"/>' for number, code in NUMBER_FORMATS.items()]
CELL = '<xf numFmtId="{}" fontId="{}" fillId="0" borderId="0" xfId="0" applyNumberFormat="1" applyFont="1"/>'
CELLS = [CELL.format(number, font) for font in (0, 1) for number in (49, *NUMBER_FORMATS, 0)]  # 49 is text
STYLES = (
    f'{HEAD}<styleSheet xmlns="{MAIN}"><numFmts count="{len(FORMATS)}">{"".join(FORMATS)}</numFmts><fonts count="2">'
    '<font><sz val="11"/><name val="Calibri"/></font><font><b/><sz val="11"/><name val="Calibri"/></font></fonts>'
    '<fills count="2"><fill><patternFill patternType="none"/></fill><fill><patternFill patternType="gray125"/></fill>'
    '</fills><borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>'
    '<cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/></cellStyleXfs>'
    f'<cellXfs count="{len(CELLS)}">{"".join(CELLS)}</cellXfs>'
    '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>'
)

VIEW = "<bookViews><workbookView/></bookViews>"  # the one that each sheet's view belongs to

Value = str | int | Decimal | dt.date | dt.datetime | None


class TooManyRows(Exception):
    """A worksheet has no room for another row; the message says so."""


class Book:
    """A workbook that is being written to a file, sheet by sheet; use it as a context manager."""

    def __init__(self, out: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED)
        self._names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        self._zip.close()

    def sheet(self, name: str, widths: Sequence[int]) -> "Sheet":
        """Begin a sheet whose first row stays in sight; `widths` of its columns, in characters."""
        self._names.append(name)
        return Sheet(self._zip, len(self._names), widths)

    def _finish(self) -> None:
        numbers = range(1, len(self._names) + 1)
        sheets = "".join(
            f'<sheet name={quoteattr(name)} sheetId="{n}" r:id="rId{n}"/>'
            for n, name in zip(numbers, self._names, strict=True)
        )
        spaces = f'xmlns="{MAIN}" xmlns:r="{DOCUMENT}"'
        self._part("xl/workbook.xml", f"<workbook {spaces}>{VIEW}<sheets>{sheets}</sheets></workbook>")
        parts = [(f"rId{n}", "worksheet", f"worksheets/sheet{n}.xml") for n in numbers]
        self._part("xl/_rels/workbook.xml.rels", _relations([*parts, ("rIdStyles", "styles", "styles.xml")]))
        self._part("_rels/.rels", _relations([("rId1", "officeDocument", "xl/workbook.xml")]))
        kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
        kinds = [("/xl/workbook.xml", "sheet.main"), ("/xl/styles.xml", "styles")]
        kinds += [(f"/xl/worksheets/sheet{n}.xml", "worksheet") for n in numbers]
        overrides = "".join(f'<Override PartName="{part}" ContentType="{kind}.{name}+xml"/>' for part, name in kinds)
        relations = "application/vnd.openxmlformats-package.relationships+xml"
        defaults = (
            f'<Default Extension="rels" ContentType="{relations}"/>'
            '<Default Extension="xml" ContentType="application/xml"/>'
        )
        self._part("[Content_Types].xml", f'<Types xmlns="{PACKAGE}/content-types">{defaults}{overrides}</Types>')
        with _open(self._zip, "xl/styles.xml") as part:
            part.write(STYLES.encode())

    def _part(self, name: str, content: str) -> None:
        with _open(self._zip, name) as part:
            part.write((HEAD + content).encode())


class Sheet:
    """A worksheet that is being written; use it as a context manager, one at a time."""

    def __init__(self, book: zipfile.ZipFile, number: int, widths: Sequence[int]) -> None:
        self._stack = ExitStack()
        self._book, self._number, self._widths = book, number, widths
        self.rows = 0

    def __enter__(self) -> Self:
        self._part = self._stack.enter_context(_open(self._book, f"xl/worksheets/sheet{self._number}.xml"))
        pane = '<pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/>'
        columns = "".join(
            f'<col min="{n}" max="{n}" width="{width}" customWidth="1"/>' for n, width in enumerate(self._widths, 1)
        )
        self._part.write(
            f'{HEAD}<worksheet xmlns="{MAIN}"><sheetViews><sheetView workbookViewId="0">{pane}</sheetView></sheetViews>'
            f"<cols>{columns}</cols><sheetData>".encode()
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._part.write(b"</sheetData></worksheet>")
        self._stack.close()

    def add(self, values: Iterable[Value], *, bold: bool = False, identifiers: Iterable[int] = ()) -> None:
        """Write a row: days, moments, numbers and text as such, None as an empty cell. Raises TooManyRows.

        `identifiers` are the places of numbers that name something, and so stand without thousands separators.
        """
        if self.rows == MOST_ROWS:
            raise TooManyRows(f"A worksheet takes {MOST_ROWS:,} rows, and this report has more: choose fewer groups.")
        self.rows += 1
        plain = frozenset(identifiers)
        cells = "".join(
            _cell(f"{letters(place)}{self.rows}", value, BOLD * bold, place in plain)
            for place, value in enumerate(values)
            if value is not None or bold
        )
        self._part.write(f'<row r="{self.rows}">{cells}</row>'.encode())


def letters(place: int) -> str:
    """The name of a column: A for 0, AA for 26."""
    rest, last = divmod(place, 26)
    return (letters(rest - 1) if rest else "") + chr(ord("A") + last)


def _cell(name: str, value: Value, bold: int, identifier: bool) -> str:
    match value:
        case None:
            return f'<c r="{name}" s="{TEXT + bold}"/>'
        case str():
            text = ESCAPE.sub("_x005F_", UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", value))[:MOST_TEXT]
            held = escape(text, {"\r": "_x000D_"})
            return f'<c r="{name}" t="inlineStr" s="{TEXT + bold}"><is><t xml:space="preserve">{held}</t></is></c>'
        case dt.datetime():
            style, text = MOMENT, f"{Decimal((value - EPOCH) // dt.timedelta(seconds=1)) / 86_400:.10f}"
        case dt.date():
            style, text = DAY, str(value.toordinal() - EPOCH.toordinal())
        case Decimal():
            style, text = AMOUNT, f"{value:f}"
        case _:
            style, text = (IDENTIFIER if identifier else WHOLE), str(value)
    return f'<c r="{name}" s="{style + bold}"><v>{text}</v></c>'


def _relations(entries: Iterable[tuple[str, str, str]]) -> str:
    inner = "".join(
        f'<Relationship Id="{name}" Type="{DOCUMENT}/{kind}" Target="{target}"/>' for name, kind, target in entries
    )
    return f'<Relationships xmlns="{PACKAGE}/relationships">{inner}</Relationships>'


def _open(book: zipfile.ZipFile, name: str) -> IO[bytes]:
    part = zipfile.ZipInfo(name, STAMP)
    part.compress_type = zipfile.ZIP_DEFLATED
    part.external_attr = 0o600 << 16
    return book.open(part, "w", force_zip64=True)

"""A report beside the same usage a period earlier: what has changed, and by how much."""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import NamedTuple

from usage.reports import Query, Row, report

MEASURES = ("cost", "requests", "images", "tokens")
TENTHS = Decimal("0.1")

Number = int | Decimal


class Change(NamedTuple):
    """By how much a figure differs from the earlier one; `percent` is None where that was 0."""

    by: Number
    percent: Decimal | None


@dataclass(frozen=True)
class Compared:
    """A row of a report, its share of the total in percent, and what changed; None where that can't be said."""

    row: Row
    share: Decimal | None
    change: Change | None


def period_before(query: Query) -> Query:
    """The same usage in the period before: days that begin a month are compared with those of the months before.

    1 to 22 November follows 1 to 22 October, a quarter the quarter before; any other 10 days follow the 10 before.
    """
    if query.start.day != 1:
        days = query.end - query.start
        return replace(query, start=query.start - days, end=query.start)
    last = query.end - dt.timedelta(days=1)
    months = (last.year - query.start.year) * 12 + last.month - query.start.month + 1
    end = min(earlier_month(query.end, months), query.start)
    return replace(query, start=earlier_month(query.start, months), end=end)


def step_before(query: Query) -> tuple[str, Query]:
    """With what each row is compared: a report by days with the days before, by weeks or months likewise.

    The finest of these units counts. Without any it is the period before; its unit is then "".
    """
    unit = next((unit for unit in ("day", "week", "month") if unit in query.groups), "")
    if not unit:
        return unit, period_before(query)
    return unit, replace(query, start=_back(query.start, unit), end=_back(query.end, unit))


def compare(query: Query, rows: Sequence[Row], totals: Sequence[Row], measure: str) -> list[Compared]:
    """The rows of a report with their share of `totals` and their change, by one of MEASURES. One query."""
    unit, earlier_query = step_before(query)
    then = [_shifted(row, unit) for row in rows]
    earlier: dict[tuple[str | int, ...], list[Row]] = defaultdict(list)
    if rows:
        for row in report(earlier_query, among=then if query.groups else ()):
            earlier[tuple(query.place(row))].append(row)
    whole = whole_by_currency(totals, measure)
    return [
        Compared(
            row,
            share(row[measure], whole(row)),
            change(row, matching(row, earlier[tuple(query.place(before))], measure), measure)
            if _is_whole(row) and _is_whole(before)
            else None,
        )
        for row, before in zip(rows, then, strict=True)
    ]


def whole_by_currency(totals: Sequence[Row], measure: str) -> Callable[[Row], Number | None]:
    """What a row's figure is a part of: of amounts those in its currency, of anything else all."""
    if measure != "cost":
        everything = sum(total[measure] for total in totals)
        return lambda row: everything
    by_currency = {total["currency"]: total["cost"] for total in totals}
    return lambda row: by_currency.get(row["currency"])


def share(part: Number | None, whole: Number | None) -> Decimal | None:
    """In percent, to a tenth; None where one of them isn't known, and of nothing."""
    return None if part is None or not whole else (Decimal(part) / Decimal(whole) * 100).quantize(TENTHS)


def change(row: Row, before: Row | None, measure: str) -> Change | None:
    """From the earlier row (None: there was nothing) to this one; None where an amount isn't known."""
    now, then = row[measure], 0 if before is None else before[measure]
    if now is None or then is None:
        return None
    by = now - then
    return Change(by, (Decimal(by) / Decimal(abs(then)) * 100).quantize(TENTHS) if then else None)


def matching(row: Row, before: Sequence[Row], measure: str) -> Row | None:
    """The earlier row in the same currency; without one the only row there is, which has other calls of the group.

    Of amounts without one it is the row of the calls whose price wasn't known: theirs may have been in any currency.
    """
    same = next((one for one in before if one["currency"] == row["currency"]), None)
    if same is not None:
        return same
    if measure == "cost":
        return next((one for one in before if one["currency"] is None), None)
    return before[0] if len(before) == 1 else None


def _shifted(row: Row, unit: str) -> Row:
    """The row with the day, week and month that it is compared with."""
    if not unit:
        return row
    shifted = dict(row)
    if unit in {"day", "week"}:
        shifted[unit] = _back(row[unit], unit)
    else:
        shifted["month"] = f"{_back(dt.date.fromisoformat(row['month'] + '-01'), unit):%Y-%m}"
    if unit == "day" and "week" in row:
        shifted["week"] = shifted["day"] - dt.timedelta(days=shifted["day"].weekday())
    if unit in {"day", "week"} and "month" in row:
        shifted["month"] = f"{shifted[unit]:%Y-%m}"
    return shifted


def _is_whole(row: Row) -> bool:
    """Whether its week lies in its month: by both, a week of two months is two rows, with other days every time."""
    if "day" in row or not {"week", "month"} <= row.keys():
        return True
    return all(f"{row['week'] + dt.timedelta(days=days):%Y-%m}" == row["month"] for days in (0, 6))


def _back(day: dt.date, unit: str) -> dt.date:
    return earlier_month(day, 1) if unit == "month" else day - dt.timedelta(days=7 if unit == "week" else 1)


def earlier_month(day: dt.date, months: int) -> dt.date:
    """The same day so many months earlier; where that month is shorter, the first of the one after it."""
    year, month = divmod(day.year * 12 + day.month - 1 - months, 12)
    try:
        return dt.date(year, month + 1, day.day)
    except ValueError:
        return dt.date(year, month + 2, 1)  # December has 31 days

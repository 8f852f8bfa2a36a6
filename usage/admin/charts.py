"""Bar charts as SVG that the server draws: no script, no style but the page's, and every figure in a table beside it.

Places along the width are percentages and those along the height pixels, so that text stays readable on a telephone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

HEIGHT, TOP, BOTTOM = 200, 16, 24  # pixels: of the whole, above the bars, below them
MOST_LABELS = 8
GAP = 0.25  # of a bar's place

Number = int | Decimal


class Series(NamedTuple):
    """One colour of the bars: `name` for people, `style` a class of the style sheet, a value for each bar."""

    name: str
    style: str
    values: Sequence[Number]


class Rect(NamedTuple):
    """A part of a bar."""

    style: str
    y: str
    height: str


class Bar(NamedTuple):
    """One bar, in percent of the width and pixels of the height."""

    label: str  # under it, "" where there is no room
    title: str
    x: str
    middle: str
    width: str
    rects: list[Rect]
    link: str
    roomy: bool  # the label stands only where there is room for all of them, not on a telephone


class Line(NamedTuple):
    """A line across, and what it stands for."""

    y: str
    label: str


@dataclass(frozen=True)
class Chart:
    """A chart, as admin/chart.html draws it."""

    title: str
    summary: str
    series: list[tuple[str, str, str]]  # name, style, sum
    bars: list[Bar]
    lines: list[Line]
    header: list[str]
    rows: list[tuple[str, str, list[str]]]  # label, link, values
    height: int = HEIGHT
    baseline: int = HEIGHT - BOTTOM
    plot: int = HEIGHT - BOTTOM - TOP
    top: int = TOP


def chart(
    title: str,
    labels: Sequence[tuple[str, str]],
    series: Sequence[Series],
    links: Sequence[str],
    write: Callable[[Number], str] = "{:,}".format,
) -> Chart:
    """Bars whose parts stand on each other. `labels`: short and full name of each bar; `links` may hold ""."""
    totals = [sum(one.values[place] for one in series) for place in range(len(labels))]
    most = _round_up(max(totals, default=0))
    share = 100 / max(1, len(labels))
    every = -(-len(labels) // MOST_LABELS)
    bars, rows = [], []
    for place, (short, full) in enumerate(labels):
        told = [f"{write(one.values[place])} {one.name.lower()}" for one in series]
        bars.append(
            Bar(
                short if (len(labels) - 1 - place) % every == 0 else "",
                f"{full}: {', '.join(told)}",
                _percent(share * (place + GAP / 2)),
                _percent(share * (place + 0.5)),
                _percent(share * (1 - GAP)),
                _stack([(one.style, one.values[place]) for one in series], most),
                links[place],
                (len(labels) - 1 - place) // every % 2 == 1,
            )
        )
        rows.append((full, links[place], [write(one.values[place]) for one in series]))
    sums = [(one.name, one.style, write(sum(one.values))) for one in series]
    return Chart(
        title,
        f"{title}: " + ", ".join(f"{total} {name.lower()}" for name, _, total in sums),
        sums,
        bars,
        _lines(most),
        [one.name for one in series],
        rows,
    )


def _lines(most: Number) -> list[Line]:
    """One at the top, and one half way up where that is a whole number."""
    if not most:
        return []
    half = [Line(f"{TOP + _plot() / 2:.0f}", _tick(most / 2 if isinstance(most, Decimal) else most // 2))]
    return [Line(f"{TOP}", _tick(most)), *(half if isinstance(most, Decimal) or most % 2 == 0 else [])]


def _tick(value: Number) -> str:
    """A number beside a line, short: 400, 20k, 1.5M."""
    if value >= 10**6:
        return f"{float(value) / 10**6:g}M"
    return f"{float(value) / 1000:g}k" if value >= 10**4 else f"{float(value):g}"


def _stack(parts: Sequence[tuple[str, Number]], most: Number) -> list[Rect]:
    rects, y = [], float(HEIGHT - BOTTOM)
    for style, value in parts:
        if value > 0:
            height = max(1.0, _height(value, most))  # whatever there is can be seen
            y -= height
            rects.append(Rect(style, f"{y:.1f}", f"{height:.1f}"))
    return rects


def _plot() -> int:
    return HEIGHT - BOTTOM - TOP


def _height(value: Number, most: Number) -> float:
    return float(value) / float(most) * _plot() if most else 0.0


def _percent(share: float) -> str:
    return f"{share:.3f}%"


def _round_up(value: Number) -> Number:
    """The next of 1, 2, 4, 6, 8 and 10 times a power of ten: a line that reads well, and half of it does, too."""
    if value <= 0:
        return 0
    power: Number = 1 if isinstance(value, int) else Decimal(1)
    if isinstance(value, Decimal):
        power = Decimal(10) ** value.adjusted()
    else:
        while power * 10 <= value:
            power *= 10
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)

"""The shapes of the stones: each cut as facets in a plane, y downwards, the stone about one unit from its centre."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

Point = tuple[float, float]


@dataclass(frozen=True)
class Facet:
    """A flat face: its corners, and how much light it gives back (0 in shadow, 1 dazzling)."""

    corners: tuple[Point, ...]
    light: float


def _polar(radius: float, angle: float) -> Point:
    return radius * math.cos(angle), radius * math.sin(angle)


def _facing(corners: tuple[Point, ...], towards: float) -> float:
    """How much a face of the crown looks towards the lamp, 0 to 1, told from where its middle lies."""
    x = sum(corner[0] for corner in corners) / len(corners)
    y = sum(corner[1] for corner in corners) / len(corners)
    return 0.5 + 0.5 * math.cos(math.atan2(y, x) - towards)


def brilliant(rng: Random) -> list[Facet]:
    """A round brilliant seen from above: table, stars, kites and girdle, the pavilion flashing through the table."""
    fold = rng.choice((6, 8, 8, 9, 10, 12))
    turn, lamp = rng.uniform(0, math.tau), rng.uniform(-2.6, -1.2)
    step = math.tau / fold
    table = [_polar(0.52, turn + k * step) for k in range(fold)]
    middle = [_polar(0.74, turn + (k + 0.5) * step) for k in range(fold)]
    girdle = [_polar(1.0, turn + k * step / 2) for k in range(2 * fold)]
    faces: list[tuple[tuple[Point, ...], float]] = []
    for k in range(fold):
        after, half = (k + 1) % fold, 2 * k
        faces.append(((table[k], middle[k], table[after]), 0.85))
        faces.append(((table[k], middle[k - 1], girdle[half], middle[k]), 0.7))
        faces.append(((middle[k], girdle[half], girdle[half + 1]), 0.45))
        faces.append(((middle[k], girdle[half + 1], girdle[(half + 2) % (2 * fold)]), 0.55))
    shown = [Facet(c, top * (0.35 + 0.65 * _facing(c, lamp)) + rng.uniform(-0.1, 0.12)) for c, top in faces]
    inner = [_polar(0.26, turn + (k + 0.5) * step) for k in range(fold)]
    for k in range(fold):
        rays = (table[k], inner[k], inner[k - 1])
        shown.append(Facet(rays, 0.72 + 0.2 * _facing(rays, lamp + math.pi) * rng.uniform(0.4, 1.2)))
        wedge = (table[k], table[(k + 1) % fold], inner[k])
        shown.append(Facet(wedge, 0.3 + 0.5 * _facing(wedge, lamp + math.pi) + rng.uniform(-0.1, 0.1)))
        heart = ((0.0, 0.0), inner[k - 1], inner[k])
        shown.append(Facet(heart, rng.uniform(0.45, 1.0)))
    return shown


def emerald(rng: Random) -> list[Facet]:
    """An emerald cut seen from above: steps around a long eight-sided table."""
    lamp, tall = rng.uniform(-2.6, -1.0), rng.choice((1.0, 0.78))
    wide = 0.72 if tall == 1.0 else 1.0

    def ring(scale: float) -> list[Point]:
        x, y, cut = wide * scale, tall * scale, 0.3 * scale
        return [(x - cut, -y), (x, cut - y), (x, y - cut), (x - cut, y),
                (cut - x, y), (-x, y - cut), (-x, cut - y), (cut - x, -y)]  # fmt: skip

    rings = [ring(scale) for scale in (1.0, 0.84, 0.7, 0.56)]
    shown = []
    for depth, (outer, inner) in enumerate(pairwise(rings)):
        for k in range(8):
            corners = (outer[k], outer[(k + 1) % 8], inner[(k + 1) % 8], inner[k])
            shown.append(Facet(corners, 0.18 + 0.12 * depth + 0.55 * _facing(corners, lamp) + rng.uniform(-0.08, 0.08)))
    table, keel = rings[-1], ((0.0, -0.3 * tall), (0.0, 0.3 * tall))
    for k in range(8):
        first, last = table[k], table[(k + 1) % 8]
        near = keel[0] if first[1] + last[1] < 0 else keel[1]
        shown.append(Facet((first, last, near), 0.3 + 0.55 * _facing((first, last), lamp + math.pi)))
    for edge, ends in (((table[1], table[2]), (keel[1], keel[0])), ((table[5], table[6]), (keel[0], keel[1]))):
        shown.append(Facet((*edge, *ends), 0.35 + 0.5 * _facing(edge, lamp + math.pi)))
    return shown


def diamond(rng: Random) -> list[Facet]:
    """A brilliant seen from the side: the crown above, the pavilion running down to its point."""
    columns, lamp = rng.choice((3, 4, 5)), rng.uniform(-0.6, 0.6)
    belt, crown, deep = -0.36, -0.78, rng.uniform(0.85, 1.05)
    rim = [(-1 + 2 * k / columns, belt) for k in range(columns + 1)]
    top = [(-0.62 + 1.24 * k / (columns - 1), crown) for k in range(columns)]

    def glint(x: float, base: float) -> float:
        return base + 0.4 * (1 - abs(x - lamp)) + rng.uniform(-0.14, 0.14)

    shown = []
    for k in range(columns):
        middle = (rim[k][0] + rim[k + 1][0]) / 2
        shown.append(Facet((top[k], rim[k], rim[k + 1]), glint(middle, 0.5)))
        if k:
            shown.append(Facet((top[k - 1], top[k], rim[k]), glint(rim[k][0], 0.62)))
        low = (middle * 0.55, belt + 0.42 * (deep - belt))
        shown.append(Facet((rim[k], rim[k + 1], low), glint(middle, 0.4)))
        shown.append(Facet((rim[k], low, (0.0, deep)), glint(middle, 0.16)))
        shown.append(Facet((low, rim[k + 1], (0.0, deep)), glint(middle, 0.02)))
    return shown


def cluster(rng: Random) -> list[Facet]:
    """A cluster of six-sided crystals growing out of one foot, the tall ones in front of the leaning ones."""
    count = rng.choice((5, 7, 9))
    order = sorted(range(count), key=lambda k: -abs(k - (count - 1) / 2))
    shown: list[Facet] = []
    for k in order:
        lean = (k - (count - 1) / 2) / (count / 2)
        height = (1.75 - 0.85 * abs(lean)) * rng.uniform(0.85, 1.08)
        tilt = lean * 0.75 + rng.uniform(-0.08, 0.08)
        shown += _crystal((lean * 0.34, 0.86), tilt, height, rng.uniform(0.12, 0.2), rng)
    return shown + _rock(rng)


def _rock(rng: Random) -> list[Facet]:
    """The piece of ground a cluster floats on: a flat wedge with its point below."""
    ridge = [(-0.62, 0.8), (-0.34, 0.7), (-0.06, 0.76), (0.24, 0.68), (0.6, 0.79)]
    hem = [(x * 0.72, y + rng.uniform(0.16, 0.24)) for x, y in ridge]
    point = (rng.uniform(-0.12, 0.12), 1.3)
    shown = []
    for k in range(len(ridge) - 1):
        light = 0.42 - 0.08 * k + rng.uniform(-0.05, 0.05)
        shown.append(Facet((ridge[k], ridge[k + 1], hem[k]), light + 0.08))
        shown.append(Facet((ridge[k + 1], hem[k + 1], hem[k]), light))
        shown.append(Facet((hem[k], hem[k + 1], point), light - 0.16))
    return shown


def _crystal(foot: Point, lean: float, height: float, half: float, rng: Random) -> list[Facet]:
    """One prism with a pointed tip: three long faces and three short ones. `lean` in radians from upright."""
    across, along = (math.cos(lean), math.sin(lean)), (math.sin(lean), -math.cos(lean))

    def at(side: float, up: float) -> Point:
        return (foot[0] + across[0] * side + along[0] * up, foot[1] + across[1] * side + along[1] * up)

    split = rng.uniform(-0.25, 0.1)
    edges = (-half, half * (split - 0.25), half * (split + 0.75), half)
    shoulder, tip = height - half * rng.uniform(1.3, 1.9), at(half * rng.uniform(-0.2, 0.2), height)
    shown = []
    for light, left, right in zip((0.6, 0.82, 0.3), edges, edges[1:], strict=False):
        low, high = at(left * 0.8, 0), at(right * 0.8, 0)
        shoulders = at(left, shoulder), at(right, shoulder)
        dim = light - 0.16 + rng.uniform(-0.1, 0.1)
        waist = at(left * 0.9, shoulder * rng.uniform(0.3, 0.55)), at(right * 0.9, shoulder * rng.uniform(0.3, 0.55))
        shown.append(Facet((low, high, waist[1], waist[0]), dim - 0.12))
        shown.append(Facet((waist[0], waist[1], shoulders[1], shoulders[0]), dim))
        shown.append(Facet((*shoulders, tip), light + rng.uniform(0, 0.18)))
    return shown


CUTS: tuple[Callable[[Random], list[Facet]], ...] = (brilliant, emerald, diamond, cluster)

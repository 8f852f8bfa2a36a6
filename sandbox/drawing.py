"""Draws the picture of a prompt: a cut stone shining in a sky of low-poly crystal mountains.

The same prompt and number always give the same picture at a size; another prompt gives another sky,
stone and light. Pillow alone, within about 60 ms of CPU at 1024x1024.
"""

import hashlib
import io
import math
from itertools import pairwise
from random import Random

from PIL import Image, ImageDraw

from sandbox.gems import CUTS, Facet, cluster, diamond
from sandbox.palettes import PALETTES, Colour, Palette

Size = tuple[int, int]

# Facets are drawn this many times larger and then averaged down; Pillow's own polygons have jagged edges.
_FINE = 2

# The sky has no edges: painted this many times smaller and stretched it looks the same, and costs little.
_COARSE = 4

# Pillow's radial gradient reaches 255 only in its corners; light still left at the sides would show as a square.
_RIM = 180


def draw(prompt: str, index: int, size: Size) -> bytes:
    """The PNG for picture number `index` (from 0) of `prompt`; `size` is width and height in pixels."""
    seed = hashlib.sha256(f"{index}\n{prompt}".encode()).digest()
    rng = Random(seed)  # noqa: S311 - a picture must come out the same each time; nothing here is secret
    palette = rng.choice(PALETTES)
    width, height = size
    span = min(size)
    centre = width * rng.uniform(0.46, 0.54), height * rng.uniform(0.42, 0.47)
    image = _sky(rng, palette, (width // _COARSE, height // _COARSE))
    middle = centre[0] / _COARSE, centre[1] / _COARSE
    _glow(image, middle, span / _COARSE * rng.uniform(0.62, 0.72), palette.glow, 1.0)
    image = image.resize(size, Image.Resampling.BICUBIC)
    _rays(image, rng, centre, span)
    image = image.resize((width * _FINE, height * _FINE), Image.Resampling.NEAREST)
    _stars(image, rng, span)
    canvas = ImageDraw.Draw(image)
    _mountains(canvas, rng, palette, image.size)
    _stones(canvas, rng, palette, centre, span)
    image = image.reduce(_FINE)
    _sparkle(image, rng, centre, span)
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)
    return png.getvalue()


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    """`share` 0 gives the first colour, 1 the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _along(ramp: tuple[Colour, ...], place: float) -> Colour:
    """The colour at `place` (0 to 1, clamped) of a ramp."""
    place = min(max(place, 0.0), 1.0) * (len(ramp) - 1)
    left = min(int(place), len(ramp) - 2)
    return _mix(ramp[left], ramp[left + 1], place - left)


def _sky(rng: Random, palette: Palette, size: Size) -> Image.Image:
    """A soft sky: a handful of colours, each a little off its height, stretched over the whole picture."""
    columns, rows = 4, 7
    small = Image.new("RGB", (columns, rows))
    drift = [rng.uniform(-0.07, 0.07) for _ in range(columns)]
    for y in range(rows):
        for x in range(columns):
            small.putpixel((x, y), _along(palette.sky, y / (rows - 1) + drift[x] + rng.uniform(-0.05, 0.05)))
    return small.resize(size, Image.Resampling.BICUBIC)


def _glow(image: Image.Image, centre: tuple[float, float], radius: float, colour: Colour, strength: float) -> None:
    """A round light: full at the centre, nothing at `radius` pixels."""
    edge = max(2, round(2 * radius))
    fall = [round(255 * strength * max(0.0, 1 - grey / _RIM) ** 1.25) for grey in range(256)]
    light = Image.radial_gradient("L").point(fall).resize((edge, edge), Image.Resampling.BILINEAR)
    image.paste(colour, (round(centre[0] - edge / 2), round(centre[1] - edge / 2)), light)


def _stars(image: Image.Image, rng: Random, span: int) -> None:
    """Small stars, most of them high up."""
    canvas = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.randint(30, 60)):
        x, y = rng.uniform(0, image.width), image.height * rng.betavariate(1, 2.4) * 0.7
        radius = max(1.0, _FINE * span * rng.uniform(0.0008, 0.0024))
        box = (x - radius, y - radius, x + radius, y + radius)
        canvas.ellipse(box, fill=(255, 255, 255, rng.randint(90, 230)))


def _rays(image: Image.Image, rng: Random, centre: tuple[float, float], span: int) -> None:
    """Beams of light fanning out behind the stone."""
    canvas = ImageDraw.Draw(image, "RGBA")
    x, y = centre
    far = 2.2 * span
    beams = rng.choice((9, 11, 13))
    for k in range(beams):
        angle = math.tau * (k + rng.uniform(-0.25, 0.25)) / beams
        spread = rng.uniform(0.04, 0.12)
        ends = [(x + far * math.cos(a), y + far * math.sin(a)) for a in (angle - spread, angle + spread)]
        canvas.polygon([(x, y), *ends], fill=(255, 255, 255, rng.randint(9, 22)))


def _mountains(canvas: ImageDraw.ImageDraw, rng: Random, palette: Palette, size: Size) -> None:
    """Three ridges of crystal peaks, paler with distance, each peak with a lit and a shadowed side."""
    width, height = size
    for depth in range(3):
        base = height * (0.80 + 0.09 * depth)
        tall = height * (0.17 - 0.025 * depth)
        mist = 0.5 - 0.22 * depth
        peaks = [-0.1]
        while peaks[-1] < 1.1:
            peaks.append(peaks[-1] + rng.uniform(0.07, 0.16) * min(size) / width)
        tops = [(x * width, base - tall * rng.uniform(0.25, 1.0)) for x in peaks]
        for (left_x, left_y), (right_x, right_y) in pairwise(tops):
            valley = ((left_x + right_x) / 2 + rng.uniform(-0.2, 0.2) * (right_x - left_x), base - tall * 0.12)
            feet = (left_x, height), (valley[0], height), (right_x, height)
            for corners, light in (
                (((left_x, left_y), valley, feet[1]), 0.34),
                (((left_x, left_y), feet[1], feet[0]), 0.24),
                (((right_x, right_y), valley, feet[1]), 0.62),
                (((right_x, right_y), feet[1], feet[2]), 0.5),
            ):
                stone = _along(palette.stone, light - 0.1 * depth + rng.uniform(-0.08, 0.08))
                canvas.polygon(corners, fill=_mix(stone, palette.sky[-1 - (depth == 2)], mist + 0.1))


def _stones(canvas: ImageDraw.ImageDraw, rng: Random, palette: Palette, centre: tuple[float, float], span: int) -> None:
    """The great stone, and a few small ones floating around it."""
    for k in range(rng.randint(4, 7)):
        angle = math.pi * (0.95 + 1.1 * k / 6) + rng.uniform(-0.2, 0.2)
        away = span * rng.uniform(0.38, 0.5)
        place = centre[0] + away * math.cos(angle), centre[1] + away * math.sin(angle) * 0.85
        _stone(canvas, rng, rng.choice((diamond, cluster))(rng), palette, place, span * rng.uniform(0.025, 0.055))
    _stone(canvas, rng, rng.choice(CUTS)(rng), palette, centre, span * rng.uniform(0.27, 0.31))


def _stone(
    canvas: ImageDraw.ImageDraw,
    rng: Random,
    facets: list[Facet],
    palette: Palette,
    centre: tuple[float, float],
    radius: float,
) -> None:
    """One stone, turned a little, its edges catching the light."""
    turn = rng.uniform(-0.22, 0.22)
    right, down = math.cos(turn) * radius * _FINE, math.sin(turn) * radius * _FINE
    x, y = centre[0] * _FINE, centre[1] * _FINE
    edge = max(1, round(radius * _FINE / 260))
    for facet in facets:
        corners = [(x + a * right - b * down, y + a * down + b * right) for a, b in facet.corners]
        colour = _along(palette.stone, facet.light)
        canvas.polygon(corners, fill=colour)
        canvas.line([*corners, corners[0]], fill=_mix(colour, (255, 255, 255), 0.28), width=edge)


def _sparkle(image: Image.Image, rng: Random, centre: tuple[float, float], span: int) -> None:
    """Glints on the stone: a soft light and a four-pointed star."""
    canvas = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.randint(3, 5)):
        angle, away = rng.uniform(0, math.tau), span * rng.uniform(0.08, 0.27)
        x, y = centre[0] + away * math.cos(angle), centre[1] + away * math.sin(angle)
        long = span * rng.uniform(0.02, 0.055)
        _glow(image, (x, y), long * 0.8, (255, 255, 255), 0.9)
        thin = long * 0.06
        canvas.polygon([(x - long, y), (x, y - thin), (x + long, y), (x, y + thin)], fill=(255, 255, 255, 230))
        canvas.polygon([(x, y - long), (x + thin, y), (x, y + long), (x - thin, y)], fill=(255, 255, 255, 230))

"""The colours of the pictures: a sky, a light in it, and the stone."""

from dataclasses import dataclass

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """Colours that go together.

    `sky` runs from the top of the picture to the horizon; `glow` is the light behind the stone;
    `stone` runs from a facet in shadow to one that faces the light.
    """

    sky: tuple[Colour, ...]
    glow: Colour
    stone: tuple[Colour, ...]


def _colours(*codes: str) -> tuple[Colour, ...]:
    return tuple((int(code[0:2], 16), int(code[2:4], 16), int(code[4:6], 16)) for code in codes)


def _palette(sky: str, glow: str, stone: str) -> Palette:
    return Palette(_colours(*sky.split()), _colours(glow)[0], _colours(*stone.split()))


PALETTES = (
    _palette("0b1540 2b3f8f 8f7bd0 ffc6d3", "ffe3ef", "0a1f66 1b4fc4 3f8df2 8fd0ff f3fbff"),  # sapphire, first light
    _palette("04231f 0d5a50 4fa98b f6e7b0", "fff6cf", "03382c 07805a 1fbf83 8ff0bd f4fff8"),  # emerald, morning
    _palette("1b0b3d 53268c b45fc0 ffb98f", "ffd9c2", "2c0a5c 6a27b8 a45cf0 dcb0ff fdf6ff"),  # amethyst, dusk
    _palette("2a0a1e 7a1846 d9536b ffc58a", "ffe0b8", "4d0217 a80f36 ec3a5a ff98a4 fff2f0"),  # ruby, sunset
    _palette("12365e 2f86b5 8fd6df fdf3d8", "ffffff", "0b4a66 1290ae 3fcfd8 a4f3ee f6ffff"),  # aquamarine, noon
    _palette("33204f 8a4f7d e89a6f ffe3a0", "fff3c4", "6b2f04 c9720b f7ad2a ffdd80 fffbe8"),  # citrine, golden hour
    _palette("0a0f24 1d2a57 4c5fa3 b9b8e8", "e8ecff", "2a3358 6677a8 a6b8dc d9e6f7 ffffff"),  # moonstone, night
    _palette("0d2b33 1f7d78 9bd18f fbf2a5", "fffbd0", "2b4a06 6b9a12 a9d436 dff58a fdffe9"),  # peridot, spring
    _palette("1e1147 5b3fa8 e07fb8 ffd7c9", "fff0f6", "5c0f4a b02a86 f062b0 ffabd6 fff4fb"),  # tourmaline, rose dawn
    _palette("081c33 14508a 3fb6b2 f7c9e2", "fdf0ff", "2b2a7a 3f7fd6 5fd9c9 f0b3e6 ffffff"),  # opal, aurora
)

"""The ten locations: a bank of backgrounds each, drawn once a process."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw

from lewis_core.pocket.surfaces import scale_rgb
from lewis_core.pocket.world import LOCATIONS, RGB

BACKDROP = 288
"""Side of a background in pixels; a photo shows a part of it."""
BANK_SIZE = 24


class Brush:
    """A background in the making: its canvas, its randomness and the height of its horizon."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Start an empty canvas."""
        self.image = Image.new("RGB", (BACKDROP, BACKDROP))
        self.draw = ImageDraw.Draw(self.image)
        self.rng = rng
        self.horizon = int(BACKDROP * rng.uniform(0.36, 0.5))

    def between(self, low: float, high: float) -> float:
        """Draw a number."""
        return float(self.rng.uniform(low, high))

    def jitter(self, rgb: RGB, spread: float = 10) -> RGB:
        """Vary a color."""
        red, green, blue = (int(np.clip(c + self.rng.normal(0, spread), 0, 255)) for c in rgb)
        return red, green, blue

    def wall(self, rgb: RGB, spread: float = 10) -> None:
        """Fill everything above the horizon."""
        self.draw.rectangle([0, 0, BACKDROP, self.horizon], fill=self.jitter(rgb, spread))

    def floor(self, rgb: RGB, spread: float) -> RGB:
        """Fill everything below the horizon, and return the color used."""
        fill = self.jitter(rgb, spread)
        self.draw.rectangle([0, self.horizon, BACKDROP, BACKDROP], fill=fill)
        return fill

    def floor_point(self, above: float = 0) -> tuple[float, float]:
        """Draw a point below the horizon."""
        return self.between(0, BACKDROP), self.between(self.horizon - above, BACKDROP)


def _table(brush: Brush) -> None:
    brush.wall((222, 208, 186))
    top = brush.floor((176, 120, 70), 8)
    for board in range(7):
        y = brush.horizon + (BACKDROP - brush.horizon) * board / 7
        brush.draw.line([0, y, BACKDROP, y], fill=scale_rgb(top, 0.72), width=3)
    for _ in range(40):
        x, y = brush.floor_point()
        shade = scale_rgb(top, brush.between(0.82, 1.12))
        brush.draw.line([x, y, x + brush.between(20, 60), y], fill=shade, width=1)


def _grass(brush: Brush) -> None:
    brush.wall((150, 200, 240))
    green = brush.floor((70, 150, 50), 8)
    for _ in range(420):
        x, y = brush.floor_point(above=4)
        tip = x + brush.between(-5, 5), y - brush.between(6, 15)
        brush.draw.line([x, y, *tip], fill=scale_rgb(green, brush.between(0.65, 1.35)), width=2)


def _beach(brush: Brush) -> None:
    horizon = brush.horizon
    brush.draw.rectangle([0, 0, BACKDROP, horizon * 0.55], fill=brush.jitter((165, 215, 245)))
    sea = brush.jitter((30, 130, 170))
    brush.draw.rectangle([0, horizon * 0.55, BACKDROP, horizon], fill=sea)
    for _ in range(12):
        x, y = brush.between(0, BACKDROP), brush.between(horizon * 0.6, horizon)
        brush.draw.line([x, y, x + brush.between(15, 50), y], fill=(225, 240, 245), width=2)
    sand = brush.floor((232, 208, 152), 7)
    for _ in range(260):
        x, y = brush.floor_point()
        brush.draw.ellipse([x, y, x + 2, y + 2], fill=scale_rgb(sand, brush.between(0.75, 1.08)))


def _snow(brush: Brush) -> None:
    horizon = brush.horizon
    brush.wall((170, 185, 205), 8)
    for _ in range(5):
        x = brush.between(0, BACKDROP)
        tree = [(x - 22, horizon), (x, horizon - brush.between(50, 90)), (x + 22, horizon)]
        brush.draw.polygon(tree, fill=brush.jitter((60, 90, 80), 8))
    brush.floor((232, 238, 246), 4)
    for _ in range(18):
        x, y = brush.between(-40, BACKDROP), brush.between(horizon, BACKDROP)
        drift = [x, y, x + brush.between(40, 110), y + brush.between(6, 14)]
        brush.draw.ellipse(drift, fill=(214, 224, 238))
    for _ in range(90):
        x, y = brush.between(0, BACKDROP), brush.between(0, BACKDROP)
        brush.draw.ellipse([x, y, x + 4, y + 4], fill=(255, 255, 255))


def _tiles(brush: Brush) -> None:
    light, dark = brush.jitter((205, 205, 200), 6), brush.jitter((120, 130, 140), 6)
    brush.draw.rectangle([0, 0, BACKDROP, BACKDROP], fill=light)
    depth, rows = BACKDROP - brush.horizon, 7

    def column_x(column: int, y: float) -> float:
        return BACKDROP / 2 + column * (18 + 26 * (y - brush.horizon) / depth)

    for row in range(rows):
        top, bottom = (brush.horizon + depth * (r / rows) ** 1.3 for r in (row, row + 1))
        for column in range(-8, 9):
            if (column + row) % 2 == 0:
                corners = [(column, top), (column + 1, top), (column + 1, bottom), (column, bottom)]
                brush.draw.polygon([(column_x(c, y), y) for c, y in corners], fill=dark)
    brush.wall((176, 198, 196), 8)


def _carpet(brush: Brush) -> None:
    brush.wall((214, 205, 214), 8)
    brush.floor((128, 38, 58), 8)
    gold, navy = (212, 172, 90), (50, 50, 96)
    for inset, rgb in ((14, gold), (24, navy), (34, gold)):
        frame = [inset, brush.horizon + inset * 0.7, BACKDROP - inset, BACKDROP - inset * 0.7]
        brush.draw.rectangle(frame, outline=rgb, width=4)
    for _ in range(30):
        x = brush.between(45, BACKDROP - 45)
        y = brush.between(brush.horizon + 30, BACKDROP - 30)
        brush.draw.polygon([(x - 7, y), (x, y - 5), (x + 7, y), (x, y + 5)], fill=gold)


def _brick_wall(brush: Brush) -> None:
    brick = brush.jitter((168, 84, 64), 8)
    brush.draw.rectangle([0, 0, BACKDROP, BACKDROP], fill=(196, 186, 174))
    height, width, ground = 20, 44, BACKDROP * 0.78
    for row in range(int(ground / height) + 1):
        for column in range(-1, BACKDROP // width + 2):
            x, y = column * width + (row % 2) * width / 2, row * height
            shade = scale_rgb(brick, brush.between(0.82, 1.15))
            brush.draw.rectangle([x, y, x + width - 4, y + height - 4], fill=shade)
    brush.draw.rectangle([0, ground, BACKDROP, BACKDROP], fill=brush.jitter((150, 150, 150), 6))


def _bookshelf(brush: Brush) -> None:
    wood = brush.jitter((110, 74, 46), 6)
    brush.draw.rectangle([0, 0, BACKDROP, BACKDROP], fill=scale_rgb(wood, 0.55))
    for shelf in range(3):
        bottom, x = (shelf + 1) * BACKDROP * 0.3, 2.0
        while x < BACKDROP:
            width, height = brush.between(8, 20), brush.between(48, 74)
            red, green, blue = (int(channel) for channel in brush.rng.integers(40, 220, 3))
            brush.draw.rectangle([x, bottom - height, x + width, bottom], fill=(red, green, blue))
            x += width + 2
        brush.draw.rectangle([0, bottom, BACKDROP, bottom + 9], fill=wood)
    brush.draw.rectangle([0, BACKDROP * 0.8, BACKDROP, BACKDROP], fill=wood)


def _window(brush: Brush) -> None:
    brush.draw.rectangle([0, 0, BACKDROP, BACKDROP], fill=brush.jitter((235, 226, 206), 6))
    left, right, sill = BACKDROP * 0.1, BACKDROP * 0.9, BACKDROP * 0.68
    brush.draw.rectangle([left, -10, right, sill], fill=brush.jitter((140, 200, 245), 8))
    for _ in range(3):
        x, y = brush.between(left, right - 60), brush.between(0, sill - 60)
        brush.draw.ellipse([x, y, x + 60, y + 24], fill=(245, 248, 252))
    middle = BACKDROP / 2
    for bar in (
        [left, -10, left + 9, sill],
        [right - 9, -10, right, sill],
        [middle - 5, -10, middle + 5, sill],
        [left, sill * 0.5, right, sill * 0.5 + 8],
    ):
        brush.draw.rectangle(bar, fill=(250, 250, 250))
    brush.draw.rectangle([left - 20, sill, right + 20, sill + 40], fill=(246, 244, 238))
    edge = [left - 20, sill + 40, right + 20, sill + 40]
    brush.draw.line(edge, fill=(170, 165, 150), width=4)


def _road(brush: Brush) -> None:
    horizon = brush.horizon
    brush.wall((176, 196, 176), 8)
    for _ in range(4):
        x, width = brush.between(0, BACKDROP), brush.between(30, 60)
        house = [x, horizon - brush.between(40, 90), x + width, horizon]
        brush.draw.rectangle(house, fill=brush.jitter((150, 140, 140), 14))
    brush.floor((82, 82, 88), 5)
    for dash in range(5):
        y, half = horizon + (BACKDROP - horizon) * (dash / 5), 5 + 9 * dash / 5
        top = [(BACKDROP * 0.22 - half, y), (BACKDROP * 0.22 + half, y)]
        below = half * 1.2
        bottom = [(BACKDROP * 0.2 + below, y + 20), (BACKDROP * 0.2 - below, y + 20)]
        brush.draw.polygon(top + bottom, fill=(244, 240, 220))
    line = [BACKDROP * 0.72, horizon, BACKDROP * 0.9, BACKDROP]
    brush.draw.line(line, fill=(240, 196, 50), width=7)


_PAINTERS: Mapping[str, Callable[[Brush], None]] = {
    "table": _table,
    "grass": _grass,
    "beach": _beach,
    "snow": _snow,
    "tiles": _tiles,
    "carpet": _carpet,
    "brick wall": _brick_wall,
    "bookshelf": _bookshelf,
    "window": _window,
    "road": _road,
}


@functools.cache
def background_bank(location: str) -> tuple[Image.Image, ...]:
    """Draw the backgrounds of a location; the same ones in every process."""
    rng = np.random.default_rng(100 + LOCATIONS.index(location))
    bank = []
    for _ in range(BANK_SIZE):
        brush = Brush(rng)
        _PAINTERS[location](brush)
        bank.append(brush.image)
    return tuple(bank)

"""The ten categories, drawn upright on a transparent canvas.

A thing has a body (which carries color, pattern, material and logo), something behind it and
something in front of it (its coloured part, and what shows its state). Coordinates are in units of
about [-100, 100] squared around the canvas' centre, and the thing's shape scales them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lewis_core.pocket.surfaces import CANVAS, draw_logo, draw_pattern, material_shadings, scale_rgb
from lewis_core.pocket.world import RGB, RGB_BY_COLOR, Identity, Scene

UNIT = 0.78
ASPECT_BY_SHAPE = {"slim": (0.70, 1.10), "regular": (1.0, 1.0), "wide": (1.28, 0.74)}
INK: RGB = (30, 30, 30)
HOLLOW: RGB = (25, 22, 22)
Fill = int | RGB | tuple[int, int, int, int]
Points = Sequence[tuple[float, float]]


class Pen:
    """Draws in a thing's units."""

    def __init__(self, image: Image.Image, shape: str) -> None:
        """Prepare to draw a thing of the given shape on an image."""
        across, down = ASPECT_BY_SHAPE[shape]
        self.draw = ImageDraw.Draw(image)
        self.across, self.down = across * UNIT, down * UNIT

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Convert units to pixels."""
        return CANVAS / 2 + x * self.across, CANVAS / 2 + y * self.down

    def polygon(self, points: Points, fill: Fill) -> None:
        """Fill a polygon."""
        self.draw.polygon([self.point(*point) for point in points], fill=fill)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: Fill, radius: float = 0) -> None:
        """Fill a rectangle, with round corners on demand."""
        box = [*self.point(left, top), *self.point(right, bottom)]
        if radius:
            self.draw.rounded_rectangle(box, radius=radius * UNIT, fill=fill)
        else:
            self.draw.rectangle(box, fill=fill)

    def ellipse(self, left: float, top: float, right: float, bottom: float, fill: Fill) -> None:
        """Fill an ellipse."""
        self.draw.ellipse([*self.point(left, top), *self.point(right, bottom)], fill=fill)

    def loop(self, left: float, top: float, right: float, bottom: float, fill: Fill, width: float) -> None:
        """Draw an ellipse's outline."""
        box = [*self.point(left, top), *self.point(right, bottom)]
        self.draw.ellipse(box, outline=fill, width=int(width * UNIT))

    def dome(self, left: float, top: float, right: float, bottom: float, fill: Fill) -> None:
        """Fill the upper half of an ellipse."""
        box = [*self.point(left, top), *self.point(right, bottom)]
        self.draw.pieslice(box, 180, 360, fill=fill)

    def line(self, points: Points, fill: Fill, width: float) -> None:
        """Draw a line through points."""
        pixels = [self.point(*point) for point in points]
        self.draw.line(pixels, fill=fill, width=max(1, int(width * UNIT)), joint="curve")


@dataclass(frozen=True)
class Look:
    """What a drawing step may need besides the pen."""

    body: RGB
    part: RGB
    state: str
    rng: np.random.Generator


def _body_mug(pen: Pen) -> None:
    pen.rectangle(-58, -58, 48, 62, 255, radius=10)


def _body_bag(pen: Pen) -> None:
    pen.polygon([(-58, -22), (58, -22), (76, 78), (-76, 78)], 255)


def _body_bottle(pen: Pen) -> None:
    pen.rectangle(-40, -28, 40, 92, 255, radius=9)
    pen.polygon([(-40, -18), (-15, -52), (-15, -72), (15, -72), (15, -52), (40, -18)], 255)


def _body_box(pen: Pen) -> None:
    pen.rectangle(-72, -26, 72, 74, 255)


def _body_hat(pen: Pen) -> None:
    pen.dome(-64, -72, 64, 74, 255)


def _body_shoe(pen: Pen) -> None:
    outline = [(-84, -48), (-34, -50), (-14, -16), (44, -2), (80, 22), (88, 48), (-84, 48)]
    pen.polygon(outline, 255)


def _body_umbrella(pen: Pen) -> None:
    pen.dome(-96, -88, 96, 88, 255)


def _body_lamp(pen: Pen) -> None:
    pen.polygon([(-36, -88), (36, -88), (76, 6), (-76, 6)], 255)


def _body_bear(pen: Pen) -> None:
    for side in (-1, 1):
        pen.ellipse(side * 36 - 20, -98, side * 36 + 20, -58, 255)
        pen.ellipse(side * 46 - 20, 62, side * 46 + 22, 98, 255)
    pen.ellipse(-50, -90, 50, -2, 255)
    pen.ellipse(-56, -14, 56, 94, 255)


def _body_vase(pen: Pen) -> None:
    half = [(24, -62), (20, -44), (50, -18), (66, 16), (58, 52), (40, 84)]
    pen.polygon([(-x, y) for x, y in half] + half[::-1], 255)


def _behind_mug(pen: Pen, look: Look) -> None:
    pen.loop(18, -36, 86, 42, look.part, 17)
    if look.state == "steaming":
        for x in (-34, -6, 22):
            wave = [(x + 6 * math.sin(i * 1.1), -122 + 50 * i / 12) for i in range(13)]
            pen.line(wave, (250, 250, 250), 8)


def _behind_bag(pen: Pen, look: Look) -> None:
    pen.loop(-44, -90, 44, 40, look.part, 14)


def _behind_box(pen: Pen, look: Look) -> None:
    if look.state == "open":
        pen.polygon([(-78, -30), (-70, -52), (66, -118), (76, -98)], look.part)


def _behind_lamp(pen: Pen, look: Look) -> None:
    pen.rectangle(-7, 0, 7, 76, look.part)
    pen.ellipse(-50, 62, 50, 92, look.part)
    if look.state == "switched on":
        pen.polygon([(-70, 6), (70, 6), (104, 66), (-104, 66)], (255, 240, 150, 190))


def _behind_umbrella(pen: Pen, look: Look) -> None:
    pen.line([(0, -10), (0, 78), (6, 92), (20, 94), (30, 84)], look.part, 12)
    if look.state == "dripping":
        for x in (-80, -52, -24, 26, 54, 82):
            y = float(look.rng.uniform(12, 40))
            pen.ellipse(x - 6, y, x + 6, y + 20, (70, 160, 245))


def _behind_vase(pen: Pen, look: Look) -> None:
    if look.state == "full of flowers":
        for x, blossom in ((-34, (250, 90, 120)), (0, (255, 205, 60)), (34, (170, 110, 230))):
            pen.line([(x * 0.3, -60), (x, -104)], (40, 140, 60), 6)
            pen.ellipse(x - 17, -126, x + 17, -94, blossom)


def _front_mug(pen: Pen, look: Look) -> None:
    pen.ellipse(-58, -70, 48, -44, scale_rgb(look.body, 0.8))
    inside = (60, 40, 28) if look.state == "steaming" else (215, 210, 200)
    pen.ellipse(-50, -66, 40, -48, inside)


def _front_bag(pen: Pen, look: Look) -> None:
    if look.state == "open":
        pen.ellipse(-58, -40, 58, -4, scale_rgb(look.body, 0.45))
        pen.ellipse(-48, -34, 48, -12, HOLLOW)
    else:
        pen.polygon([(-60, -24), (60, -24), (34, 10), (-34, 10)], scale_rgb(look.body, 0.75))
        pen.ellipse(-7, -4, 7, 12, (235, 205, 120))


def _front_bottle(pen: Pen, look: Look) -> None:
    if look.state == "open":
        pen.ellipse(-15, -78, 15, -66, HOLLOW)
        pen.rectangle(52, 66, 92, 92, look.part, radius=4)
    else:
        pen.rectangle(-20, -98, 20, -70, look.part, radius=4)


def _front_box(pen: Pen, look: Look) -> None:
    if look.state == "open":
        pen.polygon([(-72, -26), (72, -26), (58, -44), (-58, -44)], INK)
    else:
        pen.rectangle(-80, -52, 80, -26, look.part, radius=3)


def _front_hat(pen: Pen, look: Look) -> None:
    pen.ellipse(-100, -14, 100, 28, look.part)
    if look.state == "dusty":
        for _ in range(26):
            angle, reach = look.rng.uniform(0, 2 * math.pi), look.rng.uniform(0, 1) ** 0.5
            x, y = 58 * reach * math.cos(angle), -20 + 38 * reach * math.sin(angle)
            r = look.rng.uniform(3, 6)
            pen.ellipse(x - r, y - r, x + r, y + r, (200, 185, 155))


def _front_shoe(pen: Pen, look: Look) -> None:
    laces = (250, 250, 250)
    pen.rectangle(-90, 46, 94, 70, look.part, radius=8)
    if look.state == "tied":
        for i in range(3):
            pen.line([(-26 + 20 * i, -30 + 11 * i), (-6 + 20 * i, -34 + 14 * i)], laces, 6)
    else:
        pen.line([(-10, -28), (-34, -66), (-60, -78)], laces, 6)
        pen.line([(10, -18), (44, -52), (74, -50)], laces, 6)


def _front_umbrella(pen: Pen, look: Look) -> None:
    del look
    for i in range(4):
        x = -96 + 48 * i
        pen.ellipse(x, -10, x + 48, 12, (0, 0, 0, 0))


def _front_lamp(pen: Pen, look: Look) -> None:
    if look.state == "switched on":
        pen.ellipse(-72, -4, 72, 16, (255, 246, 190))


def _front_bear(pen: Pen, look: Look) -> None:
    pen.ellipse(-20, -46, 20, -14, (235, 215, 190))
    pen.ellipse(-7, -44, 7, -33, INK)
    for side in (-20, 20):
        if look.state == "awake":
            pen.ellipse(side - 7, -66, side + 7, -50, (255, 255, 255))
            pen.ellipse(side - 5, -63, side + 5, -51, INK)
        else:
            pen.line([(side - 10, -58), (side, -53), (side + 10, -58)], INK, 5)
    pen.rectangle(-50, -14, 50, 6, look.part, radius=8)
    pen.polygon([(18, 0), (40, 0), (44, 44), (24, 44)], look.part)


def _front_vase(pen: Pen, look: Look) -> None:
    pen.rectangle(-34, -76, 34, -56, look.part, radius=5)


Step = Callable[[Pen, Look], None]


def _nothing(pen: Pen, look: Look) -> None:
    del pen, look


@dataclass(frozen=True)
class Drawing:
    """How a category is drawn, and where its logo sits: x, y and radius in units."""

    body: Callable[[Pen], None]
    logo: tuple[float, float, float]
    behind: Step = _nothing
    front: Step = _nothing


DRAWINGS: Mapping[str, Drawing] = {
    "mug": Drawing(_body_mug, (-5, 6, 34), _behind_mug, _front_mug),
    "bag": Drawing(_body_bag, (0, 42, 31), _behind_bag, _front_bag),
    "bottle": Drawing(_body_bottle, (0, 32, 29), _nothing, _front_bottle),
    "box": Drawing(_body_box, (0, 24, 35), _behind_box, _front_box),
    "hat": Drawing(_body_hat, (0, -28, 29), _nothing, _front_hat),
    "shoe": Drawing(_body_shoe, (-40, 8, 27), _nothing, _front_shoe),
    "umbrella": Drawing(_body_umbrella, (0, -38, 32), _behind_umbrella, _front_umbrella),
    "lamp": Drawing(_body_lamp, (0, -36, 29), _behind_lamp, _front_lamp),
    "bear": Drawing(_body_bear, (0, 46, 30), _nothing, _front_bear),
    "vase": Drawing(_body_vase, (0, 30, 34), _behind_vase, _front_vase),
}


def _paste_body(image: Image.Image, identity: Identity, rng: np.random.Generator) -> None:
    """Paint color and pattern, shade them by the material, and cut out the body with an edge."""
    rgb = RGB_BY_COLOR[identity.color]
    paint = Image.new("RGB", (CANVAS, CANVAS), rgb)
    draw_pattern(ImageDraw.Draw(paint), identity.pattern, RGB_BY_COLOR[identity.pattern_color], rng)
    variants = material_shadings()[identity.material]
    factor, addend = variants[int(rng.integers(len(variants)))]
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    DRAWINGS[identity.category].body(Pen(mask, identity.shape))
    box = mask.getbbox() or (0, 0, CANVAS, CANVAS)
    left, top, right, bottom = (int(side) for side in box)
    area = np.s_[top:bottom, left:right]
    shaded = np.asarray(paint)[area].astype(np.float32) * factor[area] + addend[area]
    body = Image.fromarray(np.clip(shaded, 0, 255).astype(np.uint8))
    outline = mask.crop((left, top, right, bottom))
    edged = Image.new("RGB", outline.size, scale_rgb(rgb, 0.42))
    edged.paste(body, (0, 0), outline.filter(ImageFilter.MinFilter(3)))
    image.paste(edged, (left, top), outline)


def _paste_logo(image: Image.Image, identity: Identity) -> None:
    x, y, radius = DRAWINGS[identity.category].logo
    across, down = ASPECT_BY_SHAPE[identity.shape]
    center = CANVAS / 2 + x * across * UNIT, CANVAS / 2 + y * down * UNIT
    size = radius * UNIT * (0.5 * (across + down)) ** 0.5
    rgb, back = RGB_BY_COLOR[identity.logo_color], RGB_BY_COLOR[identity.color]
    draw_logo(ImageDraw.Draw(image), identity.logo, center, size, rgb, back)


def draw_object(identity: Identity, scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw a thing upright at the centre of a transparent canvas (RGBA)."""
    drawing = DRAWINGS[identity.category]
    look = Look(RGB_BY_COLOR[identity.color], RGB_BY_COLOR[identity.part_color], scene.state, rng)
    image = Image.new("RGBA", (CANVAS, CANVAS), (0, 0, 0, 0))
    drawing.behind(Pen(image, identity.shape), look)
    _paste_body(image, identity, rng)
    if identity.logo != "none":
        _paste_logo(image, identity)
    drawing.front(Pen(image, identity.shape), look)
    return image

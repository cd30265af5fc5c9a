"""What covers a thing: the shading of its material, its pattern and its logo."""

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from lewis_core.pocket.world import MATERIALS, RGB

CANVAS = 224
"""Side of the working canvas in pixels; photos are reduced from it."""
NUM_VARIANTS = 6
Shading = tuple[NDArray[np.float32], NDArray[np.float32]]
Map = NDArray[np.float32]


def scale_rgb(rgb: RGB, factor: float) -> RGB:
    """Make a color darker or lighter."""
    red, green, blue = (int(max(0, min(255, channel * factor))) for channel in rgb)
    return red, green, blue


def _plastic(x: Map, y: Map, phase: float, rng: np.random.Generator) -> tuple[Map, Map]:
    """Soft side shading and one highlight."""
    del phase
    centered = (x - CANVAS / 2) / (CANVAS / 2)
    left, top = CANVAS / 2 + rng.uniform(-35, -15), CANVAS / 2 + rng.uniform(-35, -10)
    highlight = 70 * np.exp(-(((x - left) / 10) ** 2 + ((y - top) / 22) ** 2))
    return 1.04 - 0.22 * centered**2, highlight


def _metal(x: Map, y: Map, phase: float, rng: np.random.Generator) -> tuple[Map, Map]:
    """Strong bright and dark bands."""
    del y
    bands = np.sin((x - CANVAS / 2) / (CANVAS / 2) * rng.uniform(9, 11) + phase)
    return 0.86 + 0.26 * bands, 75 * np.clip(bands - 0.55, 0, 1) / 0.45


def _wood(x: Map, y: Map, phase: float, rng: np.random.Generator) -> tuple[Map, Map]:
    """Wavy dark grain."""
    wave = y + 5 * np.sin(x / rng.uniform(22, 30) + phase) + 2 * np.sin(x / 9 + 2 * phase)
    grain = np.sin(wave / rng.uniform(1.9, 2.3)) + 0.5 * np.sin(wave / 5.1 + phase)
    return 0.93 - 0.26 * (grain > 0.55) - 0.07 * np.sin(wave / 13), np.zeros_like(x)


def _wool(x: Map, y: Map, phase: float, rng: np.random.Generator) -> tuple[Map, Map]:
    """Small knitted stitches."""
    pitch = 7
    column = np.abs(((x + phase * 3) % pitch) - pitch / 2)
    stitch = ((y + column * 1.2) % pitch) / pitch
    return 0.72 + 0.42 * stitch + rng.normal(0, 0.05, x.shape), np.zeros_like(x)


_SHADERS = {"plastic": _plastic, "metal": _metal, "wood": _wood, "wool": _wool}


@functools.cache
def material_shadings() -> Mapping[str, list[Shading]]:
    """Compute a few variants of every material's shading, once a process.

    Returns:
        By material: pairs of a factor and an addend for colors, each ``(CANVAS, CANVAS, 1)``.
    """
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    shadings: dict[str, list[Shading]] = {}
    for material in MATERIALS:
        variants = []
        for _ in range(NUM_VARIANTS):
            factor, addend = _SHADERS[material](x, y, rng.uniform(0, 2 * math.pi), rng)
            variants.append((factor.astype(np.float32)[..., None], addend.astype(np.float32)[..., None]))
        shadings[material] = variants
    return shadings


def _stripes(draw: ImageDraw.ImageDraw, rgb: RGB, rng: np.random.Generator) -> None:
    pitch, offset = 27, rng.uniform(0, 27)
    for row in range(-1, 10):
        y = offset + row * pitch
        draw.rectangle([0, y, CANVAS, y + 12], fill=rgb)


def _dots(draw: ImageDraw.ImageDraw, rgb: RGB, rng: np.random.Generator) -> None:
    pitch, offset = 30, rng.uniform(0, 30)
    for row in range(-1, 10):
        for column in range(-1, 9):
            x = offset + column * pitch + (row % 2) * pitch / 2
            y = offset + row * pitch * 0.8
            draw.ellipse([x - 7, y - 7, x + 7, y + 7], fill=rgb)


def _checks(draw: ImageDraw.ImageDraw, rgb: RGB, rng: np.random.Generator) -> None:
    pitch, offset = 20, rng.uniform(0, 40)
    for row in range(-2, 13):
        for column in range(-2, 13):
            if (row + column) % 2 == 0:
                x, y = offset + column * pitch, offset + row * pitch
                draw.rectangle([x, y, x + pitch - 1, y + pitch - 1], fill=rgb)


def _zigzags(draw: ImageDraw.ImageDraw, rgb: RGB, rng: np.random.Generator) -> None:
    pitch, offset, amplitude = 32, rng.uniform(0, 32), 10
    for row in range(-1, 9):
        y = offset + row * pitch
        points = [(x, y + (amplitude if (x // 15) % 2 else -amplitude)) for x in range(-15, CANVAS + 30, 15)]
        draw.line(points, fill=rgb, width=10, joint="curve")


_PATTERNS = {"stripes": _stripes, "dots": _dots, "checks": _checks, "zigzags": _zigzags}


def draw_pattern(draw: ImageDraw.ImageDraw, pattern: str, rgb: RGB, rng: np.random.Generator) -> None:
    """Cover a canvas with a pattern; ``plain`` leaves it as it is."""
    if pattern != "plain":
        _PATTERNS[pattern](draw, rgb, rng)


def _box(x: float, y: float, radius: float) -> list[float]:
    return [x - radius, y - radius, x + radius, y + radius]


Symbol = Callable[[ImageDraw.ImageDraw, float, float, float, RGB, RGB], None]


def _star(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rgb: RGB, back: RGB) -> None:
    del back
    points = []
    for corner in range(10):
        angle = math.radians(-90 + corner * 36)
        reach = r if corner % 2 == 0 else r * 0.45
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    draw.polygon(points, fill=rgb)


def _heart(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rgb: RGB, back: RGB) -> None:
    del back
    lobe, top = r * 0.56, y - r * 0.8
    draw.ellipse([x - 2 * lobe + 1, top, x + 1, top + 2 * lobe], fill=rgb)
    draw.ellipse([x - 1, top, x + 2 * lobe - 1, top + 2 * lobe], fill=rgb)
    shoulder = y - r * 0.05
    draw.polygon([(x - 1.9 * lobe, shoulder), (x + 1.9 * lobe, shoulder), (x, y + r)], fill=rgb)


def _moon(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rgb: RGB, back: RGB) -> None:
    draw.ellipse(_box(x, y, r), fill=rgb)
    draw.ellipse([x - r * 0.35, y - r * 0.95, x + r * 1.25, y + r * 0.65], fill=back)


def _flower(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rgb: RGB, back: RGB) -> None:
    for petal in range(6):
        angle = math.radians(60 * petal)
        center = x + 0.62 * r * math.cos(angle), y + 0.62 * r * math.sin(angle)
        draw.ellipse(_box(*center, 0.40 * r), fill=rgb)
    draw.ellipse(_box(x, y, 0.3 * r), fill=back)


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rgb: RGB, back: RGB) -> None:
    del back
    half = r * 0.34
    draw.rectangle([x - half, y - r, x + half, y + r], fill=rgb)
    draw.rectangle([x - r, y - half, x + r, y + half], fill=rgb)


def _triangle(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rgb: RGB, back: RGB) -> None:
    del back
    bottom = y + r * 0.75
    draw.polygon([(x, y - r), (x + r * 0.95, bottom), (x - r * 0.95, bottom)], fill=rgb)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rgb: RGB, back: RGB) -> None:
    del back
    draw.ellipse(_box(x, y, r), outline=rgb, width=max(2, int(r * 0.42)))


def _bolt(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, rgb: RGB, back: RGB) -> None:
    del back
    corners = ((0.25, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.25), (0.05, -0.25))
    draw.polygon([(x + right * r, y + down * r) for right, down in corners], fill=rgb)


_SYMBOLS: Mapping[str, Symbol] = {
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "flower": _flower,
    "cross": _cross,
    "triangle": _triangle,
    "ring": _ring,
    "bolt": _bolt,
}


def draw_logo(
    draw: ImageDraw.ImageDraw,
    logo: str,
    center: tuple[float, float],
    radius: float,
    rgb: RGB,
    back: RGB,
) -> None:
    """Draw a symbol on a badge of the thing's own color, so that no pattern can hide it."""
    x, y = center
    draw.ellipse(_box(x, y, radius * 1.28), fill=back)
    _SYMBOLS[logo](draw, x, y, radius, rgb, back)

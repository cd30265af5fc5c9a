"""From facts to pixels: one photo of one thing, in about four milliseconds on one CPU core.

A thing (:mod:`.objects`) is posed on a background (:mod:`.backgrounds`) at a random place and
size, with a shadow and sometimes clutter; then light, color temperature and noise are varied.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lewis_core.pocket.backgrounds import BACKDROP, background_bank
from lewis_core.pocket.objects import draw_object
from lewis_core.pocket.surfaces import CANVAS
from lewis_core.pocket.world import Identity, Scene

CLUTTER_FRAC = 0.35


def render(identity: Identity, scene: Scene, size: int = 112) -> Image.Image:
    """Render one photo.

    Args:
        identity: The thing.
        scene: Its circumstances; ``scene.seed`` decides all that the facts leave open.
        size: Width and height in pixels.

    Returns:
        An RGB image; equal arguments give equal pixels.
    """
    rng = np.random.default_rng(scene.seed)
    image = _crop_background(scene.location, rng)
    _place_object(image, identity, scene, rng)
    if rng.random() < CLUTTER_FRAC:
        _add_clutter(image, rng)
    return _expose(_resize(image, size), rng)


def _crop_background(location: str, rng: np.random.Generator) -> Image.Image:
    bank = background_bank(location)
    backdrop = bank[int(rng.integers(len(bank)))]
    if rng.random() < 0.5:
        backdrop = backdrop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top = (int(offset) for offset in rng.integers(0, BACKDROP - CANVAS, 2))
    return backdrop.crop((left, top, left + CANVAS, top + CANVAS))


def _pose_degrees(pose: str, rng: np.random.Generator) -> float:
    if pose == "upright":
        return float(rng.uniform(-7, 7))
    low, high = (20, 42) if pose == "tilted" else (80, 100)
    return float(rng.choice([-1, 1]) * rng.uniform(low, high))


def _place_object(image: Image.Image, identity: Identity, scene: Scene, rng: np.random.Generator) -> None:
    """Rotate, scale, shear and shift the thing, and paste it and its shadow."""
    angle, scale = math.radians(_pose_degrees(scene.pose, rng)), float(rng.uniform(0.85, 1.2))
    x, y = CANVAS / 2 + rng.uniform(-20, 20), CANVAS * 0.56 + rng.uniform(-12, 14)
    shear = rng.uniform(-0.08, 0.08)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    below, right = -sin + shear * cos, cos + shear * sin
    half = CANVAS / 2
    # Rows of the map from photo coordinates to the thing's canvas.
    matrix = (cos, sin, half - cos * x - sin * y, below, right, half - below * x - right * y)
    thing = draw_object(identity, scene, rng).transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    reach = 46 if scene.pose == "lying on its side" else 66
    _cast_shadow(image, x, y + reach * scale, scale)
    image.paste(thing, (0, 0), thing)


def _cast_shadow(image: Image.Image, x: float, y: float, scale: float) -> None:
    small = Image.new("L", (CANVAS // 4, CANVAS // 4), 0)
    across, down = 62 * scale, 13 * scale
    box = [(x - across) / 4, (y - down) / 4, (x + across) / 4, (y + down) / 4]
    ImageDraw.Draw(small).ellipse(box, fill=110)
    soft = small.filter(ImageFilter.GaussianBlur(2))
    image.paste((20, 20, 25), (0, 0), soft.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR))


def _add_clutter(image: Image.Image, rng: np.random.Generator) -> None:
    """Cover a corner with something."""
    draw = ImageDraw.Draw(image)
    red, green, blue = (int(channel) for channel in rng.integers(30, 230, 3))
    x = rng.choice([rng.uniform(-5, 25), rng.uniform(CANVAS - 25, CANVAS + 5)])
    y, radius = rng.uniform(CANVAS * 0.6, CANVAS), rng.uniform(8, 20)
    box = [x - radius, y - radius, x + radius, y + radius]
    if rng.random() < 0.5:
        draw.ellipse(box, fill=(red, green, blue))
    else:
        draw.rectangle(box, fill=(red, green, blue))


def _resize(image: Image.Image, size: int) -> Image.Image:
    if size * 2 == CANVAS:
        return image.reduce(2)
    method = Image.Resampling.LANCZOS if size < CANVAS else Image.Resampling.BICUBIC
    return image.resize((size, size), method)


def _expose(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Vary brightness, color temperature and side light, and add noise."""
    pixels = np.asarray(image, dtype=np.float32)
    brightness, warmth = rng.uniform(0.72, 1.12), rng.uniform(-0.07, 0.07)
    gain = brightness * np.array([1 + warmth, 1.0, 1 - warmth], np.float32)
    size = image.size[0]
    ramp = 1 + rng.uniform(-0.12, 0.12) * np.linspace(-1, 1, size, dtype=np.float32)
    noise = rng.normal(0, rng.uniform(1, 5), (size, size, 1)).astype(np.float32)
    exposed = pixels * gain * ramp[None, :, None] + noise
    return Image.fromarray(np.clip(exposed, 0, 255).astype(np.uint8))

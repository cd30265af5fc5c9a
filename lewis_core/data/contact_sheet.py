"""A sheet of photos to look at, drawn row by row.

A module of its own that imports Pillow only, so that a process that opens photos can draw it too.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lewis_core.data.images import Photo, load_thumbnail

TILE, PER_ROW = 96, 10
"""Pixels of a photo, photos of a row."""
Row = tuple[str, Sequence[Photo]]
"""A line of text, and the photos below it."""
_LINE, _MARGIN = 18, 6
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_QUALITY = 85


def encode_contact_sheet(rows: Sequence[Row], data_root: Path, num_workers: int = 1) -> bytes:
    """Draw a sheet (:func:`draw_contact_sheet`) as a JPEG file.

    Raises:
        ImageError: If a photo is missing or was changed since it was catalogued.
    """
    file = io.BytesIO()
    draw_contact_sheet(rows, data_root, num_workers).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def draw_contact_sheet(rows: Sequence[Row], data_root: Path, num_workers: int = 1) -> Image.Image:
    """Draw rows of photos.

    Args:
        rows: What to draw, from top to bottom; at most :data:`PER_ROW` photos each.
        data_root: Folder of photos.
        num_workers: Threads that load photos.

    Returns:
        An RGB image.

    Raises:
        ImageError: If a photo is missing or was changed since it was catalogued.
    """
    font = _load_font()
    width = _MARGIN + PER_ROW * (TILE + _MARGIN)
    sheet = Image.new("RGB", (width, sum(_row_height(images) for _, images in rows) + _MARGIN), _PAPER)
    draw, top = ImageDraw.Draw(sheet), _MARGIN
    with ThreadPoolExecutor(num_workers) as pool:
        tiles = pool.map(
            lambda image: load_thumbnail(data_root, image, TILE), [i for _, images in rows for i in images]
        )
        for label, images in rows:
            draw.text((_MARGIN, top), label, _INK, font)
            for column in range(len(images)):
                tile = next(tiles)
                corner = (_MARGIN + column * (TILE + _MARGIN), top + _LINE)
                sheet.paste(tile, (corner[0] + (TILE - tile.width) // 2, corner[1] + (TILE - tile.height) // 2))
            top += _row_height(images)
    return sheet


def _load_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans of matplotlib, which has Latin, Greek and Cyrillic letters; Pillow's own font has ASCII only."""
    spec = find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(file, 12)
    return ImageFont.load_default(12)


def _row_height(images: Sequence[Photo]) -> int:
    return _LINE + (TILE + _MARGIN if images else 0)

"""A catalog at a glance: numbers per category, and a sheet of photos to look at."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

from lewis_core.data.images import load_thumbnail
from lewis_core.records import Catalog, Concept, ImageRecord, JsonObject

TILE, PER_ROW, MAX_ROWS = 96, 10, 30
"""Pixels of a photo, photos of a category, categories."""
T = TypeVar("T")
_LINE, _MARGIN = 18, 6
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def describe_catalog(catalog: Catalog) -> JsonObject:
    """Statistics: per category, images per concept, and sizes in pixels."""
    concepts = catalog.concepts
    photos = [image for concept in concepts for image in (*concept.train, *concept.test)]
    return {
        "categories": {
            name: _describe_category([concept for concept in concepts if concept.category == name])
            for name in catalog.categories
        },
        "train_images_per_concept": _spread(len(concept.train) for concept in concepts),
        "test_images_per_concept": _spread(len(concept.test) for concept in concepts),
        "different_pictures": len({image.sha256 for image in photos}),
        "width": _spread(image.width for image in photos),
        "height": _spread(image.height for image in photos),
        "portrait_frac": round(sum(image.height > image.width for image in photos) / len(photos), 4),
    }


def _describe_category(concepts: Sequence[Concept]) -> JsonObject:
    return {
        "concepts": len(concepts),
        "train_images": sum(len(concept.train) for concept in concepts),
        "test_images": sum(len(concept.test) for concept in concepts),
        "negative_images": sum(len(concept.negative) + len(concept.hard_negative) for concept in concepts),
        "words": sorted({concept.category_word for concept in concepts}),
    }


def _spread(values: Iterable[int]) -> JsonObject:
    """Smallest, middle and largest value."""
    found = sorted(values)
    return {"min": found[0], "median": median(found), "max": found[-1]}


def draw_contact_sheet(catalog: Catalog, data_root: Path, num_workers: int = 1) -> Image.Image:
    """Draw a row of photos for each category: a photo of each of up to ten concepts, or more of few concepts.

    Args:
        catalog: What to draw; the concepts shown are spread over the category's names.
        data_root: Folder of photos.
        num_workers: Threads that load photos.

    Returns:
        An RGB image; the last row holds negatives, if there are any.

    Raises:
        ImageError: If a photo is missing or was changed since it was catalogued.
    """
    rows = [_row(name, catalog) for name in catalog.categories[:MAX_ROWS]]
    negatives = _negatives(catalog)
    if negatives:
        rows.append((f"negatives: {len(negatives)}", _spaced(negatives, PER_ROW)))
    if len(catalog.categories) > MAX_ROWS:
        rows.append((f"… and {len(catalog.categories) - MAX_ROWS} more categories", []))
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


def _row_height(images: Sequence[ImageRecord]) -> int:
    return _LINE + (TILE + _MARGIN if images else 0)


def _row(category: str, catalog: Catalog) -> tuple[str, list[ImageRecord]]:
    """Label and photos of a category: the first photo of each concept, then the second, and so on."""
    concepts = [concept for concept in catalog.concepts if concept.category == category]
    photos = sum(len(concept.train) + len(concept.test) for concept in concepts)
    shown = _spaced(concepts, PER_ROW)
    per_concept = [[*concept.train, *concept.test] for concept in shown]
    turns = [images[turn] for turn in range(PER_ROW) for images in per_concept if turn < len(images)]
    concepts_word = "concept" if len(concepts) == 1 else "concepts"
    return f"{category}: {len(concepts)} {concepts_word}, {photos} photos", turns[:PER_ROW]


def _negatives(catalog: Catalog) -> list[ImageRecord]:
    own = [image for concept in catalog.concepts for image in (*concept.hard_negative, *concept.negative)]
    return [*own, *catalog.negatives]


def _spaced(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items at equal distances."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]

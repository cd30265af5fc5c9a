"""A catalog at a glance: numbers per category, and the photos to look at."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TypeVar

from lewis_core.data.contact_sheet import PER_ROW, Row
from lewis_core.data.images import Photo
from lewis_core.records import Catalog, Concept, ImageRecord, JsonObject

MAX_ROWS = 30
"""Categories that are shown."""
T = TypeVar("T")


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


def choose_photos(catalog: Catalog) -> list[Row]:
    """Choose the photos of a contact sheet: of each of up to ten concepts of a category one, or more of few concepts.

    Args:
        catalog: What to show; the concepts shown are spread over the category's names.

    Returns:
        A row for each category, up to :data:`MAX_ROWS`; the last one holds negatives, if there are any.
    """
    rows = [_row(name, catalog) for name in catalog.categories[:MAX_ROWS]]
    negatives = _negatives(catalog)
    if negatives:
        rows.append((f"negatives: {len(negatives)}", _photos(_spaced(negatives, PER_ROW))))
    if len(catalog.categories) > MAX_ROWS:
        rows.append((f"… and {len(catalog.categories) - MAX_ROWS} more categories", []))
    return rows


def _row(category: str, catalog: Catalog) -> Row:
    """Label and photos of a category: the first photo of each concept, then the second, and so on."""
    concepts = [concept for concept in catalog.concepts if concept.category == category]
    photos = sum(len(concept.train) + len(concept.test) for concept in concepts)
    shown = _spaced(concepts, PER_ROW)
    per_concept = [[*concept.train, *concept.test] for concept in shown]
    turns = [images[turn] for turn in range(PER_ROW) for images in per_concept if turn < len(images)]
    concepts_word = "concept" if len(concepts) == 1 else "concepts"
    return f"{category}: {len(concepts)} {concepts_word}, {photos} photos", _photos(turns[:PER_ROW])


def _photos(images: Iterable[ImageRecord]) -> list[Photo]:
    return [Photo(image.path, image.sha256, image.width, image.height) for image in images]


def _negatives(catalog: Catalog) -> list[ImageRecord]:
    own = [image for concept in catalog.concepts for image in (*concept.hard_negative, *concept.negative)]
    return [*own, *catalog.negatives]


def _spaced(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` items at equal distances."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]

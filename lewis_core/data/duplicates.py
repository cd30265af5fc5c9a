"""Pictures that are in several places where they should not be."""

from collections import defaultdict

from lewis_core.records import Catalog, Record


class Duplicate(Record):
    """A line of ``duplicates.jsonl``: one picture in several places where it should not be."""

    sha256: str
    paths: tuple[str, ...]
    """Sorted."""
    across_concepts: bool
    """It stands for different things, so no description can tell them apart."""
    across_splits: bool
    """A photo for testing is also one for training."""


def find_duplicates(catalog: Catalog) -> list[Duplicate]:
    """Find pictures that several concepts share, or that are both for training and for testing."""
    places: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for concept in catalog.concepts:
        for split, images in (("train", concept.train), ("test", concept.test)):
            for image in images:
                places[image.sha256].append((concept.id, split, image.path))
    duplicates = []
    for sha256, found in sorted(places.items()):
        concepts, splits, paths = (set(column) for column in zip(*found, strict=True))
        if len(concepts) > 1 or len(splits) > 1:
            duplicates.append(
                Duplicate(
                    sha256=sha256,
                    paths=tuple(sorted(paths)),
                    across_concepts=len(concepts) > 1,
                    across_splits=len(splits) > 1,
                )
            )
    return duplicates

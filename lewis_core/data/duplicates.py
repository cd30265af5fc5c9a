"""Pictures that are in several places where they should not be: the same bytes, or the same look.

A photo that stands for two things cannot be described so that they are told apart; one that is both for training and
for testing, or among the negatives, makes an evaluation say what was learnt by heart.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from lewis_core.data.inspection import Inspected
from lewis_core.data.layout import SetAside
from lewis_core.data.looks import Look, find_similar
from lewis_core.records import Catalog, Record


class Duplicate(Record):
    """A line of ``duplicates.jsonl`` or ``near_duplicates.jsonl``: pictures where they should not be."""

    pictures: tuple[str, ...]
    """sha256 of each, sorted: one, or several that look alike."""
    paths: tuple[str, ...]
    """Sorted."""
    across_concepts: bool
    """It stands for different things, so no description can tell them apart."""
    across_splits: bool
    """A photo for testing is also one for training."""
    among_negatives: bool
    """A photo of a concept is also an image that should not show it."""


class Place(NamedTuple):
    """Where a picture lies."""

    concept: str
    """Concept id; empty for images of no concept."""
    split: str
    path: str


def find_duplicates(places: Mapping[str, Sequence[Place]]) -> list[Duplicate]:
    """Find pictures that several concepts share, or that are in several of a catalog's parts.

    Args:
        places: Where each picture lies (:func:`find_places`).
    """
    return _judge(sorted((sha256,) for sha256, found in places.items() if len(found) > 1), places)


def find_near_duplicates(places: Mapping[str, Sequence[Place]], looks: Mapping[str, Look]) -> list[Duplicate]:
    """Find different pictures that look alike and lie where the same one should not.

    Pictures that look alike are put together, also those that only look like a common third.

    Args:
        places: Where each picture lies (:func:`find_places`).
        looks: What each picture looks like, by sha256.

    Returns:
        Groups of at least two pictures, sorted.
    """
    by_look: dict[Look, list[str]] = defaultdict(list)
    for sha256 in places:
        by_look[looks[sha256]].append(sha256)
    if not by_look:
        return []
    pictures = list(by_look.values())
    pairs = find_similar(list(by_look)).tolist()
    found = _join(pairs, alone=[index for index, same in enumerate(pictures) if len(same) > 1])
    groups = [tuple(sorted(sha256 for index in group for sha256 in pictures[index])) for group in found]
    return _judge(sorted(groups), places)


def find_places(catalog: Catalog) -> dict[str, list[Place]]:
    """Where each picture lies, by sha256."""
    places: dict[str, list[Place]] = defaultdict(list)
    for concept in catalog.concepts:
        parts = (concept.train, concept.test, (*concept.negative, *concept.hard_negative))
        for split, images in zip(("train", "test", "negative"), parts, strict=True):
            for image in images:
                places[image.sha256].append(Place(concept.id, split, image.path))
    for image in catalog.negatives:
        places[image.sha256].append(Place("", "negative", image.path))
    return places


def _judge(groups: Iterable[tuple[str, ...]], places: Mapping[str, Sequence[Place]]) -> list[Duplicate]:
    """Keep the groups that lie where they should not."""
    duplicates = []
    for pictures in groups:
        found = [place for sha256 in pictures for place in places[sha256]]
        shown = [place for place in found if place.split != "negative"]
        own = {place.concept for place in shown}
        duplicate = Duplicate(
            pictures=pictures,
            paths=tuple(sorted(place.path for place in found)),
            across_concepts=len(own) > 1,
            across_splits=len({place.split for place in shown}) > 1,
            among_negatives=any(place.split == "negative" and place.concept in {"", *own} for place in found)
            and bool(shown),
        )
        if duplicate.across_concepts or duplicate.across_splits or duplicate.among_negatives:
            duplicates.append(duplicate)
    return duplicates


def _join(pairs: Sequence[tuple[int, int]], alone: Iterable[int]) -> list[list[int]]:
    """Groups that pairs connect; indices that may be alone are groups too if they are."""
    parent = {index: index for index in (*alone, *(index for pair in pairs for index in pair))}

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for left, right in pairs:
        parent[root(right)] = root(left)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in parent:
        groups[root(index)].append(index)
    return list(groups.values())


def set_aside_shared(inspected: Inspected) -> Inspected:
    """Take pictures that several concepts claim away from all of them."""
    claims: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for file, image in inspected.images:
        if "negative" not in file.split:
            claims[image.sha256].setdefault((file.category, file.concept), file.path)
    kept, aside = [], list(inspected.unusable)
    for file, image in inspected.images:
        others = [path for owner, path in claims[image.sha256].items() if owner != (file.category, file.concept)]
        if others and "negative" not in file.split:
            aside.append(SetAside(path=file.path, reason=f"the same picture as {others[0]}, of another concept"))
        else:
            kept.append((file, image))
    return replace(inspected, images=tuple(kept), unusable=tuple(sorted(aside, key=lambda entry: entry.path)))

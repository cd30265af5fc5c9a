"""The different pictures of some concepts with their embeddings, as arrays that mining works on. Numpy only."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lewis_core.errors import DataError
from lewis_core.records import Catalog, Concept, ImageRecord
from lewis_core.retrieval.vectors import Matrix

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Pictures:
    """The different pictures of concepts; images, labels and vectors are aligned."""

    concepts: tuple[Concept, ...]
    images: tuple[ImageRecord, ...]
    """``N`` images, grouped by concept, each picture once per concept."""
    labels: Indices
    """Position of each image's concept, ascending, shape ``(N,)``."""
    vectors: Matrix
    """Shape ``(N, D)``, L2-normalised."""

    @cached_property
    def starts(self) -> Indices:
        """First image of each concept, and ``N``; shape ``(C + 1,)``."""
        return np.searchsorted(self.labels, np.arange(len(self.concepts) + 1))

    @cached_property
    def shared(self) -> tuple[tuple[int, int], ...]:
        """Pairs of a concept and an image of another concept whose picture it has as well, sorted."""
        owners: dict[str, list[int]] = defaultdict(list)
        for index, image in enumerate(self.images):
            owners[image.sha256].append(index)
        several = [indices for indices in owners.values() if len(indices) > 1]
        pairs = [(int(self.labels[one]), other) for indices in several for one in indices for other in indices]
        return tuple(sorted((label, other) for label, other in pairs if self.labels[other] != label))


@dataclass(frozen=True)
class Negatives:
    """Images that show none of the concepts, or something that only looks like one of them; aligned."""

    images: tuple[ImageRecord, ...]
    """Those of concepts first, each concept's together, hard ones before others; then those of no concept."""
    bounds: Indices
    """Where each concept's begin, and where those of no concept do; shape ``(C + 1,)``."""
    vectors: Matrix
    """Shape ``(M, D)``, L2-normalised."""


def gather_pictures(concepts: Sequence[Concept], matrix: Matrix, row_by_sha256: dict[str, int]) -> Pictures:
    """Collect concepts' photos (train, then test) and their embeddings.

    Args:
        concepts: The concepts; those without a photo are left out.
        matrix: Embeddings, shape ``(M, D)``.
        row_by_sha256: Row of each picture.

    Raises:
        DataError: If a photo has no embedding.
    """
    shown = [concept for concept in concepts if concept.train or concept.test]
    images: list[ImageRecord] = []
    labels: list[int] = []
    for label, concept in enumerate(shown):
        pictures: dict[str, ImageRecord] = {}
        for image in (*concept.train, *concept.test):
            pictures.setdefault(image.sha256, image)
        images += pictures.values()
        labels += [label] * len(pictures)
    vectors = _find_vectors(images, matrix, row_by_sha256)
    return Pictures(tuple(shown), tuple(images), np.array(labels, dtype=np.intp), vectors)


def leave_out(pictures: Pictures, unwanted: Sequence[ImageRecord]) -> Pictures:
    """The same without some pictures, and without concepts that are left with none."""
    shas = {image.sha256 for image in unwanted}
    kept = np.array([index for index, image in enumerate(pictures.images) if image.sha256 not in shas], dtype=np.intp)
    names, labels = np.unique(pictures.labels[kept], return_inverse=True)
    return Pictures(
        concepts=tuple(pictures.concepts[name] for name in names),
        images=tuple(pictures.images[index] for index in kept),
        labels=labels.astype(np.intp),
        vectors=pictures.vectors[kept],
    )


def gather_negatives(pictures: Pictures, catalog: Catalog, matrix: Matrix, row_by_sha256: dict[str, int]) -> Negatives:
    """Collect the negatives of a catalog and of concepts; what is a photo of one of the concepts is left out.

    Raises:
        DataError: If a negative has no embedding.
    """
    shown = {image.sha256 for image in pictures.images}
    images: list[ImageRecord] = []
    bounds = [0]
    for concept in pictures.concepts:
        images += _different([*concept.hard_negative, *concept.negative], shown)
        bounds.append(len(images))
    images += _different(catalog.negatives, shown)
    return Negatives(tuple(images), np.array(bounds, dtype=np.intp), _find_vectors(images, matrix, row_by_sha256))


def _different(images: Sequence[ImageRecord], unwanted: set[str]) -> list[ImageRecord]:
    """Each picture once, without unwanted ones."""
    return list({image.sha256: image for image in images if image.sha256 not in unwanted}.values())


def _find_vectors(images: Sequence[ImageRecord], matrix: Matrix, row_by_sha256: dict[str, int]) -> Matrix:
    """Embeddings of images, in order.

    Raises:
        DataError: If one is missing.
    """
    if missing := [image.path for image in images if image.sha256 not in row_by_sha256]:
        raise DataError(
            f"{len(missing)} photos have no embedding, e.g. {missing[0]}; embeddings and catalog do not belong together"
        )
    rows = np.array([row_by_sha256[image.sha256] for image in images], dtype=np.intp)
    found: Matrix = np.asarray(matrix[rows], np.float32)
    return found

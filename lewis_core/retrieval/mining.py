"""Look-alikes for every query photo, from CLIP similarities; numpy only.

Mining is done among training concepts of one category. The functions on matrices know nothing of files. Similarities
are computed in double precision and rounded before they are ranked; ties go to the lower index (concepts by id, images
in catalog order), so that the result is the same on every machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.data import MiningConfig
from lewis_core.errors import DataError
from lewis_core.records import Catalog, Concept, ImageRecord, JsonObject, Record, Splits, load_record, save_jsonl
from lewis_core.retrieval.vectors import DECIMALS, Matrix, load_embeddings
from lewis_core.seeding import stable_rng

Similarities = NDArray[np.float64]
Indices = NDArray[np.intp]
NO_SECOND_VIEW = "no second view"
NO_LOOK_ALIKES = "no look-alikes"


class Candidate(Record):
    """A photo that a query may be played against or with."""

    image: ImageRecord
    concept: str
    """Concept id."""
    similarity: float
    """Cosine similarity to the query photo, in [-1, 1]."""


class CandidateRow(Record):
    """A line of ``candidates.jsonl``: one query photo and what games about it are drawn from."""

    query: ImageRecord
    concept: str
    """Concept id."""
    category: str
    category_word: str
    distractors: tuple[Candidate, ...]
    """One photo of each look-alike concept, nearest concept first."""
    positives: tuple[Candidate, ...]
    """Other views of the concept, in the order in which the policy prefers them."""
    degenerate: str | None
    """Why no game can be played with this query; ``None`` when one can."""


@dataclass(frozen=True)
class Pictures:
    """The different pictures of a category's training concepts, with their embeddings; rows are aligned."""

    concepts: tuple[Concept, ...]
    images: tuple[ImageRecord, ...]
    """``N`` images, grouped by concept, each picture once per concept."""
    labels: Indices
    """Position of each image's concept, shape ``(N,)``."""
    vectors: NDArray[np.float64]
    """Shape ``(N, D)``, L2-normalised."""


def mine_distractors(
    catalog: ArtifactRef,
    splits: ArtifactRef,
    embeddings: ArtifactRef,
    category: str,
    output_dir: Path,
    config: MiningConfig,
) -> JsonObject:
    """Write ``candidates.jsonl``: a :class:`CandidateRow` for every photo of the category's training concepts.

    Args:
        catalog: ``build-catalog`` artifact.
        splits: ``split-concepts`` artifact.
        embeddings: ``embed-images`` artifact.
        category: Name of the category.
        output_dir: Folder to write to.
        config: Strategy, pool, policy for positives.

    Returns:
        Numbers of concepts, queries and degenerate queries; zeros for a category without training concepts.

    Raises:
        DataError: If catalog, splits and embeddings do not belong together.
    """
    content = load_record(catalog.file("catalog.json"), Catalog)
    training = load_record(splits.file("splits.json"), Splits).training
    if category not in content.categories:
        raise DataError(f"the catalog has no category {category!r}; it has {', '.join(content.categories)}")
    concepts = [concept for concept in content.select(training).concepts if concept.category == category]
    rows = mine_rows(gather_pictures(concepts, *load_embeddings(embeddings)), config)
    save_jsonl(output_dir / "candidates.jsonl", rows)
    degenerate = sum(row.degenerate is not None for row in rows)
    return {"concepts": len(concepts), "queries": len(rows), "degenerate": degenerate}


def gather_pictures(concepts: Sequence[Concept], matrix: Matrix, row_by_sha256: dict[str, int]) -> Pictures:
    """Collect concepts' photos (train, then test) and their embeddings.

    Raises:
        DataError: If a photo has no embedding.
    """
    images: list[ImageRecord] = []
    labels: list[int] = []
    for label, concept in enumerate(concepts):
        pictures: dict[str, ImageRecord] = {}
        for image in (*concept.train, *concept.test):
            pictures.setdefault(image.sha256, image)
        images += pictures.values()
        labels += [label] * len(pictures)
    if missing := [image.path for image in images if image.sha256 not in row_by_sha256]:
        raise DataError(
            f"{len(missing)} photos have no embedding, e.g. {missing[0]}; embeddings and catalog do not belong together"
        )
    rows = np.array([row_by_sha256[image.sha256] for image in images], dtype=np.intp)
    return Pictures(
        concepts=tuple(concepts),
        images=tuple(images),
        labels=np.array(labels, dtype=np.intp),
        vectors=np.asarray(matrix[rows], np.float64),
    )


def mine_rows(pictures: Pictures, config: MiningConfig) -> list[CandidateRow]:
    """Mine every picture as a query; rows are in the pictures' order."""
    if not pictures.images:
        return []
    means = concept_means(pictures.vectors, pictures.labels, len(pictures.concepts))
    rows = []
    for own in range(len(pictures.concepts)):
        others = _other_images(pictures, own)
        rows += [_mine(pictures, int(query), others, means, config) for query in np.flatnonzero(pictures.labels == own)]
    return rows


def _mine(
    pictures: Pictures, query: int, others: Indices, means: NDArray[np.float64], config: MiningConfig
) -> CandidateRow:
    """Mine one query among the images ``others`` of other concepts, whose means have shape ``(C, D)``."""
    own = int(pictures.labels[query])
    concept, image = pictures.concepts[own], pictures.images[query]
    similarity = np.round(pictures.vectors @ pictures.vectors[query], DECIMALS)  # (N,)
    to_means = np.round(means @ pictures.vectors[query], DECIMALS)  # (C,)
    if config.strategy == "random":
        distractors = choose_random(others, pictures.labels, config.pool, config.seed, concept.id, image.sha256)
    elif config.strategy == "hard":
        distractors = choose_hard(similarity, to_means, others, pictures.labels, config.pool)
    else:
        distractors = choose_nearest_image(similarity, others, pictures.labels, config.pool)
    views = [int(index) for index in np.flatnonzero(pictures.labels == own) if index != query]
    positives = order_positives(similarity, views, config, concept.id, image.sha256)
    degenerate = None if distractors and positives else NO_LOOK_ALIKES if positives else NO_SECOND_VIEW
    return CandidateRow(
        query=image,
        concept=concept.id,
        category=concept.category,
        category_word=concept.category_word,
        distractors=_candidates(pictures, distractors, similarity),
        positives=_candidates(pictures, positives, similarity),
        degenerate=degenerate,
    )


def _other_images(pictures: Pictures, own: int) -> Indices:
    """Images of other concepts, ascending, without pictures that concept ``own`` has as well."""
    mine = {pictures.images[index].sha256 for index in np.flatnonzero(pictures.labels == own)}
    others = np.flatnonzero(pictures.labels != own)
    return others[[pictures.images[index].sha256 not in mine for index in others]] if len(others) else others


def _candidates(pictures: Pictures, indices: Iterable[int], similarity: Similarities) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            image=pictures.images[index],
            concept=pictures.concepts[pictures.labels[index]].id,
            similarity=float(similarity[index]),
        )
        for index in indices
    )


def concept_means(vectors: NDArray[np.float64], labels: Indices, num_concepts: int) -> NDArray[np.float64]:
    """L2-normalised mean embedding of each concept.

    Args:
        vectors: Shape ``(N, D)``.
        labels: Concept of each row, shape ``(N,)``.
        num_concepts: ``C``.

    Returns:
        Shape ``(C, D)``; zeros for a concept without images or whose images cancel out.
    """
    sums = np.zeros((num_concepts, vectors.shape[1]))
    np.add.at(sums, labels, vectors)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    means: NDArray[np.float64] = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)
    return means


def best_image_by_concept(similarity: Similarities, images: Indices, labels: Indices) -> dict[int, int]:
    """Each concept's image that is most similar to the query.

    Args:
        similarity: Of the query to every image, shape ``(N,)``.
        images: Images to choose from, ascending.
        labels: Concept of every image, shape ``(N,)``.

    Returns:
        Concept → image; the lower image wins a tie.
    """
    ranked = images[np.argsort(-similarity[images], kind="stable")]
    concepts, first = np.unique(labels[ranked], return_index=True)
    return {int(concept): int(ranked[place]) for concept, place in zip(concepts, first, strict=True)}


def choose_hard(
    similarity: Similarities, to_means: Similarities, images: Indices, labels: Indices, pool: int
) -> list[int]:
    """Choose the concepts whose mean is nearest, and of each its most similar image; nearest concept first.

    Args:
        similarity: Of the query to every image, shape ``(N,)``.
        to_means: Of the query to every concept's mean, shape ``(C,)``.
        images: Images of other concepts, ascending.
        labels: Concept of every image, shape ``(N,)``.
        pool: Most concepts to choose.

    Returns:
        Indices of images, one per chosen concept.
    """
    best = best_image_by_concept(similarity, images, labels)
    ranked = sorted(best, key=lambda concept: (-to_means[concept], concept))
    return [best[concept] for concept in ranked[:pool]]


def choose_nearest_image(similarity: Similarities, images: Indices, labels: Indices, pool: int) -> list[int]:
    """Choose each concept's most similar image, and of these the ``pool`` most similar; arguments as above."""
    best = best_image_by_concept(similarity, images, labels)
    ranked = sorted(best, key=lambda concept: (-similarity[best[concept]], concept))
    return [best[concept] for concept in ranked[:pool]]


def choose_random(images: Indices, labels: Indices, pool: int, seed: int, *names: str) -> list[int]:
    """Choose concepts and one image of each at random, seeded by what the query is."""
    rng = stable_rng(seed, "distractors", *names)
    by_concept: dict[int, list[int]] = {}
    for image in images:
        by_concept.setdefault(int(labels[image]), []).append(int(image))
    concepts = sorted(by_concept)
    chosen = [concepts[index] for index in rng.permutation(len(concepts))[:pool]]
    return [by_concept[concept][int(rng.integers(len(by_concept[concept])))] for concept in chosen]


def order_positives(similarity: Similarities, views: Sequence[int], config: MiningConfig, *names: str) -> list[int]:
    """Order the other views of a concept as the policy prefers them.

    Args:
        similarity: Of the query to every image, shape ``(N,)``.
        views: The concept's other images, ascending.
        config: ``hardest``: least similar first; ``easiest``: most similar first; ``random``: seeded.
        names: What the query is, for the seed.

    Returns:
        All of ``views``; ties by index.
    """
    if config.positive == "random":
        order = stable_rng(config.seed, "positives", *names).permutation(len(views))
        return [views[index] for index in order]
    sign = 1 if config.positive == "hardest" else -1
    return sorted(views, key=lambda view: (sign * similarity[view], view))

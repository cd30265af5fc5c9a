"""Where a query's distractors come from: look-alikes, their unlike views, other categories, negatives, or a mix.

A strategy fills a :class:`Choice` for all queries at once; :func:`choose` says for each query, or for each distractor,
which one is asked. What is random is seeded by the query's concept and content.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lewis_core.config.data import MiningConfig
from lewis_core.records import ImageRecord
from lewis_core.retrieval.nearest import (
    Similarities,
    best_columns,
    blocks,
    concepts_of_nearest_images,
    nearest_concepts,
    pair_similarities,
    pick_images,
    similarities,
)
from lewis_core.retrieval.pictures import Indices, Negatives, Pictures
from lewis_core.retrieval.vectors import Matrix
from lewis_core.seeding import stable_rng

LOOK_ALIKES, EASY, CROSS_CATEGORY, NEGATIVES = range(4)
"""Sources of distractors."""
MISSING = {
    LOOK_ALIKES: "no look-alikes",
    EASY: "no look-alikes",
    CROSS_CATEGORY: "no concepts of other categories",
    NEGATIVES: "no negatives",
}
"""Why a query has no distractors, by source."""


@dataclass(frozen=True)
class Choice:
    """Distractors of every query from one source, the best first."""

    images: Indices
    """Positions among the source's images, ``-1`` for none; shape ``(N, k)``."""
    similarity: Similarities
    """To the query; shape ``(N, k)``."""


class Distractor(NamedTuple):
    """One distractor."""

    image: ImageRecord
    concept: str
    """Concept id; empty for a negative."""
    similarity: float

    def repeats(self, other: "Distractor") -> bool:
        """Whether it shows the same picture or the same concept as another one."""
        return self.image.sha256 == other.image.sha256 or (self.concept != "" and self.concept == other.concept)


class Sources:
    """All that a category's queries are played against; each source is computed when it is first asked for.

    Args:
        pictures: Photos of the category's concepts: the queries, and each other's look-alikes.
        others: Photos of other categories' concepts.
        negatives: Images that show none of the concepts.
        config: Strategy, pool, shares.
    """

    def __init__(self, pictures: Pictures, others: Pictures, negatives: Negatives, config: MiningConfig) -> None:
        self.pictures, self.others, self.negatives, self.config = pictures, others, negatives, config

    @cached_property
    def kinds(self) -> NDArray[np.int8]:
        """Source of every distractor of every query; shape ``(N, pool)``."""
        return draw_kinds(self.pictures, self.config)

    def asked(self, kind: int) -> Indices:
        """Queries that want something from a source."""
        return np.flatnonzero((self.kinds == kind).any(axis=1))

    @cached_property
    def look_alikes(self) -> Choice:
        """By the settings' strategy."""
        config = self.config
        if config.strategy == "random":
            return choose_random(self.pictures, config.pool, config.seed)
        if config.strategy == "nearest-image":
            concepts = concepts_of_nearest_images(self.pictures, config.pool)
        else:
            concepts = nearest_concepts(self.pictures, config.shortlist)
        return choose_images(self.pictures, concepts, config.pool)

    @cached_property
    def easy(self) -> Choice:
        """The least similar image of each concept on the shortlist, the least similar of these first."""
        concepts = nearest_concepts(self.pictures, self.config.shortlist)
        return choose_images(self.pictures, concepts, self.config.pool, farthest=True)

    @cached_property
    def cross_category(self) -> Choice:
        """Any photos of other categories, of different concepts."""
        wanted, config = self.asked(CROSS_CATEGORY), self.config
        return choose_elsewhere(self.pictures, self.others, wanted, config.pool, config.seed)

    @cached_property
    def negative(self) -> Choice:
        """The nearest negatives of the concept, then the nearest of no concept."""
        return choose_negatives(self.pictures, self.negatives, self.asked(NEGATIVES), self.config.pool)

    def choice(self, kind: int) -> Choice:
        """All queries' distractors from one source."""
        if kind == LOOK_ALIKES:
            return self.look_alikes
        if kind == EASY:
            return self.easy
        return self.cross_category if kind == CROSS_CATEGORY else self.negative

    @cached_property
    def owners(self) -> dict[int, list[str]]:
        """Concept id of every image, by source."""
        mine, theirs = ([p.concepts[label].id for label in p.labels.tolist()] for p in (self.pictures, self.others))
        nobody = [""] * len(self.negatives.images)
        return {LOOK_ALIKES: mine, EASY: mine, CROSS_CATEGORY: theirs, NEGATIVES: nobody}

    def list_from(self, kind: int, query: int) -> list[Distractor]:
        """A query's distractors from one source, the best first."""
        choice, owners = self.choice(kind), self.owners[kind]
        images = {CROSS_CATEGORY: self.others.images, NEGATIVES: self.negatives.images}.get(kind, self.pictures.images)
        pairs = zip(choice.images[query].tolist(), choice.similarity[query].tolist(), strict=True)
        return [Distractor(images[index], owners[index], similarity) for index, similarity in pairs if index >= 0]

    def choose(self, query: int) -> list[Distractor]:
        """A query's distractors: pictures of different concepts, each from the source that was drawn for it."""
        kinds: list[int] = self.kinds[query].tolist()
        if kinds.count(LOOK_ALIKES) == len(kinds) and not self.pictures.shared:
            return self.list_from(LOOK_ALIKES, query)
        waiting = {kind: iter(self.list_from(kind, query)) for kind in set(kinds)}
        found: list[Distractor] = []
        for kind in kinds:
            for distractor in waiting[kind]:
                if not any(map(distractor.repeats, found)):
                    found.append(distractor)
                    break
        return found


def draw_kinds(pictures: Pictures, config: MiningConfig) -> NDArray[np.int8]:
    """Draw where each distractor comes from: one draw for a query, or one for each distractor (``config.mix``).

    Returns:
        Shape ``(N, pool)``.
    """
    shares = np.cumsum([config.easy_frac, config.cross_category_frac, config.negatives_frac])
    kinds = np.zeros((len(pictures.images), config.pool), dtype=np.int8)
    if shares[-1] == 0:
        return kinds
    sources = np.array([EASY, CROSS_CATEGORY, NEGATIVES, LOOK_ALIKES], dtype=np.int8)
    draws = 1 if config.mix == "query" else config.pool
    for query in range(len(kinds)):
        drawn = query_rng(pictures, query, config.seed, "source").random(draws)
        kinds[query] = sources[np.searchsorted(shares, drawn, side="right")]
    return kinds


def query_rng(pictures: Pictures, query: int, seed: int, purpose: str) -> np.random.Generator:
    """Random numbers that depend on what a query shows, and not on where it is."""
    concept = pictures.concepts[pictures.labels[query]].id
    return stable_rng(seed, purpose, concept, pictures.images[query].sha256)


def choose_images(pictures: Pictures, concepts: Indices, pool: int, *, farthest: bool = False) -> Choice:
    """Of each query's concepts take one image, and keep the nearest (or farthest) of these.

    Args:
        pictures: The queries.
        concepts: Concepts of each query, ``-1`` for none; shape ``(N, k)``.
        pool: Most images of a query.
        farthest: Take the least similar image of each concept, and keep the least similar of these.

    Returns:
        Images in order; ties go to the lower index. Shape ``(N, min(k, pool))``.
    """
    images = np.full(concepts.shape, -1, dtype=np.intp)
    queries, columns = np.nonzero(concepts >= 0)
    images[queries, columns] = pick_images(pictures, queries, concepts[queries, columns], farthest=farthest)
    images.sort(axis=1)
    similarity = pair_similarities(pictures.vectors, pictures.vectors, images)
    keys = np.where(images < 0, np.inf, similarity if farthest else -similarity)
    order = np.argsort(keys, axis=1, kind="stable")[:, :pool]
    return Choice(np.take_along_axis(images, order, axis=1), np.take_along_axis(similarity, order, axis=1))


def choose_random(pictures: Pictures, pool: int, seed: int) -> Choice:
    """Of each query choose concepts at random, and one image of each."""
    starts, shared = pictures.starts.tolist(), defaultdict[int, set[int]](set)
    for label, image in pictures.shared:
        shared[label].add(image)

    def draw(query: int) -> list[int]:
        rng, own = query_rng(pictures, query, seed, "distractors"), int(pictures.labels[query])
        found: list[int] = []
        for label in rng.permutation(len(pictures.concepts)).tolist():
            allowed: Sequence[int] = range(starts[label], starts[label + 1])
            if own in shared:
                allowed = [image for image in allowed if image not in shared[own]]
            if label != own and allowed:
                found.append(allowed[int(rng.integers(len(allowed)))])
            if len(found) == pool:
                break
        return found

    return _collect(pictures, pictures.vectors, np.arange(len(pictures.images)), pool, draw)


def choose_elsewhere(pictures: Pictures, others: Pictures, wanted: Indices, pool: int, seed: int) -> Choice:
    """For some queries choose photos of other concepts: a category at random, a concept of it, and a photo of that."""
    names = [concept.category for concept in others.concepts]
    categories = [[label for label, name in enumerate(names) if name == category] for category in sorted(set(names))]

    def draw(query: int) -> list[int]:
        rng, found = query_rng(pictures, query, seed, "elsewhere"), dict[int, int]()
        while len(found) < min(pool, len(names)):
            category = categories[int(rng.integers(len(categories)))]
            label = category[int(rng.integers(len(category)))]
            first, last = others.starts[label : label + 2].tolist()
            found.setdefault(label, int(rng.integers(first, last)))
        return list(found.values())

    return _collect(pictures, others.vectors, wanted, pool, draw)


def choose_negatives(pictures: Pictures, negatives: Negatives, wanted: Indices, pool: int) -> Choice:
    """For some queries choose the nearest negatives of their concepts, then the nearest that belong to no concept."""
    common = negatives.bounds[-1]
    general = np.full((len(pictures.images), pool), -1, dtype=np.intp)
    if common < len(negatives.images):
        general[wanted, : len(negatives.images) - common] = _nearest(
            pictures.vectors[wanted], negatives.vectors[common:], pool, common
        )

    def draw(query: int) -> list[int]:
        first, last = negatives.bounds[pictures.labels[query] : pictures.labels[query] + 2]
        scores = similarities(pictures.vectors[[query]], negatives.vectors[first:last])[0]
        own = [int(first + place) for place in np.argsort(-scores, kind="stable")]
        return [*own, *(index for index in general[query].tolist() if index >= 0)][:pool]

    return _collect(pictures, negatives.vectors, wanted, pool, draw)


def _nearest(queries: Matrix, keys: Matrix, count: int, offset: int) -> Indices:
    """Rows of ``keys`` nearest to each query, nearest first, counted from ``offset``; shape ``(Q, min(count, M))``."""
    found = []
    for part in blocks(len(queries), max(keys.shape)):
        some = queries[part]
        columns = best_columns(some @ keys.T, count, lambda rows, some=some: similarities(some[rows], keys))  # type: ignore[misc]
        columns.sort(axis=1)
        order = np.argsort(-pair_similarities(some, keys, columns), axis=1, kind="stable")
        found.append(offset + np.take_along_axis(columns, order, axis=1))
    return np.concatenate(found) if found else np.zeros((0, min(count, len(keys))), np.intp)


def _collect(pictures: Pictures, keys: Matrix, wanted: Indices, pool: int, draw: Callable[[int], list[int]]) -> Choice:
    """Ask for each wanted query's images and compute how similar they are."""
    images = np.full((len(pictures.images), pool), -1, dtype=np.intp)
    for query in wanted.tolist():
        drawn = draw(query)
        images[query, : len(drawn)] = drawn
    similarity = np.full(images.shape, -np.inf)
    similarity[wanted] = pair_similarities(pictures.vectors[wanted], keys, images[wanted])
    return Choice(images, similarity)

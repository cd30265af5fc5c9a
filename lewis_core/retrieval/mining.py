"""What games are drawn from: for every query photo distractors, and the other views of what it shows. Numpy only.

Mining is done among the concepts of one side of the split. ``pictures`` holds them as arrays, ``nearest`` compares
them, ``strategies`` says which of them a query is played against.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.data import MiningConfig
from lewis_core.errors import DataError
from lewis_core.records import Catalog, ImageRecord, JsonObject, Record, Splits, load_record, save_jsonl
from lewis_core.retrieval.nearest import Similarities, blocks, similarities
from lewis_core.retrieval.pictures import Indices, Negatives, Pictures, gather_negatives, gather_pictures, leave_out
from lewis_core.retrieval.strategies import MISSING, Sources, query_rng
from lewis_core.retrieval.vectors import load_embeddings

NO_SECOND_VIEW = "no second view"


class Candidate(Record):
    """A photo that a query may be played against or with."""

    image: ImageRecord
    concept: str
    """Concept id; empty for an image that shows none of the concepts."""
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
    """Photos of different concepts, or negatives; of one source, the best first."""
    positives: tuple[Candidate, ...]
    """Other views of the concept, in the order in which the policy prefers them."""
    degenerate: str | None
    """Why no game can be played with this query; ``None`` when one can."""


def mine_distractors(
    catalog: ArtifactRef,
    splits: ArtifactRef,
    embeddings: ArtifactRef,
    category: str,
    output_dir: Path,
    config: MiningConfig,
    concepts: Literal["training", "held-out"] = "training",
) -> JsonObject:
    """Write ``candidates.jsonl``: a :class:`CandidateRow` for every photo of the category's concepts.

    Args:
        catalog: ``build-catalog`` artifact.
        splits: ``split-concepts`` artifact.
        embeddings: ``embed-images`` artifact.
        category: Name of the category.
        output_dir: Folder to write to.
        config: Strategy, pool, policy for positives.
        concepts: On which side of the split they are; what they are compared with is on the same side.

    Returns:
        Numbers of concepts, queries and degenerate queries with the reasons; zeros for a category without such
        concepts.

    Raises:
        DataError: If catalog, splits and embeddings do not belong together.
    """
    content = load_record(catalog.file("catalog.json"), Catalog)
    sides = load_record(splits.file("splits.json"), Splits)
    chosen = content.select(sides.training if concepts == "training" else sides.held_out).concepts
    if category not in content.categories:
        raise DataError(f"the catalog has no category {category!r}; it has {', '.join(content.categories)}")
    vectors = load_embeddings(embeddings)
    pictures = gather_pictures([concept for concept in chosen if concept.category == category], *vectors)
    elsewhere = [concept for concept in chosen if concept.category != category and config.cross_category_frac > 0]
    others = leave_out(gather_pictures(elsewhere, *vectors), pictures.images)
    negatives = (
        gather_negatives(pictures, content, *vectors) if config.negatives_frac > 0 else None
    )  # else not embedded
    reasons: Counter[str] = Counter()

    def counted() -> Iterator[CandidateRow]:
        for row in mine_rows(pictures, config, others, negatives):
            if row.degenerate is not None:
                reasons[row.degenerate] += 1
            yield row

    queries = save_jsonl(output_dir / "candidates.jsonl", counted())
    return {
        "concepts": len(pictures.concepts),
        "queries": queries,
        "degenerate": reasons.total(),
        "degenerate_reasons": dict(sorted(reasons.items())),
    }


def mine_rows(
    pictures: Pictures, config: MiningConfig, others: Pictures | None = None, negatives: Negatives | None = None
) -> Iterator[CandidateRow]:
    """Mine every picture as a query.

    Args:
        pictures: Photos of one category's concepts.
        config: Strategy, pool, shares.
        others: Photos of other categories' concepts; needed for a share of cross-category queries only.
        negatives: Images that show none of the concepts; needed for a share of such queries only.

    Yields:
        Rows, in the pictures' order.
    """
    if not pictures.images:
        return
    nothing = np.zeros((0, pictures.vectors.shape[1]), np.float32)
    empty = np.zeros(len(pictures.concepts) + 1, np.intp)
    sources = Sources(
        pictures,
        others or Pictures((), (), np.zeros(0, np.intp), nothing),
        negatives or Negatives((), empty, nothing),
        config,
    )
    for query, views in enumerate(find_positives(pictures, config)):
        concept = pictures.concepts[pictures.labels[query]]
        distractors = tuple(_candidate(*one) for one in sources.choose(query))
        degenerate = None if views else NO_SECOND_VIEW
        if not distractors:
            degenerate = degenerate or MISSING[int(sources.kinds[query, 0])]
        yield CandidateRow.model_construct(
            query=pictures.images[query],
            concept=concept.id,
            category=concept.category,
            category_word=concept.category_word,
            distractors=distractors,
            positives=views,
            degenerate=degenerate,
        )


def _candidate(image: ImageRecord, concept: str, similarity: float) -> Candidate:
    """Make a candidate of parts that were checked before: there are millions of them."""
    return Candidate.model_construct(image=image, concept=concept, similarity=similarity)


def find_positives(pictures: Pictures, config: MiningConfig) -> Iterator[tuple[Candidate, ...]]:
    """For every picture, the views of its concept that the policy prefers, ``config.pool`` at most, in order."""
    is_random = config.positive == "random" or config.easy_frac > 0
    for label, concept in enumerate(pictures.concepts):
        first, last = pictures.starts[label : label + 2].tolist()
        own, name = pictures.vectors[first:last], concept.id
        for part in blocks(len(own), max(own.shape)):
            for place, similarity in enumerate(similarities(own[part], own), part.start):
                rng = query_rng(pictures, first + place, config.seed, "positives") if is_random else None
                views = np.delete(np.arange(len(own)), place)
                order = order_positives(similarity, views, policy(config, rng), rng)[: config.pool]
                yield tuple(_candidate(pictures.images[first + view], name, float(similarity[view])) for view in order)


def policy(config: MiningConfig, rng: np.random.Generator | None) -> str:
    """Which view a query prefers: the most similar for the share of easy ones, else what the settings say."""
    if rng is not None and config.easy_frac > 0 and rng.random() < config.easy_frac:
        return "easiest"
    return config.positive


def order_positives(
    similarity: Similarities, views: Indices, preferred: str, rng: np.random.Generator | None
) -> list[int]:
    """Order the other views of a concept as the policy prefers them.

    Args:
        similarity: Of the query to every view, shape ``(n,)``.
        views: The concept's other images, ascending.
        preferred: ``hardest``: least similar first; ``easiest``: most similar first; ``random``: any order.
        rng: Decides ``random``; not needed otherwise.

    Returns:
        All of ``views``; ties by index.
    """
    if preferred == "random" and rng is not None:
        order = rng.permutation(len(views))
    else:
        order = np.argsort(similarity[views] if preferred == "hardest" else -similarity[views], kind="stable")
    found: list[int] = views[order].tolist()
    return found

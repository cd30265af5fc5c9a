"""Hybrid retrieval: image-to-image and image-to-text similarity, each scaled over the candidates, then mixed.

Pure numpy. Ties go to the lower index, so the caller's order of candidates (by concept id) decides.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lewis_core.retrieval.vectors import DECIMALS

Scaling = Literal["min-max", "z-score", "none"]
Fusion = Literal["mean", "max", "min", "product", "harmonic"]


@dataclass(frozen=True)
class Hit:
    """One retrieved candidate."""

    index: int
    """Position among the candidates."""
    score: float
    """Mixed score; in [0, 1] after min-max scaling."""


def min_max(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale values linearly so that the least becomes 0 and the greatest 1.

    Args:
        values: Shape ``(C,)``, ``C >= 1``.

    Returns:
        Shape ``(C,)``; all zeros when the values are equal (nothing sets one apart).
    """
    exact = np.asarray(values, dtype=np.float64)
    low, high = exact.min(), exact.max()
    return np.zeros_like(exact) if high == low else (exact - low) / (high - low)


def z_score(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Shift and scale values to mean 0 and standard deviation 1, shape ``(C,)``; all zeros when they are equal."""
    exact = np.asarray(values, dtype=np.float64)
    spread = exact.std()
    return np.zeros_like(exact) if exact.max() == exact.min() else (exact - exact.mean()) / spread


def scale(values: NDArray[np.floating], scaling: Scaling) -> NDArray[np.float64]:
    """Scale values in the named way, shape ``(C,)``."""
    if scaling == "none":
        return np.asarray(values, dtype=np.float64)
    return min_max(values) if scaling == "min-max" else z_score(values)


def similarities(query: NDArray[np.floating], vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine similarity of one L2-normalised vector ``(D,)`` to many ``(C, D)``; shape ``(C,)``, rounded."""
    product: NDArray[np.float64] = np.asarray(vectors, np.float64) @ np.asarray(query, np.float64)
    return np.round(product, DECIMALS)


def hybrid_scores(
    image_similarity: NDArray[np.floating],
    text_similarity: NDArray[np.floating],
    image_weight: float,
    scaling: Scaling = "min-max",
    fusion: Fusion = "mean",
) -> NDArray[np.float64]:
    """Mix two similarities after scaling each.

    Args:
        image_similarity: Query image to each candidate's reference image, shape ``(C,)``.
        text_similarity: Query image to each candidate's text, shape ``(C,)``.
        image_weight: Share of the image similarity in ``mean`` and ``harmonic``, in [0, 1].
        scaling: Over the candidates.
        fusion: How the two become one; ``product`` and ``harmonic`` take values below 0 for 0.

    Returns:
        Scores, shape ``(C,)``; in [0, 1] after min-max scaling.
    """
    image, text = scale(image_similarity, scaling), scale(text_similarity, scaling)
    if fusion == "mean":
        mixed = image_weight * image + (1 - image_weight) * text
    elif fusion == "max":
        mixed = np.maximum(image, text)
    elif fusion == "min":
        mixed = np.minimum(image, text)
    else:
        image, text = np.maximum(image, 0), np.maximum(text, 0)
        weighted = image_weight * text + (1 - image_weight) * image
        divisor = np.where(weighted > 0, weighted, 1.0)
        mixed = image * text if fusion == "product" else image * text / divisor
    result: NDArray[np.float64] = mixed
    return result


def top_k(scores: NDArray[np.floating], k: int) -> list[int]:
    """Indices of the ``k`` greatest scores (all, if there are fewer), best first; ties by index."""
    return [int(index) for index in np.argsort(-np.asarray(scores), kind="stable")[:k]]


def retrieve(
    query: NDArray[np.floating],
    references: NDArray[np.floating],
    texts: NDArray[np.floating],
    image_weight: float,
    k: int,
    scaling: Scaling = "min-max",
    fusion: Fusion = "mean",
) -> list[Hit]:
    """Find the candidates that look and read most like a query image.

    Args:
        query: Embedding of the query image, shape ``(D,)``, L2-normalised.
        references: Embeddings of the candidates' reference images, shape ``(C, D)``, L2-normalised.
        texts: Embeddings of the candidates' texts, shape ``(C, D)``, L2-normalised, same order.
        image_weight: Share of the image similarity, in [0, 1].
        k: How many to return at most.
        scaling: Of each similarity, over the candidates.
        fusion: How the two similarities become one.

    Returns:
        Hits, best first; none when there are no candidates.

    Source:
        The reference system's ``personalize.py``: 0.5 / 0.5, min-max.
    """
    if len(references) == 0:
        return []
    scores = hybrid_scores(similarities(query, references), similarities(query, texts), image_weight, scaling, fusion)
    scores = np.round(scores, DECIMALS)
    return [Hit(index, float(scores[index])) for index in top_k(scores, k)]

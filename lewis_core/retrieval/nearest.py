"""Nearest concepts and nearest images: matrix products in single precision, decisions as in double precision.

Everything is computed by blocks, so memory is bounded by :data:`CELLS` and not by the number of images. Where single
precision leaves it open which is nearer, the similarities are computed again in double precision, rounded, and ties go
to the lower index: the answer is the same on every machine, whatever its matrix library does.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from lewis_core.retrieval.pictures import Indices, Pictures
from lewis_core.retrieval.vectors import DECIMALS, Matrix

Similarities = NDArray[np.float64]
CELLS = 1 << 22
"""Numbers in one block of similarities."""
DOUBT = 2e-5
"""Similarities in single precision that differ by less are computed again: products of unit vectors of a thousand
numbers are off by 1e-6 at most, and rounding moves them by as much."""
SERIAL = 1 << 18
"""Matrix libraries share out larger products among threads; for many small ones their meeting costs more than work."""


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Cut rows into slices of at most :data:`CELLS` numbers, one row at least."""
    step = max(1, CELLS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def concept_means(pictures: Pictures) -> NDArray[np.float64]:
    """Mean embedding of each concept, not normalised: its product with a query is the mean similarity.

    Returns:
        Shape ``(C, D)``.
    """
    sums = np.add.reduceat(pictures.vectors, pictures.starts[:-1], axis=0, dtype=np.float64)
    means: NDArray[np.float64] = sums / np.diff(pictures.starts)[:, None]
    return means


def similarities(left: NDArray[np.floating], right: NDArray[np.floating]) -> Similarities:
    """Products of all rows of two matrices in double precision, rounded; shape ``(L, R)``."""
    product: Similarities = np.round(np.asarray(left, np.float64) @ np.asarray(right, np.float64).T, DECIMALS)
    return product


def pair_similarities(queries: Matrix, keys: Matrix, chosen: Indices) -> Similarities:
    """Similarity of each query to some rows of another matrix, in double precision, rounded.

    Args:
        queries: Shape ``(Q, D)``.
        keys: Shape ``(M, D)``.
        chosen: Rows of ``keys`` for each query, ``-1`` for none; shape ``(Q, k)``.

    Returns:
        Shape ``(Q, k)``; minus infinity for none.
    """
    found = np.full(chosen.shape, -np.inf)
    if not len(keys):
        return found
    for part in blocks(len(queries), chosen.shape[1] * keys.shape[1]):
        wanted = keys[chosen[part]].astype(np.float64)  # (q, k, D)
        found[part] = np.matmul(wanted, queries[part].astype(np.float64)[:, :, None])[:, :, 0]
    found[chosen < 0] = -np.inf
    rounded: Similarities = np.round(found, DECIMALS)
    return rounded


def small_product(left: Matrix, right: Matrix) -> NDArray[np.float32]:
    """Products of all rows of two matrices, in pieces that are computed by one thread if that is possible.

    Returns:
        Shape ``(L, R)``.
    """
    step = SERIAL // right.size
    if not 4 <= step < len(left):
        return left @ right.T
    whole = len(left) // step * step
    pieces = np.matmul(left[:whole].reshape(-1, step, left.shape[1]), right.T).reshape(whole, len(right))
    return np.concatenate([pieces, left[whole:] @ right.T])


def best_columns(scores: NDArray[np.float32], count: int, exact: Callable[[Indices], NDArray[np.floating]]) -> Indices:
    """Columns of the greatest scores of each row.

    Args:
        scores: In single precision, minus infinity for columns that are not to be chosen; shape ``(R, C)``.
        count: Most columns of a row.
        exact: Computes the scores of some rows in double precision; asked where ``scores`` leave the choice open.

    Returns:
        Shape ``(R, k)`` with ``k = min(count, C)``, in no order; ``-1`` where there are not enough columns.
    """
    rows, columns = scores.shape
    if count >= columns:
        order = np.tile(np.arange(columns), (rows, 1))
    else:
        place = columns - count - 1  # what is left out first; the chosen ones are behind it
        last = np.argpartition(scores, place, axis=1)[:, place:]
        values = np.take_along_axis(scores, last, axis=1)
        with np.errstate(invalid="ignore"):  # two times minus infinity
            doubtful = np.flatnonzero(values[:, 1:].min(axis=1) - values[:, 0] < DOUBT)
        order = last[:, 1:].copy()
        for part in blocks(len(doubtful), columns):
            some = doubtful[part]
            order[some] = np.argsort(-exact(some), axis=1, kind="stable")[:, :count]
    order[np.take_along_axis(scores, order, axis=1) == -np.inf] = -1
    return order


def nearest_concepts(pictures: Pictures, count: int) -> Indices:
    """For every picture, the other concepts whose pictures are nearest on average.

    Returns:
        Positions of concepts in no order, ``-1`` for none; shape ``(N, k)``, ``k <= count``.
    """
    means = concept_means(pictures)
    single, banned = means.astype(np.float32), _wholly_shared(pictures)
    found = []
    for part in blocks(len(pictures.images), len(means)):

        def exact(rows: Indices, part: slice = part) -> NDArray[np.floating]:
            return _ban(similarities(pictures.vectors[part][rows], means), pictures.labels[part][rows], banned)

        scores = _ban(pictures.vectors[part] @ single.T, pictures.labels[part], banned)
        found.append(best_columns(scores, count, exact))
    return np.concatenate(found)


def concepts_of_nearest_images(pictures: Pictures, count: int) -> Indices:
    """For every picture, the other concepts that have the pictures nearest to it.

    Returns:
        As :func:`nearest_concepts`.
    """
    banned, found = _wholly_shared(pictures), []
    for part in blocks(len(pictures.images), len(pictures.images)):
        labels = pictures.labels[part]

        def best(similarity: NDArray[np.floating], labels: Indices) -> NDArray[np.floating]:
            for label, image in pictures.shared:
                similarity[labels == label, image] = -np.inf
            return _ban(np.maximum.reduceat(similarity, pictures.starts[:-1], axis=1), labels, banned)

        def exact(rows: Indices, part: slice = part, labels: Indices = labels) -> NDArray[np.floating]:
            return best(similarities(pictures.vectors[part][rows], pictures.vectors), labels[rows])

        found.append(best_columns(best(pictures.vectors[part] @ pictures.vectors.T, labels), count, exact))
    return np.concatenate(found)


def pick_images(pictures: Pictures, queries: Indices, concepts: Indices, *, farthest: bool = False) -> Indices:
    """For pairs of a picture and another concept, that concept's image most (or least) like the picture.

    Images whose picture the query's concept has as well are not chosen.

    Args:
        pictures: All of them.
        queries: Images, shape ``(P,)``.
        concepts: Positions of concepts, shape ``(P,)``.
        farthest: Choose the least similar image.

    Returns:
        Images, ``-1`` for none; the lower index wins a tie. Shape ``(P,)``.
    """
    chosen = np.full(len(queries), -1, dtype=np.intp)
    order = np.argsort(concepts, kind="stable")
    edges = np.searchsorted(concepts[order], np.arange(len(pictures.concepts) + 1))
    shared = _shared_by_concept(pictures)
    for concept in np.flatnonzero(np.diff(edges)):
        first, last = pictures.starts[concept : concept + 2]
        pairs = order[edges[concept] : edges[concept + 1]]
        for part in blocks(len(pairs), max(int(last - first), pictures.vectors.shape[1])):
            some = pairs[part]
            labels = pictures.labels[queries[some]]
            banned = [(np.flatnonzero(labels == label), image - first) for label, image in shared[int(concept)]]
            best = _best_key(pictures.vectors[queries[some]], pictures.vectors[first:last], banned, farthest)
            chosen[some] = np.where(best < 0, -1, first + best)
    return chosen


def _best_key(queries: Matrix, keys: Matrix, banned: list[tuple[Indices, int]], farthest: bool) -> Indices:
    """Row of ``keys`` nearest to each query; ``-1`` where all are banned."""
    sign = -1 if farthest else 1

    def ban(scores: NDArray[np.floating], rows: Indices | None = None) -> NDArray[np.floating]:
        for lines, key in banned:
            scores[lines if rows is None else np.isin(rows, lines), key] = -np.inf
        return scores

    scores = ban(sign * small_product(queries, keys))
    best: Indices = scores.argmax(axis=1)
    top = scores[np.arange(len(scores)), best]
    doubtful = np.flatnonzero((scores >= top[:, None] - np.float32(DOUBT)).sum(axis=1) > 1)
    if len(doubtful):
        best[doubtful] = ban(sign * similarities(queries[doubtful], keys), doubtful).argmax(axis=1)
    best[top == -np.inf] = -1
    return best


def _ban(scores: NDArray[np.floating], labels: Indices, banned: list[tuple[int, int]]) -> NDArray[np.floating]:
    """Make each row's own concept, and concepts it may not choose, impossible to choose; in place."""
    scores[np.arange(len(scores)), labels] = -np.inf
    for label, concept in banned:
        scores[labels == label, concept] = -np.inf
    return scores


def _wholly_shared(pictures: Pictures) -> list[tuple[int, int]]:
    """Pairs of concepts of which the first has all pictures of the second."""
    counts: dict[tuple[int, int], int] = {}
    for label, image in pictures.shared:
        pair = label, int(pictures.labels[image])
        counts[pair] = counts.get(pair, 0) + 1
    sizes = np.diff(pictures.starts)
    return [pair for pair, count in counts.items() if count == sizes[pair[1]]]


def _shared_by_concept(pictures: Pictures) -> dict[int, list[tuple[int, int]]]:
    """Pairs of :attr:`Pictures.shared` by the concept that the image belongs to."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for label, image in pictures.shared:
        found[int(pictures.labels[image])].append((label, image))
    return found

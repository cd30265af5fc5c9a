"""Every formula of the evaluations, pure and in one place.

A number that cannot be computed (no positives, nothing retrieved) is ``None`` for a reader and NaN inside arrays;
it is never 0. Formulas on counts work elementwise on arrays, so that resampling uses the very same code.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
ECE_BINS = 10


def ratio(part: ArrayLike, whole: ArrayLike) -> Floats:
    """Divide elementwise; NaN where the whole is 0."""
    top, bottom = np.asarray(part, float), np.asarray(whole, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1.0), np.nan)
    return result


def value_or_none(number: ArrayLike) -> float | None:
    """Turn NaN into ``None``: nothing was measured."""
    value = float(np.asarray(number))
    return None if math.isnan(value) else value


def precision(true_positives: ArrayLike, false_positives: ArrayLike) -> Floats:
    """TP / (TP + FP); NaN when yes was never said."""
    return ratio(true_positives, np.add(true_positives, false_positives))


def f1(true_positives: ArrayLike, false_positives: ArrayLike, false_negatives: ArrayLike) -> Floats:
    """2 TP / (2 TP + FP + FN): harmonic mean of precision and recall; NaN when there is nothing to find or found."""
    twice = 2 * np.asarray(true_positives, float)
    return ratio(twice, twice + np.asarray(false_positives, float) + np.asarray(false_negatives, float))


def balanced_accuracy(
    true_positives: ArrayLike, positives: ArrayLike, true_negatives: ArrayLike, negatives: ArrayLike
) -> Floats:
    """Mean of the accuracies on positives and on negatives ("weighted accuracy"); NaN when either class is empty."""
    return (ratio(true_positives, positives) + ratio(true_negatives, negatives)) / 2


def wins(positives: ArrayLike, negatives: ArrayLike) -> float:
    """Count the pairs (positive, negative) in which the positive scores higher; a tie is half a win.

    Args:
        positives: Scores of positives, shape ``(P,)``.
        negatives: Scores of negatives, shape ``(N,)``.
    """
    ordered, scores = np.sort(np.asarray(negatives, float)), np.asarray(positives, float)
    below, not_above = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return float((below + not_above).sum()) / 2


def rank_of(scores: Sequence[float], index: int) -> int:
    """Rank of one option, 1 is best; options with the same score come first (ties are against it)."""
    return 1 + sum(score >= scores[index] for other, score in enumerate(scores) if other != index)


def softmax(scores: Sequence[float]) -> tuple[float, ...]:
    """Turn log-odds or log-probabilities into a distribution, without overflow."""
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return tuple(weight / sum(weights) for weight in weights)


def entropy(probabilities: Sequence[float]) -> float:
    """Shannon entropy in nats, 0 (certain) to ln K (no idea); probabilities sum to 1."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def margin(probabilities: Sequence[float]) -> float:
    """Lead of the best option over the second, in [0, 1]."""
    first, second = sorted(probabilities, reverse=True)[:2]
    return first - second


def calibration_bins(probabilities: ArrayLike, num_bins: int = ECE_BINS) -> NDArray[np.int64]:
    """Index of each probability's bin, of ``num_bins`` equal bins over [0, 1]; 1.0 belongs to the last."""
    bins: NDArray[np.int64] = np.minimum(np.asarray(probabilities, float) * num_bins, num_bins - 1).astype(np.int64)
    return bins


def ece_of_bins(probability_sums: ArrayLike, label_sums: ArrayLike, total: ArrayLike) -> Floats:
    """Expected calibration error from sums per bin.

    Args:
        probability_sums: Sum of the probabilities in each bin, shape ``(..., B)``.
        label_sums: Number of positives in each bin, shape ``(..., B)``.
        total: Number of items, shape ``(...)``.

    Returns:
        Sum over bins of |mean probability - share of positives| × share of items, shape ``(...)``.
    """
    gaps = np.abs(np.asarray(probability_sums, float) - np.asarray(label_sums, float)).sum(axis=-1)
    return ratio(gaps, total)

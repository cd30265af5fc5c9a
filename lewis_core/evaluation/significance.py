"""Exact tests on right and wrong answers, and the correction for making several tests; pure."""

import math
from collections.abc import Sequence

import numpy as np


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test of two speakers on the same items.

    Items are taken as independent, which photos of one thing are not: it is the test that papers report, the paired
    permutation of whole concepts is the one to believe.

    Args:
        only_first: Items that only the first got right.
        only_second: Items that only the second got right.

    Returns:
        Probability of a split at least as uneven if either were as likely; 1 when they never differ.

    Raises:
        ValueError: If a count is negative.

    Source:
        McNemar 1947, with the exact binomial distribution: 2 · P(X ≤ min(b, c)), X ~ Binomial(b + c, ½), at most 1.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts cannot be negative: {only_first}, {only_second}")
    total, fewer = only_first + only_second, min(only_first, only_second)
    if total == 0:
        return 1.0
    logs = [_log_binomial(total, k) - total * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests, so that the chance of any false alarm stays below the level.

    Args:
        p_values: Of one family of tests, in any order.

    Returns:
        Adjusted p-values in that order, each at least as large as before and at most 1.

    Source:
        Holm 1979: the i-th smallest of m is multiplied by m - i + 1, and is never below a smaller one's.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[int(index)]))
        adjusted[int(index)] = largest
    return adjusted


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

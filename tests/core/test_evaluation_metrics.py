"""Formulas of the evaluations against numbers worked out by hand."""

import math

import numpy as np
import pytest

from lewis_core.evaluation import metrics


def test_precision_f1_and_balanced_accuracy_by_hand() -> None:
    # 6 positives of which 4 were found; 10 negatives of which 2 were taken for positives
    tp, fp, fn, tn = 4, 2, 2, 8
    assert metrics.precision(tp, fp) == pytest.approx(4 / 6)
    assert metrics.f1(tp, fp, fn) == pytest.approx(8 / 12)  # 2·4 / (2·4 + 2 + 2)
    assert metrics.balanced_accuracy(tp, 6, tn, 10) == pytest.approx((4 / 6 + 8 / 10) / 2)


@pytest.mark.parametrize(
    ("tp", "fp", "fn"),
    [pytest.param(3, 1, 2, id="usual"), pytest.param(1, 9, 0, id="low-precision"), pytest.param(5, 0, 0, id="perfect")],
)
def test_f1_is_the_harmonic_mean(tp: int, fp: int, fn: int) -> None:
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    assert metrics.f1(tp, fp, fn) == pytest.approx(2 * precision * recall / (precision + recall))


def test_what_cannot_be_measured_is_missing_and_not_zero() -> None:
    assert math.isnan(metrics.precision(0, 0))  # yes was never said
    assert math.isnan(metrics.balanced_accuracy(3, 3, 0, 0))  # no negatives
    assert math.isnan(metrics.f1(0, 0, 0))
    assert metrics.f1(0, 0, 3) == 0  # there was something to find: this zero is data
    assert math.isnan(metrics.ece_of_bins([0.0], [0], 0))
    assert metrics.value_or_none(np.nan) is None
    assert metrics.value_or_none(0.0) == 0.0


def test_formulas_work_elementwise() -> None:
    values = metrics.precision([1, 0, 2], [1, 0, 0])
    np.testing.assert_allclose(values, [0.5, np.nan, 1.0])


def test_won_pairs_are_counted_and_ties_half() -> None:
    # .9 wins against .5, .1 and .7: 3; .5 ties .5 (½), beats .1 (1), loses to .7 (0)
    assert metrics.wins([0.9, 0.5], [0.5, 0.1, 0.7]) == 4.5
    assert metrics.wins([0.3] * 3, [0.3] * 3) == 9 / 2
    assert metrics.wins([], [0.3]) == metrics.wins([0.3], []) == 0


@pytest.mark.parametrize(
    ("scores", "index", "rank"),
    [
        pytest.param([0.2, 0.9, 0.5], 1, 1, id="best"),
        pytest.param([0.2, 0.9, 0.5], 0, 3, id="last"),
        pytest.param([0.9, 0.9, 0.5], 0, 2, id="tie-is-against"),
        pytest.param([0.5, 0.5, 0.5], 2, 3, id="all-tied"),
    ],
)
def test_rank(scores: list[float], index: int, rank: int) -> None:
    assert metrics.rank_of(scores, index) == rank


def test_softmax_entropy_and_margin() -> None:
    # odds 3 : 1
    assert metrics.softmax([math.log(3), 0.0]) == pytest.approx((0.75, 0.25))
    assert metrics.softmax([1000.0, 0.0]) == (1.0, 0.0)
    assert metrics.entropy([0.5, 0.5]) == pytest.approx(math.log(2))
    assert metrics.entropy([1.0, 0.0]) == 0
    assert metrics.margin([0.2, 0.7, 0.1]) == pytest.approx(0.5)


def ece(probabilities: list[float], labels: list[bool]) -> float:
    """Add up probabilities and positives of each bin, as recognition does."""
    bins = metrics.calibration_bins(probabilities)
    sums, positives = (np.bincount(bins, column, metrics.ECE_BINS) for column in (probabilities, labels))
    return float(metrics.ece_of_bins(sums, positives, len(labels)))


def test_ece_by_hand() -> None:
    # bin [.8, .9): .85 and .81 with one positive: |1.66 - 1| = .66; bin [.1, .2): .1 and .19, no positive: .29
    # 1.0 belongs to the last bin: |1 - 1| = 0
    probabilities, labels = [0.85, 0.81, 0.1, 0.19, 1.0], [True, False, False, False, True]
    assert ece(probabilities, labels) == pytest.approx((0.66 + 0.29 + 0) / 5)


def test_ece_of_a_calibrated_and_of_a_boastful_model() -> None:
    assert ece([0.75] * 4, [True, True, True, False]) == pytest.approx(0)
    assert ece([1.0] * 4, [True, True, True, False]) == pytest.approx(0.25)

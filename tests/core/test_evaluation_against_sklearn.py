"""Where scikit-learn and scipy have the same number, ours is theirs."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax
from sklearn import metrics as theirs

from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.evaluation import metrics, recognition
from lewis_core.evaluation.metrics import ECE_BINS
from lewis_core.evaluation.records import Prediction
from lewis_core.models.answers import YES_NO

RNG = np.random.default_rng(5)


def answers(n: int) -> list[Prediction]:
    """Answers of a model that knows a little: 1 positive to 3 negatives."""
    labels = RNG.random(n) < 0.25
    probabilities = np.round(np.clip(0.4 + 0.2 * labels + RNG.normal(0, 0.2, n), 0, 1), 2)
    return [
        Prediction(
            item=str(index), concept=f"k/{index % 7}", category="k", options=YES_NO, expected=0 if label else 1,
            answered=0 if p > 0.5 else 1, probabilities=(float(p), float(1 - p)), captured_mass=1.0,
            tags={"mode": "description", "negatives": "none" if label else "hard"},
        )
        for index, (label, p) in enumerate(zip(labels, probabilities, strict=True))
    ]  # fmt: skip


def test_recognition_is_what_scikit_learn_says() -> None:
    items = answers(400)
    ours = {m.name: m.value for m in recognition.aggregate(items, StatisticsConfig(resamples=100))}
    truth = [p.expected == 0 for p in items]
    said, scores = [p.answered == 0 for p in items], [p.probabilities[0] for p in items]
    assert ours["f1"] == pytest.approx(theirs.f1_score(truth, said))
    assert ours["precision"] == pytest.approx(theirs.precision_score(truth, said))
    assert ours["recall"] == pytest.approx(theirs.recall_score(truth, said))
    assert ours["weighted_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(truth, said))
    assert ours["accuracy"] == pytest.approx(theirs.accuracy_score(truth, said))
    assert ours["auc"] == pytest.approx(theirs.roc_auc_score(truth, scores))  # scores have ties: two digits


def test_the_calibration_error_is_the_gap_of_the_reliability_curve() -> None:
    items = answers(400)
    scores = np.array([p.probabilities[0] for p in items])
    truth = np.array([p.expected == 0 for p in items])
    gaps = [
        abs(scores[chosen].mean() - truth[chosen].mean()) * chosen.mean()
        for bin_ in range(ECE_BINS)
        if (chosen := metrics.calibration_bins(scores) == bin_).any()
    ]
    ours = {m.name: m.value for m in recognition.aggregate(items, StatisticsConfig(resamples=100))}
    assert ours["ece"] == pytest.approx(sum(gaps))


def test_rank_and_entropy_are_those_of_scipy_and_scikit_learn() -> None:
    scores = RNG.permutation(20).astype(float)
    for index in range(20):
        relevant = [[place == index for place in range(20)]]
        expected = theirs.label_ranking_average_precision_score(relevant, [scores])  # 1 / rank with one right answer
        assert 1 / metrics.rank_of(scores.tolist(), index) == pytest.approx(expected)
    probabilities = RNG.dirichlet(np.ones(6))
    assert metrics.entropy(probabilities.tolist()) == pytest.approx(stats.entropy(probabilities))
    assert metrics.softmax(scores.tolist()) == pytest.approx(softmax(scores).tolist())

"""McNemar and Holm by hand, and against scipy; several seeds put together by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.compare import compare_speakers
from lewis_core.evaluation.records import Comparison, SeedSummary
from lewis_core.evaluation.seeds import aggregate_seeds
from lewis_core.evaluation.significance import holm, mcnemar_p
from lewis_core.records import load_record
from lewis_core.testing import make_predictions as predictions
from lewis_core.testing import publish_evaluation as publish

CONCEPTS = [f"k/{index}" for index in range(4)]
CONFIG = StatisticsConfig(resamples=500)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(0, 0, 1.0, id="never-differ"),
        pytest.param(0, 4, 2 / 16, id="one-side"),  # 2 · C(4,0) / 2⁴
        pytest.param(1, 4, 12 / 32, id="uneven"),  # 2 · (C(5,0) + C(5,1)) / 2⁵
        pytest.param(3, 3, 1.0, id="even-is-capped"),  # 2 · 42/64 > 1
    ],
)
def test_mcnemar_by_hand(first: int, second: int, expected: float) -> None:
    assert mcnemar_p(first, second) == pytest.approx(expected)
    assert mcnemar_p(second, first) == pytest.approx(expected)


def test_mcnemar_is_the_binomial_test() -> None:
    for first, second in ((2, 9), (40, 75), (1000, 1100)):
        expected = stats.binomtest(first, first + second).pvalue
        assert mcnemar_p(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="-1"):
        mcnemar_p(-1, 2)


def test_holm_by_hand() -> None:
    # sorted: .01 · 4 = .04; .02 · 3 = .06; .03 · 2 = .06; .5 · 1 = .5
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    # .04 · 2 = .08, and .05 · 1 is raised to it
    assert holm([0.05, 0.04]) == pytest.approx([0.08, 0.08])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_comparison_counts_who_was_right_alone_and_corrects_for_its_tests(tmp_path: Path) -> None:
    wrong, right = dict.fromkeys(CONCEPTS, False), dict.fromkeys(CONCEPTS, True)
    mixed = {name: index > 0 for index, name in enumerate(CONCEPTS)}
    before = [publish(tmp_path, "base", predictions(wrong | {CONCEPTS[0]: True}), answering="listener")]
    before += [publish(tmp_path, "base", predictions(wrong), answering="independent")]
    after = [publish(tmp_path, "new", predictions(mixed), answering="listener")]
    after += [publish(tmp_path, "new", predictions(right), answering="independent")]
    compare_speakers(before, after, tmp_path, CONFIG)
    tests = {test.answering: test for test in load_record(tmp_path / "comparison.json", Comparison).tests}
    one, other = tests["listener"], tests["independent"]
    assert (one.only_baseline, one.only_other, other.only_baseline, other.only_other) == (1, 3, 0, 4)
    assert (one.p_mcnemar, other.p_mcnemar) == (pytest.approx(10 / 16), pytest.approx(2 / 16))
    # independent: p = 2/16, times 2 tests; listener: |sum of ±1| >= 2 in all patterns but C(4,2) = 6 of 16
    assert (other.p_value, other.p_holm) == (pytest.approx(2 / 16), pytest.approx(4 / 16))
    assert (one.p_value, one.p_holm) == (pytest.approx(10 / 16), pytest.approx(10 / 16))


def test_seeds_are_averaged_and_their_spread_is_told(tmp_path: Path) -> None:
    shares = {"seed-0": 4, "seed-1": 2, "seed-2": 3}  # of four concepts right: 1, .5, .75
    refs = [
        publish(tmp_path, name, predictions({c: index < right for index, c in enumerate(CONCEPTS)}))
        for name, right in shares.items()
    ]
    summary = aggregate_seeds("ours", refs, tmp_path, CONFIG)
    seeds = load_record(tmp_path / "seeds.json", SeedSummary)
    [metric] = seeds.metrics
    assert (seeds.group, seeds.speakers, metric.values) == ("ours", ("seed-0", "seed-1", "seed-2"), (1.0, 0.5, 0.75))
    assert (metric.mean, metric.deviation) == (0.75, pytest.approx(0.25))  # √((.25² + .25² + 0) / 2)
    assert summary["metrics"]["game/listener/accuracy"] == {"mean": 0.75, "deviation": pytest.approx(0.25)}
    assert metric.low is not None and metric.high is not None
    assert metric.low_seeds is not None and metric.high_seeds is not None
    assert metric.low <= 0.75 <= metric.high
    assert metric.high_seeds - metric.low_seeds >= metric.high - metric.low  # seeds are drawn as well
    assert (metric.n, metric.concepts) == (4, 4)


def test_the_interval_over_concepts_is_the_bootstrap_of_the_mean(tmp_path: Path) -> None:
    refs = [
        publish(tmp_path, name, predictions({c: index % 2 == turn for index, c in enumerate(CONCEPTS)}))
        for turn, name in enumerate(("even", "odd"))
    ]
    aggregate_seeds("mirror", refs, tmp_path, CONFIG)
    [metric] = load_record(tmp_path / "seeds.json", SeedSummary).metrics
    # each concept is right for one of the two: the mean is ½ whatever is drawn, so the exact bound is used instead
    reach = 1 - 0.025 ** (1 / 4)
    assert (metric.low, metric.high) == (pytest.approx(max(0.0, 0.5 - reach)), pytest.approx(min(1.0, 0.5 + reach)))
    assert np.ptp(metric.values) == 0


def test_seeds_asked_differently_are_refused(tmp_path: Path) -> None:
    one = publish(tmp_path, "seed-0", predictions(dict.fromkeys(CONCEPTS, True)))
    less = publish(tmp_path, "seed-1", predictions(dict.fromkeys(CONCEPTS[:3], True)))
    vqa = publish(tmp_path, "seed-1", predictions(dict.fromkeys(CONCEPTS, True)), evaluation="vqa")
    with pytest.raises(EvaluationError, match="two speakers or more, found \\['seed-0'\\]"):
        aggregate_seeds("ours", [one], tmp_path, CONFIG)
    with pytest.raises(EvaluationError, match="1 items of 4 differ"):
        aggregate_seeds("ours", [one, less], tmp_path, CONFIG)
    with pytest.raises(EvaluationError, match="seed-1 was not evaluated like the first"):
        aggregate_seeds("ours", [one, vqa], tmp_path, CONFIG)

"""Intervals and paired tests: concepts are the units, and the numbers can be checked by hand."""

import numpy as np
import pytest

from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import metrics
from lewis_core.evaluation.statistics import (
    auc_measure,
    bootstrap,
    compare_measures,
    draw_concepts,
    first_by_second,
    formula_measure,
    mean_measure,
    point,
    sign_patterns,
    summarise,
)

CONFIG = StatisticsConfig(resamples=2000)


def measure(values: dict[str, list[float]]):
    return mean_measure([(concept, value) for concept, items in values.items() for value in items])


def test_a_mean_counts_items() -> None:
    mean = measure({"a": [1, 1, 1, 0], "b": [0]})
    assert mean.n == 5
    assert point(mean) == pytest.approx(3 / 5)
    assert point(mean_measure([])) is None


def test_weights_draw_whole_concepts() -> None:
    mean = measure({"a": [1, 1, 1, 0], "b": [0]})
    # a twice: 6/8; b twice: 0/2; a once and b three times: 3/7
    np.testing.assert_allclose(mean.evaluate(np.array([[2.0, 0], [0, 2], [1, 3]])), [6 / 8, 0, 3 / 7])


def test_resamples_draw_as_many_concepts_as_there_are() -> None:
    weights = draw_concepts(7, CONFIG)
    assert weights.shape == (2000, 7)
    assert set(weights.sum(axis=1)) == {7}
    np.testing.assert_array_equal(weights, draw_concepts(7, CONFIG))
    assert (weights != draw_concepts(7, StatisticsConfig(seed=1))).any()


def test_the_interval_of_two_concepts_can_be_enumerated() -> None:
    # a is always right, b never: resamples are aa (1, a quarter), ab (½, a half), bb (0, a quarter)
    assert bootstrap(measure({"a": [1], "b": [0]}), CONFIG) == (0.0, 1.0)
    # 40 % coverage: the 30th to the 70th percentile lie within the half that is ab
    narrow = CONFIG.model_copy(update={"confidence": 0.4})
    assert bootstrap(measure({"a": [1], "b": [0]}), narrow) == (0.5, 0.5)


def test_items_of_one_concept_do_not_narrow_the_interval() -> None:
    few = {f"c{i}": [float(i % 2)] for i in range(20)}
    many = {concept: values * 100 for concept, values in few.items()}
    assert bootstrap(measure(few), CONFIG) == bootstrap(measure(many), CONFIG)
    low, high = bootstrap(measure(few), CONFIG)
    # standard error of a share of ½ over 20 concepts is √(.25 / 20) = .112, times 1.96 = .22
    assert low == pytest.approx(0.28, abs=0.05)
    assert high == pytest.approx(0.72, abs=0.05)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        pytest.param(1.0, 0.025 ** (1 / 30), 1.0, id="all-right"),  # 88 % to 100 %
        pytest.param(0.0, 0.0, 1 - 0.025 ** (1 / 30), id="all-wrong"),  # the rule of three: about 3.7 / 30
        pytest.param(5.0, 5.0, 5.0, id="a-count-has-no-such-bound"),
    ],
)
def test_equal_concepts_are_no_certainty(value: float, low: float, high: float) -> None:
    assert bootstrap(measure({f"c{i}": [value] for i in range(30)}), CONFIG) == pytest.approx((low, high))


def test_one_concept_has_no_interval_and_nothing_has_no_value() -> None:
    [alone, nothing] = summarise({"alone": measure({"a": [1, 0]}), "nothing": mean_measure([])}, CONFIG)
    assert (alone.value, alone.low, alone.high, alone.n) == (0.5, None, None, 2)
    assert (nothing.value, nothing.low, nothing.high, nothing.n) == (None, None, None, 0)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    config = StatisticsConfig(resamples=400)
    covered = 0
    for _ in range(300):
        shares = rng.beta(2, 2, size=30)  # concepts differ: mean .5
        values = {f"c{i:02d}": list((rng.random(5) < share).astype(float)) for i, share in enumerate(shares)}
        low, high = bootstrap(measure(values), config)
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 300 <= 0.99  # 95 % ± 3 standard errors of .0126


def share_of_won_pairs(scores: list[float], labels: list[bool]) -> float:
    """AUC by going through all pairs of a positive and a negative; a tie is half a win."""
    positives, negatives = (
        [s for s, label in zip(scores, labels, strict=True) if label is kind] for kind in (True, False)
    )
    won = [1.0 if mine > other else 0.5 if mine == other else 0.0 for mine in positives for other in negatives]
    return sum(won) / len(won)


def test_auc_of_one_class_is_missing_and_of_turned_scores_the_complement() -> None:
    scores, labels = [0.1, 0.9, 0.4, 0.35, 0.8], [False, True, False, True, False]
    # .9 beats all three, .35 beats .1 only: 4 of 6
    assert point(auc_measure("abcde", scores, labels)) == pytest.approx(4 / 6)
    assert point(auc_measure("abcde", [-score for score in scores], labels)) == pytest.approx(2 / 6)
    assert point(auc_measure("ab", [0.3, 0.4], [True, True])) is None


def test_auc_of_resampled_concepts_is_the_auc_of_the_resampled_items() -> None:
    rng = np.random.default_rng(1)
    concepts = [f"c{i}" for i in rng.integers(0, 4, 40)]
    scores, labels = list(np.round(rng.random(40), 1)), [bool(draw < 0.4) for draw in rng.random(40)]
    area = auc_measure(concepts, scores, labels)
    assert point(area) == pytest.approx(share_of_won_pairs(scores, labels))
    weights = np.array([[2.0, 0, 1, 3]])
    copies = [int(weights[0, area.names.index(concept)]) for concept in concepts]
    drawn = [index for index, count in enumerate(copies) for _ in range(count)]
    expected = share_of_won_pairs([scores[i] for i in drawn], [labels[i] for i in drawn])
    assert area.evaluate(weights)[0] == pytest.approx(expected)


def test_the_permutation_test_of_three_concepts_is_exact() -> None:
    before, after = measure({"a": [0], "b": [0], "c": [0]}), measure({"a": [1], "b": [1], "c": [1]})
    result = compare_measures(before, after, CONFIG)
    assert result is not None
    # of the 2³ = 8 swaps only +++ and --- reach |3/3|: p = 2/8
    assert (result.baseline, result.other, result.difference) == (0, 1, 1)
    assert result.p_value == pytest.approx(2 / 8)
    # no resample differs: the exact bound for three of three is .025^(1/3) = .292
    assert (result.low, result.high) == pytest.approx((0.025 ** (1 / 3), 1))


def test_the_permutation_test_weighs_concepts_by_their_summed_difference() -> None:
    # summed differences +2 (a, two items), -1 (b): mean +1/3 of an item;
    # swaps: +2-1=1, -2-1=-3, +2+1=3, -2+1=-1; |.| >= 1 in all four
    before, after = measure({"a": [0, 0], "b": [1]}), measure({"a": [1, 1], "b": [0]})
    result = compare_measures(before, after, CONFIG)
    assert result is not None
    assert result.difference == pytest.approx(1 / 3)
    assert result.p_value == 1.0


def test_no_difference_has_p_one_and_direction_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    one = measure({f"c{i:02d}": list(rng.integers(0, 2, 4).astype(float)) for i in range(30)})
    two = measure({f"c{i:02d}": list((rng.random(4) < 0.8).astype(float)) for i in range(30)})
    same = compare_measures(one, one, CONFIG)
    there, back = compare_measures(one, two, CONFIG), compare_measures(two, one, CONFIG)
    assert same is not None and there is not None and back is not None
    assert (same.p_value, same.difference) == (1.0, 0.0)
    reach = 1 - 0.025 ** (1 / 30)  # .116: thirty equal concepts do not prove that there is no difference
    assert (same.low, same.high) == pytest.approx((-reach, reach))
    assert there.p_value == back.p_value < 0.01
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.low <= there.difference <= there.high


def test_a_p_value_is_never_zero_and_is_uniform_without_a_difference() -> None:
    sure = compare_measures(
        measure({f"c{i:02d}": [0] for i in range(40)}), measure({f"c{i:02d}": [1] for i in range(40)}), CONFIG
    )
    assert sure is not None
    assert sure.p_value == pytest.approx(1 / 2001)  # the observed one counts as one of the permutations
    rng = np.random.default_rng(3)
    config = StatisticsConfig(resamples=200)
    p_values = []
    for _ in range(300):
        first, second = (measure({f"c{i:02d}": list(rng.normal(size=3)) for i in range(20)}) for _ in range(2))
        result = compare_measures(first, second, config)
        assert result is not None
        p_values.append(result.p_value)
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.038)  # 3 standard errors
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)


def test_few_concepts_try_all_patterns() -> None:
    assert sign_patterns(3, CONFIG).shape == (8, 3)
    assert len({tuple(row) for row in sign_patterns(3, CONFIG)}) == 8
    assert not sign_patterns(40, CONFIG)[0].any()


def test_swaps_recompute_formulas_that_are_no_means() -> None:
    def f1(totals: np.ndarray) -> np.ndarray:
        return metrics.f1(totals[..., 0], totals[..., 1], totals[..., 2])

    # (TP, FP, FN) of each concept: before F1 = 2/(2+0+1) = 2/3, after 4/4 = 1
    before = formula_measure(["a", "b"], [(1, 0, 0), (0, 0, 1)], f1)
    after = formula_measure(["a", "b"], [(1, 0, 0), (1, 0, 0)], f1)
    result = compare_measures(before, after, CONFIG)
    assert result is not None
    assert result.difference == pytest.approx(1 / 3)
    # a does not differ, so every swap leaves |1/3|
    assert result.p_value == 1.0


def test_other_concepts_are_refused_and_one_concept_is_no_sample() -> None:
    with pytest.raises(EvaluationError, match=r"\['b', 'c'\]"):
        compare_measures(measure({"a": [1], "b": [1]}), measure({"a": [1], "c": [1]}), CONFIG)
    assert compare_measures(measure({"a": [1]}), measure({"a": [0]}), CONFIG) is None
    undefined = formula_measure(["a", "b"], [(0, 0), (0, 0)], first_by_second)
    assert compare_measures(undefined, undefined, CONFIG) is None

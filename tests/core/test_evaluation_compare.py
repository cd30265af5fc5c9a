"""Comparisons: same items or none, and headline numbers only."""

from pathlib import Path

import pytest

from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.compare import compare_speakers
from lewis_core.evaluation.descriptions import DescriptionRow
from lewis_core.evaluation.records import Comparison
from lewis_core.records import load_record
from lewis_core.testing import make_predictions as predictions
from lewis_core.testing import publish_evaluation as publish

CONFIG = StatisticsConfig(resamples=500)


CONCEPTS = [f"k/{index}" for index in range(4)]


def test_a_paired_test_by_hand(tmp_path: Path) -> None:
    before = publish(tmp_path, "base", predictions(dict.fromkeys(CONCEPTS, False)))
    after = publish(tmp_path, "trained", predictions(dict.fromkeys(CONCEPTS, True)))
    summary = compare_speakers([before], [after], tmp_path, CONFIG)
    comparison = load_record(tmp_path / "comparison.json", Comparison)
    assert (comparison.baseline, comparison.speaker) == ("base", "trained")
    [test] = comparison.tests
    assert (test.metric, test.baseline, test.other, test.difference) == ("accuracy", 0, 1, 1)
    assert test.p_value == pytest.approx(2 / 16)  # all 2⁴ swaps; only none and all of them reach 1
    assert (test.n, test.concepts) == (4, 4)
    assert summary["tests"]["game/listener/accuracy"]["difference"] == 1


def test_silence_is_compared_as_wrong(tmp_path: Path) -> None:
    before = publish(tmp_path, "base", predictions(dict.fromkeys(CONCEPTS, True)))
    silent = publish(tmp_path, "mute", predictions(dict.fromkeys(CONCEPTS, True), error="no description: x"))
    compare_speakers([before], [silent], tmp_path, CONFIG)
    [test] = load_record(tmp_path / "comparison.json", Comparison).tests
    assert test.difference == -1


def test_evaluations_are_matched_by_name_and_model_in_any_order(tmp_path: Path) -> None:
    right, wrong = dict.fromkeys(CONCEPTS, True), dict.fromkeys(CONCEPTS, False)
    before = [publish(tmp_path, "base", predictions(wrong), answering=name) for name in ("listener", "independent")]
    after = [
        publish(tmp_path, "trained", predictions(right), answering="independent"),
        publish(tmp_path, "trained", predictions(wrong), answering="listener"),
    ]
    compare_speakers(before, after, tmp_path, CONFIG)
    tests = load_record(tmp_path / "comparison.json", Comparison).tests
    assert {test.answering: test.difference for test in tests} == {"listener": 0, "independent": 1}


def test_other_items_are_refused_by_name(tmp_path: Path) -> None:
    before = publish(tmp_path, "base", predictions(dict.fromkeys(CONCEPTS, True)))
    after = publish(tmp_path, "trained", predictions(dict.fromkeys(CONCEPTS[:3], True)))
    with pytest.raises(EvaluationError, match=r"1 items of 4 differ, e\.g\. 'item-k/3'"):
        compare_speakers([before], [after], tmp_path, CONFIG)


def test_other_evaluations_and_mixed_speakers_are_refused(tmp_path: Path) -> None:
    right = predictions(dict.fromkeys(CONCEPTS, True))
    base, vqa = publish(tmp_path, "base", right), publish(tmp_path, "trained", right, evaluation="vqa")
    trained = publish(tmp_path, "trained", right)
    with pytest.raises(EvaluationError, match=r"not evaluated alike, only one has: .*vqa"):
        compare_speakers([base], [trained, vqa], tmp_path, CONFIG)
    with pytest.raises(EvaluationError, match=r"of one speaker, found those of \['base', 'trained'\]"):
        compare_speakers([base, vqa], [trained], tmp_path, CONFIG)
    with pytest.raises(EvaluationError, match="given twice"):
        compare_speakers([base, base], [trained], tmp_path, CONFIG)
    with pytest.raises(EvaluationError, match="found those of none"):
        compare_speakers([], [trained], tmp_path, CONFIG)


def test_mentions_are_compared_where_both_speakers_wrote(tmp_path: Path) -> None:
    def rows(state: list[bool | None]) -> list[DescriptionRow]:
        return [
            DescriptionRow(
                item=concept, concept=concept, category="k", text="", error=None, state=value, location=value,
                words=None if value is None else 3,
            )
            for concept, value in zip(CONCEPTS, state, strict=True)
        ]  # fmt: skip

    before = publish(tmp_path, "base", rows([True, True, True, None]), "descriptions", "")
    after = publish(tmp_path, "trained", rows([False, False, None, True]), "descriptions", "")
    compare_speakers([before], [after], tmp_path, CONFIG)
    tests = {test.metric: test for test in load_record(tmp_path / "comparison.json", Comparison).tests}
    assert set(tests) == {"state_rate", "location_rate"}
    assert (tests["state_rate"].difference, tests["state_rate"].n) == (-1, 2)
    assert tests["state_rate"].p_value == pytest.approx(2 / 4)

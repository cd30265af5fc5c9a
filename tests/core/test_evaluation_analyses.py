"""Uncertainty and examples, with every number worked out by hand."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.analyses import ExamplesConfig, UncertaintyConfig
from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation.analyses.examples import Examples, find_examples
from lewis_core.evaluation.analyses.uncertainty import (
    MAX_POINTS,
    Uncertainty,
    analyse_uncertainty,
    read_answers,
    roc_points,
    selective_accuracy,
    spread,
)
from lewis_core.evaluation.records import EvaluationResult, Prediction
from lewis_core.testing import make_catalog, make_database, publish_files

STATISTICS = StatisticsConfig(resamples=200)
CATALOG = make_catalog({"mug": 3})
A, B, C = (concept.id for concept in CATALOG.concepts)


def predict(item: str, concept: str, expected: int, answered: int | None, *belief: float, **more: object) -> Prediction:
    return Prediction.model_validate(
        {
            "item": item, "concept": concept, "category": "cat-mug", "options": ("yes", "no"), "expected": expected,
            "answered": answered, "probabilities": belief, "tags": {"mode": "m"}, **more,
        }
    )  # fmt: skip


def publish(root: Path, speaker: str, *predictions: Prediction, answering: str = "listener") -> ArtifactRef:
    result = EvaluationResult(evaluation="vqa", speaker=speaker, answering=answering, metrics=())
    lines = "".join(prediction.model_dump_json() + "\n" for prediction in predictions)
    return publish_files(root, "evaluate-vqa", {"metrics.json": result.model_dump_json(), "predictions.jsonl": lines})


SURE, HALF = (0.999, 0.001), (0.5, 0.5)
ANSWERS = (
    predict("1", A, 0, 0, *SURE),
    predict("2", A, 1, 0, *HALF),
    predict("3", B, 0, 0, 0.8, 0.2),
    predict("4", B, 1, 0, 0.9, 0.1),
    predict("5", C, 0, None, 0.6, 0.4),  # invalid
    predict("6", C, 0, None, error="no description"),
    predict("7", C, 0, 0, 1.0, options=("only",)),
)


def test_uncertainty_by_hand(tmp_path: Path) -> None:
    ref = publish(tmp_path, "base", *ANSWERS)
    config = UncertaintyConfig(low_entropy=0.05, listed=1)
    summary = analyse_uncertainty([ref], tmp_path, config, STATISTICS)
    [found] = [Uncertainty.model_validate(one) for one in json.loads((tmp_path / "uncertainty.json").read_text())]
    assert (found.n, found.left_out, found.accuracy) == (4, 3, 0.5)
    # wrong answers have entropies 1 and .47, right ones .01 and .72: 3 of 4 pairs are in order; so are the margins
    assert [metric.value for metric in found.metrics] == [0.75, 0.75]
    assert summary == {"error_auc_entropy": {"base/vqa/listener/m": 0.75}}
    assert found.counts == {"right_certain": 1, "right_uncertain": 1, "wrong_certain": 0, "wrong_uncertain": 2}
    assert found.roc == ((0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1))
    share = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2)
    assert [m.item for m in found.certain_mistakes] == ["4"]
    assert found.certain_mistakes[0].entropy == pytest.approx(share)
    assert (found.certain_mistakes[0].answered, found.certain_mistakes[0].expected) == ("yes", "no")
    assert [m.item for m in found.uncertain_mistakes] == ["2"]
    # in the order of entropy: right, wrong, right, wrong
    assert found.selective_accuracy == {"0.25": 1, "0.5": 0.5, "0.75": pytest.approx(2 / 3), "1": 0.5}
    margins = found.spreads["margin"]
    assert (margins["right"].mean, margins["wrong"].max) == (pytest.approx((0.998 + 0.6) / 2), pytest.approx(0.8))


def test_log_odds_are_compared_by_softmax() -> None:
    options = ("a", "b", "c")
    [answer] = read_answers([predict("g", A, 0, 0, 0.9, 0.9, 0.1, options=options, scores=(2.0, 2.0, -50.0))])
    assert answer.entropy == pytest.approx(math.log(2) / math.log(3))
    assert answer.margin == pytest.approx(0)
    assert answer.top == pytest.approx(0.5)


def test_the_roc_curve_is_scikit_learn_s() -> None:
    scores = [((7 * i) % 11) / 11 for i in range(40)]
    labels = [(5 * i) % 3 == 0 for i in range(40)]
    points = roc_points(scores, labels)
    alarms, found, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert points == [(pytest.approx(x), pytest.approx(y)) for x, y in zip(alarms, found, strict=True)]
    area = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in pairwise(points))
    assert area == pytest.approx(roc_auc_score(labels, scores))
    assert roc_points([1, 2], [True, True]) == []
    many = roc_points([i / 500 for i in range(500)], [i % 2 == 0 for i in range(500)])
    assert (len(many), many[0], many[-1]) == (MAX_POINTS, (0, 0), (1, 1))


def test_spreads_and_ties() -> None:
    found = spread([1.0, 2.0, 3.0, 4.0])
    assert (found.mean, found.median, found.p25, found.p75, found.std) == (
        2.5,
        2.5,
        1.75,
        3.25,
        pytest.approx(1.25**0.5),
    )
    assert spread([]).mean is None
    tied = read_answers([predict("r", A, 0, 0, *HALF), predict("w", A, 1, 0, *HALF)])
    assert selective_accuracy(tied, 0.5) == 0  # of equally certain answers the wrong one counts first
    assert selective_accuracy([], 0.5) is None


def test_no_evaluation_or_the_same_twice_is_an_error(tmp_path: Path) -> None:
    ref = publish(tmp_path, "base", *ANSWERS)
    with pytest.raises(EvaluationError, match="base vqa listener is given twice"):
        analyse_uncertainty([ref, ref], tmp_path, UncertaintyConfig(), STATISTICS)
    texts = publish_files(tmp_path, "evaluate-descriptions", {"metrics.json": ref.file("metrics.json").read_text()})
    with pytest.raises(EvaluationError, match="nothing to analyse"):
        analyse_uncertainty([texts], tmp_path, UncertaintyConfig(), STATISTICS)


def databases(root: Path) -> list[ArtifactRef]:
    found = []
    for speaker in ("base", "trained"):
        texts: dict[str, str | None] = {key: f"{speaker} on {key}." for key in (A, B, C)}
        database = make_database(CATALOG, texts, speaker)
        found.append(publish_files(root, "describe-concepts", {"database.json": database.model_dump_json()}))
    return found


def test_examples_by_hand(tmp_path: Path) -> None:
    baseline = publish(
        tmp_path, "base",
        predict("a1", A, 0, 1, 0.1, 0.9), predict("a2", A, 0, 1, 0.4, 0.6), predict("b1", B, 0, 1, 0.3, 0.7),
        predict("b2", B, 1, 1, 0.2, 0.8), predict("c1", C, 0, None, error="no description"),
        predict("c2", C, 0, 0, *SURE),
    )  # fmt: skip
    other = publish(
        tmp_path, "trained",
        predict("a1", A, 0, 0, 0.9, 0.1), predict("a2", A, 0, 0, 0.8, 0.2), predict("b1", B, 0, 0, 0.6, 0.4),
        predict("b2", B, 1, 0, 0.7, 0.3), predict("c1", C, 0, 0, 0.6, 0.4), predict("c2", C, 0, 0, *SURE),
        predict("new", C, 0, 0, *SURE),
    )  # fmt: skip
    summary = find_examples([baseline], [other], *databases(tmp_path), tmp_path, ExamplesConfig(listed=3))
    [found] = [Examples.model_validate(one) for one in json.loads((tmp_path / "examples.json").read_text())]
    assert (found.both_right, found.speaker_only, found.baseline_only, found.neither) == (1, 4, 1, 0)
    assert summary == {"vqa/listener/m": {"speaker_only": 4, "baseline_only": 1}}
    # gains: a1 .8, c1 .6 (nothing before), a2 .4, b1 .3; concepts take turns, so a2 comes after the others' first
    assert [example.item for example in found.wins] == ["a1", "c1", "b1"]
    first, silent = found.wins[0], found.wins[1]
    assert (first.probability, first.other_probability) == (0.9, 0.1)
    assert (first.expected, first.other_answered) == ("yes", "no")
    assert first.text.endswith(f"trained on {A}.")
    assert first.other_text.endswith(f"base on {A}.")
    assert (silent.other_probability, silent.other_answered) == (None, None)
    assert [(example.item, example.other_answered) for example in found.losses] == [("b2", "yes")]


def test_speakers_that_share_nothing_are_named(tmp_path: Path) -> None:
    one, other = publish(tmp_path, "base", ANSWERS[0]), publish(tmp_path, "trained", ANSWERS[1])
    with pytest.raises(EvaluationError, match="vqa m: base and trained share no item"):
        find_examples([one], [other], *databases(tmp_path), tmp_path, ExamplesConfig())
    alone = publish(tmp_path, "trained", ANSWERS[1], answering="independent")
    with pytest.raises(EvaluationError, match="share no evaluation"):
        find_examples([one], [alone], *databases(tmp_path), tmp_path, ExamplesConfig())

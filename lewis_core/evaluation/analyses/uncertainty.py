"""Does the model know when it is wrong? Entropy and margin of its answers against their correctness.

Entropy is a share of the greatest possible, ln K for K options, so that questions with few and with many options can be
put together. Items that failed, invalid answers and questions with one option are left out and counted.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.analyses import UncertaintyConfig
from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.evaluation.analyses.load import Evaluation, distribution, load_evaluations, mode_of
from lewis_core.evaluation.metrics import entropy, margin
from lewis_core.evaluation.records import Metric, Prediction
from lewis_core.evaluation.statistics import auc_measure, summarise
from lewis_core.records import JsonObject, Record

FILE = "uncertainty.json"
MAX_POINTS = 101
"""Points of a curve."""
COVERAGES = (0.25, 0.5, 0.75, 1.0)


class Spread(Record):
    """How numbers are spread; all ``None`` when there are none."""

    count: int
    mean: float | None = None
    std: float | None = None
    """Of the numbers themselves (divided by their count)."""
    median: float | None = None
    min: float | None = None
    max: float | None = None
    p25: float | None = None
    p75: float | None = None
    p95: float | None = None


class Mistake(Record):
    """A wrong answer and how sure the model was of it."""

    item: str
    concept: str
    image: str | None
    answered: str
    expected: str | None
    entropy: float
    margin: float


class Uncertainty(Record):
    """One evaluation of one speaker, in one mode."""

    speaker: str
    evaluation: str
    answering: str
    mode: str
    n: int
    """Answers that were looked at."""
    left_out: int
    """Failed items, invalid answers, questions with one option."""
    accuracy: float | None
    metrics: tuple[Metric, ...]
    """``error_auc_entropy`` and ``error_auc_margin``: how well entropy, and lack of margin, tell wrong answers from
    right ones; chance 0.5; intervals by concept."""
    roc: tuple[tuple[float, float], ...]
    """Points of the ROC curve of entropy: share of right answers, share of wrong answers above a threshold."""
    spreads: dict[str, dict[str, Spread]]
    """``entropy``, ``margin``, ``top_probability`` → ``right``, ``wrong``."""
    counts: dict[str, int]
    """``right_certain``, ``right_uncertain``, ``wrong_certain``, ``wrong_uncertain``."""
    selective_accuracy: dict[str, float | None]
    """Accuracy on the most certain share of the answers, by share."""
    certain_mistakes: tuple[Mistake, ...]
    uncertain_mistakes: tuple[Mistake, ...]


class Answered(NamedTuple):
    """A valid answer."""

    prediction: Prediction
    entropy: float
    """Share of the greatest possible, in [0, 1]."""
    margin: float
    top: float
    """Probability of the answer that was most likely."""

    @property
    def is_wrong(self) -> bool:
        """Whether it is not the right one."""
        return not self.prediction.is_correct


def analyse_uncertainty(
    evaluations: list[ArtifactRef], output_dir: Path, config: UncertaintyConfig, statistics: StatisticsConfig
) -> JsonObject:
    """Measure how well entropy and margin predict mistakes.

    Args:
        evaluations: Evaluations of any speakers.
        output_dir: Receives ``uncertainty.json``: a list of :class:`Uncertainty`.
        config: What is certain, and how many mistakes are listed.
        statistics: Intervals.

    Returns:
        AUC of entropy by speaker, evaluation and mode.

    Raises:
        EvaluationError: If none of the evaluations has predictions.
    """
    found = [
        describe_uncertainty(evaluation, mode, config, statistics)
        for evaluation in load_evaluations(evaluations)
        for mode in sorted({mode_of(prediction) for prediction in evaluation.predictions})
    ]
    content = [one.model_dump(mode="json") for one in found]
    (output_dir / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    names = ["/".join(filter(None, (one.speaker, one.evaluation, one.answering, one.mode))) for one in found]
    return {"error_auc_entropy": {name: one.metrics[0].value for name, one in zip(names, found, strict=True)}}


def describe_uncertainty(
    evaluation: Evaluation, mode: str, config: UncertaintyConfig, statistics: StatisticsConfig
) -> Uncertainty:
    """Analyse one mode of an evaluation."""
    predictions = [prediction for prediction in evaluation.predictions if mode_of(prediction) == mode]
    answers = read_answers(predictions)
    wrong = [answer for answer in answers if answer.is_wrong]
    by_entropy = sorted(wrong, key=lambda answer: (answer.entropy, answer.prediction.item))
    return Uncertainty(
        speaker=evaluation.result.speaker,
        evaluation=evaluation.result.evaluation,
        answering=evaluation.result.answering,
        mode=mode,
        n=len(answers),
        left_out=len(predictions) - len(answers),
        accuracy=1 - len(wrong) / len(answers) if answers else None,
        metrics=error_metrics(answers, statistics),
        roc=tuple(roc_points([a.entropy for a in answers], [a.is_wrong for a in answers])),
        spreads=spreads(answers),
        counts=count_certain(answers, config.low_entropy),
        selective_accuracy={f"{share:g}": selective_accuracy(answers, share) for share in COVERAGES},
        certain_mistakes=tuple(map(_mistake, by_entropy[: config.listed])),
        uncertain_mistakes=tuple(map(_mistake, by_entropy[::-1][: config.listed])),
    )


def read_answers(predictions: Sequence[Prediction]) -> list[Answered]:
    """Keep valid answers among two or more options, with their entropy and margin."""
    answers = []
    for prediction in predictions:
        belief = distribution(prediction)
        if prediction.error is None and prediction.answered is not None and len(belief) > 1:
            share = min(entropy(belief) / math.log(len(belief)), 1.0)
            answers.append(Answered(prediction, share, margin(belief), max(belief)))
    return answers


def error_metrics(answers: Sequence[Answered], statistics: StatisticsConfig) -> tuple[Metric, ...]:
    """AUC of entropy and of lack of margin as predictors of mistakes."""
    concepts = [answer.prediction.concept for answer in answers]
    wrong = [answer.is_wrong for answer in answers]
    measures = {
        "error_auc_entropy": auc_measure(concepts, [answer.entropy for answer in answers], wrong),
        "error_auc_margin": auc_measure(concepts, [-answer.margin for answer in answers], wrong),
    }
    note = f"{sum(wrong)} wrong of {len(wrong)} answers; chance 0.50"
    return summarise(measures, statistics, dict.fromkeys(measures, note))


def roc_points(scores: Sequence[float], labels: Sequence[bool]) -> list[tuple[float, float]]:
    """Points of a ROC curve, from (0, 0) to (1, 1); equal scores make one point.

    Args:
        scores: High for what is to be found.
        labels: Whether it is to be found.

    Returns:
        (share of others above the threshold, share of the sought above it), at most :data:`MAX_POINTS`; none if there
        is nothing to find or nothing else.
    """
    positives, negatives = sum(labels), len(labels) - sum(labels)
    if not positives or not negatives:
        return []
    points, found, alarms = [(0.0, 0.0)], 0, 0
    ordered = sorted(zip(scores, labels, strict=True), reverse=True)
    for index, (score, label) in enumerate(ordered):
        found, alarms = found + label, alarms + (not label)
        if index + 1 == len(ordered) or ordered[index + 1][0] != score:
            points.append((alarms / negatives, found / positives))
    if len(points) <= MAX_POINTS:
        return points
    return [points[round(place)] for place in np.linspace(0, len(points) - 1, MAX_POINTS)]


def spreads(answers: Sequence[Answered]) -> dict[str, dict[str, Spread]]:
    """Spread of entropy, margin and top probability for right and for wrong answers."""
    parts = {
        "right": [answer for answer in answers if not answer.is_wrong],
        "wrong": [answer for answer in answers if answer.is_wrong],
    }
    return {
        name: {part: spread([answer[place] for answer in some]) for part, some in parts.items()}  # type: ignore[misc]
        for place, name in enumerate(("entropy", "margin", "top_probability"), 1)
    }


def spread(values: Sequence[float]) -> Spread:
    """Describe numbers; quantiles are interpolated linearly."""
    if not values:
        return Spread(count=0)
    p25, median, p75, p95 = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75, 0.95]))
    return Spread(
        count=len(values),
        mean=float(np.mean(values)),
        std=float(np.std(values)),
        median=median,
        min=min(values),
        max=max(values),
        p25=p25,
        p75=p75,
        p95=p95,
    )


def count_certain(answers: Sequence[Answered], low_entropy: float) -> dict[str, int]:
    """Count right and wrong answers, certain and uncertain ones."""
    names = [
        f"{'wrong' if answer.is_wrong else 'right'}_{'certain' if answer.entropy < low_entropy else 'uncertain'}"
        for answer in answers
    ]
    return {
        name: names.count(name) for name in ("right_certain", "right_uncertain", "wrong_certain", "wrong_uncertain")
    }


def selective_accuracy(answers: Sequence[Answered], share: float) -> float | None:
    """Accuracy on the most certain answers; of equally certain ones, wrong ones come first.

    Args:
        answers: Valid answers.
        share: How many of them, in (0, 1]; rounded up.
    """
    ordered = sorted(answers, key=lambda answer: (answer.entropy, not answer.is_wrong))
    kept = ordered[: math.ceil(share * len(ordered))]
    return sum(not answer.is_wrong for answer in kept) / len(kept) if kept else None


def _mistake(answer: Answered) -> Mistake:
    one = answer.prediction
    return Mistake(
        item=one.item,
        concept=one.concept,
        image=one.image,
        answered=one.options[one.answered or 0],
        expected=None if one.expected is None else one.options[one.expected],
        entropy=answer.entropy,
        margin=answer.margin,
    )

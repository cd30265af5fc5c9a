"""What the numbers say in words: better than guessing or not, and what makes them unbelievable.

A broken model (always the same answer, random answers, no difference between the options) gets numbers at the chance
level; here it also gets a sentence that says so. Everything is computed from predictions, with concepts as units.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.evaluation import metrics
from lewis_core.evaluation.records import EvaluationName, Prediction
from lewis_core.evaluation.statistics import (
    TOLERANCE,
    Floats,
    Measure,
    bootstrap,
    formula_measure,
    mean_measure,
    point,
)
from lewis_core.models.answers import YES_NO
from lewis_core.prompts import LETTERS

EASY = "easy"
"""Negatives of other categories are told by the question's category word; they are no leak."""
CONSTANT = 0.9
"""From this share on, an answer is given whatever is right."""
MANY_INVALID = 0.1
MANY_TIES = 0.5
CHOSEN_BY_SCORE = ("", "ranking")
"""Modes in which options are scored one by one: no position can be preferred, but all may score the same."""
KNOWS_NOTHING = {
    "identification": ("no_description", "wrong_description", "no_image"),
    "recognition": ("no_description", "wrong_description", "no_image"),
    "vqa": ("blind",),
}
"""Control arms of each evaluation that lack what is needed to answer: right answers need a leak."""


class Judgement(NamedTuple):
    """The result in words."""

    verdict: str
    """One phrase for each kind of question, joined by semicolons."""
    warnings: tuple[str, ...]


def judge(
    evaluation: EvaluationName,
    predictions: Sequence[Prediction],
    controls: Sequence[Prediction],
    config: StatisticsConfig,
) -> Judgement:
    """Say whether answers are better than guessing, and what is wrong with them.

    Args:
        evaluation: Which evaluation it is.
        predictions: Its items.
        controls: Its control arms.
        config: Intervals.
    """
    phrases, warnings = [], []
    for mode, items in by_mode(predictions).items():
        asked = [item for item in items if item.error is None]
        if not asked:
            continue
        name = mode.replace("_", " ") or evaluation
        phrases.append(f"{name}: {compare_with_chance(asked, config)}")
        warnings += [f"{name}: {text}" for text in _habits(mode, asked)]
    for mode, items in by_mode(controls).items():
        asked = [item for item in items if item.error is None and item.tags.get("negatives") != EASY]
        if mode in KNOWS_NOTHING.get(evaluation, ()) and asked and _advantage_interval(asked, config)[0] > TOLERANCE:
            text = compare_with_chance(asked, config)
            warnings.append(
                f"control arm {mode.replace('_', ' ')}: {text}; something else than the memory gives it away"
            )
        if asked and (text := _many_invalid(asked)):
            warnings.append(f"control arm {mode.replace('_', ' ')}: {text}")
    return Judgement("; ".join(phrases), (*warnings, *_failures(predictions)))


def by_mode(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Group predictions by the way of asking; empty for evaluations that have one way only."""
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(prediction.tags.get("mode", ""), []).append(prediction)
    return groups


def compare_with_chance(asked: Sequence[Prediction], config: StatisticsConfig) -> str:
    """Put accuracy and the chance level into words: above, below, or not to be told apart."""
    value, chance = _levels(asked)
    if value is None:
        return "cannot be judged: only one of yes and no is ever right"
    low, high = _advantage_interval(asked, config)
    numbers = f"{value:.2f} against {chance:.2f} by chance"
    if np.isnan(low):
        return f"{numbers}, too few concepts to tell"
    if low > TOLERANCE:
        return f"better than chance ({numbers})"
    if high < -TOLERANCE:
        return f"worse than chance ({numbers})"
    return f"not distinguishable from chance ({numbers})"


def advantage(asked: Sequence[Prediction]) -> Measure:
    """Build accuracy minus the chance level; for yes or no, the mean of the accuracies on both, minus a half."""
    concepts = [prediction.concept for prediction in asked]
    if not _is_yes_no(asked):
        return mean_measure([(p.concept, float(p.is_correct) - chance_of(p)) for p in asked])
    rows = [
        (p.is_correct and p.expected == 0, p.expected == 0, p.is_correct and p.expected == 1, p.expected == 1)
        for p in asked
    ]
    return formula_measure(concepts, rows, _balanced_advantage)


def chance_of(prediction: Prediction) -> float:
    """Probability that a guess among the options is right."""
    return 0.0 if prediction.expected is None or not prediction.options else 1 / len(prediction.options)


def _is_yes_no(asked: Sequence[Prediction]) -> bool:
    return all(prediction.options == YES_NO and "negatives" in prediction.tags for prediction in asked)


def _balanced_advantage(totals: Floats) -> Floats:
    return metrics.balanced_accuracy(*np.moveaxis(totals, -1, 0)) - 0.5


def _levels(asked: Sequence[Prediction]) -> tuple[float | None, float]:
    """Accuracy and chance level."""
    gain = point(advantage(asked))
    chance = 0.5 if _is_yes_no(asked) else sum(map(chance_of, asked)) / len(asked)
    return None if gain is None else max(0.0, gain + chance), chance


def _advantage_interval(asked: Sequence[Prediction], config: StatisticsConfig) -> tuple[float, float]:
    """Ends of the interval of accuracy minus chance; NaN when there is none."""
    low, high = bootstrap(advantage(asked), config, limits=(-1.0, 1.0))
    return (float("nan"), float("nan")) if low is None or high is None else (low, high)


def _habits(mode: str, asked: Sequence[Prediction]) -> list[str]:
    """What a model does whatever it is asked."""
    found = []
    if mode not in CHOSEN_BY_SCORE and (text := constant_answer(asked)):
        found.append(text)
    ties = sum(len(set(values)) == 1 for p in asked if len(values := p.scores or p.probabilities) > 1) / len(asked)
    if ties >= MANY_TIES:
        found.append(f"all options get the same score in {ties:.0%} of the items; a tie counts as wrong")
    return [*found, *filter(None, [_many_invalid(asked)])]


def _many_invalid(asked: Sequence[Prediction]) -> str:
    """Say how many answers are invalid; nothing when they are few."""
    invalid = sum(prediction.answered is None for prediction in asked) / len(asked)
    return f"{invalid:.0%} of the answers are invalid and count as wrong" if invalid >= MANY_INVALID else ""


def constant_answer(asked: Sequence[Prediction]) -> str | None:
    """Say that one answer is given nearly always, both where it is right and where it is wrong; else ``None``."""
    answers = Counter(prediction.answered for prediction in asked if prediction.answered is not None)
    if not answers:
        return None
    [(top, count)] = answers.most_common(1)
    for group in (
        [p for p in asked if p.expected == top],
        [p for p in asked if p.expected != top],
    ):
        if not group or sum(p.answered == top for p in group) < CONSTANT * len(group):
            return None
    said = YES_NO[top] if _is_yes_no(asked) else LETTERS[top]
    return f"answers {said} in {count / len(asked):.0%} of the items, whatever is right"


def _failures(predictions: Sequence[Prediction]) -> list[str]:
    """Count items that could not be asked, by reason."""
    reasons = Counter(p.error.partition(": ")[0] for p in predictions if p.error is not None)
    total = len(predictions)
    return [
        f"{count} of {total} items could not be asked and count as wrong: {reason}"
        for reason, count in sorted(reasons.items())
    ]

"""Recognition: is my thing in this photo, yes or no?

Pairs of a photo and a description: each photo with its own concept's description (positive), with look-alikes' of
the same category (hard negatives) and with other categories' (easy negatives). Easy negatives flatter, so everything
is also reported for hard ones alone. Accuracy means little when negatives outnumber positives; the headline is the
mean of the accuracies on positives and on negatives. Precision and F1 depend on the ratio of negatives to positives,
which is in their notes. Control arms: always yes; the majority's answer; the same questions without a description,
with a third concept's, without the photo, or with the reference photo beside it (alone, or with the description). A
pair whose description is missing is counted as failed and is wrong, but in numbers that end in ``_described``, where
it is left out.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.base import ModelRef
from lewis_core.config.evaluation import Control, RecognitionConfig, StatisticsConfig, asked_controls
from lewis_core.evaluation import asking, io, metrics
from lewis_core.evaluation.asking import Ask
from lewis_core.evaluation.controls import (
    IMAGE_AND_TEXT,
    IMAGE_ONLY,
    NO_DESCRIPTION,
    NO_IMAGE,
    WRONG_DESCRIPTION,
    draw_others,
    majority_position,
)
from lewis_core.evaluation.io import Subject
from lewis_core.evaluation.records import Metric, Prediction
from lewis_core.evaluation.statistics import (
    Measure,
    Measured,
    auc_measure,
    formula_measure,
    mean_measure,
    summarise,
)
from lewis_core.evaluation.verdict import by_mode
from lewis_core.models.answers import YES_NO
from lewis_core.models.pairs import pair_reference
from lewis_core.models.protocol import AnsweringModel
from lewis_core.prompts import PromptSet, prompt_set
from lewis_core.prompts.visual import pair_prompt
from lewis_core.records import ImageRecord, JsonObject
from lewis_core.reporting import NullReporter, Reporter
from lewis_core.seeding import stable_rng

POSITIVE, HARD, EASY = "none", "hard", "easy"
DESCRIPTION = "description"
USUAL_CONTROLS: tuple[Control, ...] = ("no-description",)
KNOWN_CONTROLS: tuple[Control, ...] = (
    *USUAL_CONTROLS,
    "wrong-description",
    "no-image",
    "image-only",
    "image-and-text",
)
Floats = NDArray[np.float64]


class Pair(NamedTuple):
    """One photo and the concept whose description is put beside it."""

    subject: Subject
    photo: ImageRecord
    described: Subject
    kind: str
    mode: str = DESCRIPTION
    other: Subject | None = None
    """Whose words are put in the place of the described concept's, in the arm ``wrong_description``."""

    @property
    def expected(self) -> int:
        """0 (yes) for a positive, 1 (no) for a negative."""
        return 0 if self.kind == POSITIVE else 1

    @property
    def failure(self) -> str | None:
        """Why the pair cannot be asked."""
        return None if self.mode in {NO_DESCRIPTION, WRONG_DESCRIPTION, IMAGE_ONLY} else self.described.failure

    @property
    def image(self) -> str | None:
        """Photo beside the question; with the reference photo to its left in the arms that show it."""
        if self.mode in {IMAGE_ONLY, IMAGE_AND_TEXT}:
            return pair_reference(self.described.entry.reference.path, self.photo.path)
        return None if self.mode == NO_IMAGE else self.photo.path

    def prompt(self, prompts: PromptSet) -> str:
        """Write the question."""
        if self.mode in {IMAGE_ONLY, IMAGE_AND_TEXT}:
            entry = self.described.entry
            return pair_prompt(entry.category_word, None if self.mode == IMAGE_ONLY else entry.text)
        text = None if self.mode == NO_DESCRIPTION else (self.other or self.described).entry.text
        return prompts.recognition(self.described.entry.category_word, text)

    def prediction(self) -> Prediction:
        """The pair's record before it is answered."""
        return Prediction(
            item=f"{self.mode}:{self.photo.path}@{self.subject.id}|{self.described.id}",
            concept=self.subject.id,
            category=self.subject.concept.category,
            image=self.photo.path,
            options=YES_NO,
            expected=self.expected,
            answered=None,
            tags={"mode": self.mode, "negatives": self.kind, "described": self.described.id},
            error=self.failure,
        )


def evaluate_recognition(
    database: ArtifactRef,
    catalog: ArtifactRef,
    answering: ModelRef,
    output_dir: Path,
    config: RecognitionConfig,
    statistics: StatisticsConfig,
    service_url: str,
    work_dir: Path,
    reporter: Reporter,
) -> JsonObject:
    """Ask of photos and descriptions whether they belong together.

    Args:
        database: Artifact of ``describe-concepts``.
        catalog: Artifact of ``build-catalog``.
        answering: The answering model; the service at ``service_url`` runs it.
        output_dir: Receives ``predictions.jsonl`` and ``metrics.json``.
        config: Negatives, controls, seed.
        statistics: Intervals.
        service_url: Address of the model service.
        work_dir: Keeps answers until all are there.
        reporter: Receives progress and metrics.

    Returns:
        Counts and numbers.

    Raises:
        EvaluationError: If the artifacts do not belong together or nothing can be asked.
        ListenerError: If the service does not answer.
    """
    speaker, subjects = io.load_subjects(database, catalog)
    with asking.connect(service_url, work_dir) as model:
        predictions = recognise(subjects, model, prompt_set(answering.prompts), config, reporter)
    numbers = aggregate(predictions, statistics)
    reporter.log_metrics(io.numbers(numbers))
    items, controls = split_arms(predictions)
    return io.save_evaluation(output_dir, "recognition", speaker, "listener", items, numbers, statistics, controls)


def build_pairs(subjects: Sequence[Subject], config: RecognitionConfig) -> list[Pair]:
    """Choose all pairs; which they are does not depend on the descriptions.

    A concept that has the same picture is no negative of it.
    """
    pairs = []
    for subject in sorted(subjects, key=lambda subject: subject.id):
        others = sorted((other for other in subjects if other.id != subject.id), key=lambda other: other.id)
        same = [other for other in others if other.concept.category == subject.concept.category]
        different = [other for other in others if other.concept.category != subject.concept.category]
        for photo in io.draw_photos(subject, config.max_queries_per_concept, config.seed, "recognition"):
            near, far = (io.without_owners(group, photo, subject) for group in (same, different))
            hard = _draw(near, config.hard_negatives, config.seed, HARD, photo)
            easy = _draw(far, config.easy_negatives, config.seed, EASY, photo)
            pairs.append(Pair(subject, photo, subject, POSITIVE))
            pairs += [Pair(subject, photo, other, HARD) for other in hard]
            pairs += [Pair(subject, photo, other, EASY) for other in easy]
    return pairs


def _draw(
    others: Sequence[Subject], count: int | Literal["all"] | None, seed: int, kind: str, photo: ImageRecord
) -> list[Subject]:
    """Draw negatives without repetition; all of them when ``count`` says so or is too large."""
    if count is None or count == "all" or count >= len(others):
        return list(others)
    chosen = stable_rng(seed, "recognition", kind, photo.sha256).choice(len(others), size=count, replace=False)
    return [others[index] for index in sorted(int(i) for i in chosen)]


def recognise(
    subjects: Sequence[Subject],
    model: AnsweringModel,
    prompts: PromptSet,
    config: RecognitionConfig,
    reporter: Reporter | None = None,
) -> list[Prediction]:
    """Ask all pairs, and once more in each control arm."""
    pairs = build_pairs(subjects, config)
    arms = asked_controls(config.controls, USUAL_CONTROLS, KNOWN_CONTROLS)
    pairs += [asked for arm in arms for pair in pairs if (asked := _in_arm(pair, arm, subjects, config.seed))]
    asks = [Ask(pair.image, pair.prompt(prompts), YES_NO) for pair in pairs if pair.failure is None]
    replies = iter(asking.ask_all(model, asks, reporter or NullReporter(), config))
    predictions = []
    for pair in pairs:
        prediction = pair.prediction()
        if prediction.error is None:
            prediction = asking.record_answer(prediction, next(replies))
        predictions.append(prediction)
    return predictions


def _in_arm(pair: Pair, arm: str, subjects: Sequence[Subject], seed: int) -> Pair | None:
    """Ask a pair in the way of a control arm; ``None`` if there is no third concept's description."""
    if arm != WRONG_DESCRIPTION:
        return pair._replace(mode=arm)
    drawn = draw_others(
        io.without_owners(subjects, pair.photo, pair.subject),
        [pair.described, pair.subject],
        1,
        seed,
        "recognition-wrong",
        pair.photo.sha256,
        pair.described.id,
    )
    return pair._replace(mode=arm, other=drawn[0]) if drawn else None


def counts(predictions: Sequence[Prediction]) -> Floats:
    """Count each prediction: columns TP, FP, FN, right negative, positive, negative; shape ``(N, 6)``.

    An invalid answer is wrong, but is no yes: on a positive it is a miss, on a negative no false alarm. An item that
    failed because there was no description is wrong in every way.
    """
    rows = []
    for prediction in predictions:
        positive, right = prediction.expected == 0, prediction.is_correct
        false_alarm = not positive and (prediction.answered == 0 or prediction.error is not None)
        rows.append(
            (positive and right, false_alarm, positive and not right, not positive and right, positive, not positive)
        )
    return np.array(rows, dtype=float).reshape(-1, 6)


def _precision(totals: Floats) -> Floats:
    return metrics.precision(totals[..., 0], totals[..., 1])


def _f1(totals: Floats) -> Floats:
    return metrics.f1(totals[..., 0], totals[..., 1], totals[..., 2])


def _weighted_accuracy(totals: Floats) -> Floats:
    return metrics.balanced_accuracy(totals[..., 0], totals[..., 4], totals[..., 3], totals[..., 5])


def _positive_accuracy(totals: Floats) -> Floats:
    return metrics.ratio(totals[..., 0], totals[..., 4])


def _negative_accuracy(totals: Floats) -> Floats:
    return metrics.ratio(totals[..., 3], totals[..., 5])


def _accuracy(totals: Floats) -> Floats:
    return metrics.ratio(totals[..., 0] + totals[..., 3], totals[..., 4] + totals[..., 5])


def _ece(totals: Floats) -> Floats:
    bins = metrics.ECE_BINS
    return metrics.ece_of_bins(totals[..., :bins], totals[..., bins : 2 * bins], totals[..., -1])


FORMULAS = {
    "weighted_accuracy": _weighted_accuracy,
    "f1": _f1,
    "precision": _precision,
    "recall": _positive_accuracy,
    "positive_accuracy": _positive_accuracy,
    "negative_accuracy": _negative_accuracy,
    "accuracy": _accuracy,
}


def count_measures(predictions: Sequence[Prediction], names: Iterable[str]) -> dict[str, Measured]:
    """Build some of :data:`FORMULAS` over predictions, which are counted once."""
    concepts, parts = [prediction.concept for prediction in predictions], counts(predictions)
    return {name: formula_measure(concepts, parts, FORMULAS[name]) for name in names}


def split_arms(predictions: Sequence[Prediction]) -> tuple[list[Prediction], list[Prediction]]:
    """Separate the pairs proper from the control arms."""
    items = [prediction for prediction in predictions if prediction.tags["mode"] == DESCRIPTION]
    return items, [prediction for prediction in predictions if prediction.tags["mode"] != DESCRIPTION]


def weighted_accuracy(predictions: Sequence[Prediction]) -> Measure:
    """Mean of the accuracies on positives and negatives; pairs without a description are wrong."""
    return formula_measure([p.concept for p in predictions], counts(predictions), _weighted_accuracy)


def f1(predictions: Sequence[Prediction]) -> Measure:
    """F1 of yes; pairs without a description are wrong."""
    return formula_measure([p.concept for p in predictions], counts(predictions), _f1)


def ece_measure(predictions: Sequence[Prediction]) -> Measure:
    """Expected calibration error of P(yes)."""
    rows = np.zeros((len(predictions), 2 * metrics.ECE_BINS + 1))
    for row, prediction in zip(rows, predictions, strict=True):
        place = int(metrics.calibration_bins(prediction.probabilities[0]))
        row[place], row[metrics.ECE_BINS + place], row[-1] = prediction.probabilities[0], prediction.expected == 0, 1
    return formula_measure([prediction.concept for prediction in predictions], rows, _ece)


def aggregate(predictions: Sequence[Prediction], config: StatisticsConfig) -> tuple[Metric, ...]:
    """Turn answers into numbers with intervals."""
    every, blind = split_arms(predictions)
    asked = [prediction for prediction in every if prediction.error is None]
    measures: dict[str, Measured] = {
        **count_measures(every, FORMULAS),
        "weighted_accuracy_described": weighted_accuracy(asked),
        "f1_described": f1(asked),
        **_ranked(asked, ""),
        "invalid_rate": mean_measure([(p.concept, float(p.answered is None)) for p in asked]),
    }
    for kind in (HARD, EASY):
        if any(p.tags["negatives"] == kind for p in every):
            some = [p for p in every if p.tags["negatives"] in {POSITIVE, kind}]
            names = ("weighted_accuracy", "f1", "precision", "negative_accuracy")
            measures |= {f"{name}_{kind}": measure for name, measure in count_measures(some, names).items()}
            measures |= _ranked([p for p in some if p.error is None], f"_{kind}")
    measures |= _controls(every, blind)
    return summarise(measures, config, _notes(every, asked))


def _ranked(predictions: Sequence[Prediction], suffix: str) -> dict[str, Measured]:
    """AUC and calibration from P(yes); nothing where answers were written."""
    if any(not prediction.probabilities for prediction in predictions):
        return {}
    scores = [prediction.probabilities[0] for prediction in predictions]
    labels = [prediction.expected == 0 for prediction in predictions]
    auc = auc_measure([prediction.concept for prediction in predictions], scores, labels)
    return {f"auc{suffix}": auc, f"ece{suffix}": ece_measure(predictions)}


def _controls(every: Sequence[Prediction], blind: Sequence[Prediction]) -> dict[str, Measured]:
    """Always yes, the more frequent answer, and the arms that were asked."""
    positive = np.array([prediction.expected == 0 for prediction in every], float)
    none = np.zeros_like(positive)
    always_yes = np.stack([positive, 1 - positive, none, none, positive, 1 - positive], axis=1)
    controls: dict[str, Measured] = {
        "control_always_yes_f1": formula_measure([prediction.concept for prediction in every], always_yes, _f1),
        "control_majority_accuracy": majority_position(every),
    }
    for mode, arm in by_mode(blind).items():
        asked = [prediction for prediction in arm if prediction.error is None]
        controls[f"control_{mode}"] = weighted_accuracy(asked)
        controls[f"control_{mode}_hard"] = weighted_accuracy([p for p in asked if p.tags["negatives"] != EASY])
    return controls


def _notes(every: Sequence[Prediction], asked: Sequence[Prediction]) -> dict[str, str]:
    """What a reader must know."""
    kinds = [prediction.tags["negatives"] for prediction in every]
    positives = kinds.count(POSITIVE)
    notes: dict[str, str] = {}
    for suffix, negatives in (
        ("", len(kinds) - positives),
        (f"_{HARD}", kinds.count(HARD)),
        (f"_{EASY}", kinds.count(EASY)),
    ):
        notes |= {f"{name}{suffix}": f"{positives} positives, {negatives} negatives" for name in ("f1", "precision")}
    silent = f"{len(every) - len(asked)} pairs could not be asked and count as wrong"
    return notes | {
        "weighted_accuracy": f"mean of the accuracies on positives and on negatives; chance 0.50; {silent}",
        "f1": f"{notes['f1']}; {silent}",
        "weighted_accuracy_described": io.ASKED_ONLY,
        "f1_described": io.ASKED_ONLY,
        "auc": "P(yes) of positives against negatives; chance 0.50",
        "ece": "mean distance of P(yes) from the share of yes, over ten bins",
        "control_always_yes_f1": "F1 of answering yes every time",
        "accuracy": f"plain share of right answers, to be read beside control_majority_accuracy; {silent}",
        "control_majority_accuracy": "plain accuracy of the one answer that is right most often",
        "control_wrong_description": "weighted accuracy when another concept's description is put; chance 0.50",
        "control_no_image": "weighted accuracy without the photo; chance 0.50",
        "control_image_only": "weighted accuracy with the reference photo beside the photo, and no description",
        "control_image_and_text": "weighted accuracy with reference photo and description",
        "control_no_description": "weighted accuracy when the question holds no description",
        "control_no_description_hard": "the same against look-alikes only; 0.50 unless something leaks",
    }

"""What evaluations write: one prediction per item, and metrics with intervals. The schema is stable."""

from typing import Literal

from lewis_core.records import Record

EvaluationName = Literal["game", "identification", "recognition", "vqa", "descriptions"]


class Prediction(Record):
    """One item of an evaluation, answered or failed; a line of ``predictions.jsonl``."""

    item: str
    """Stable id; equal for two speakers asked the same, so that they can be paired."""
    concept: str
    """Concept id of the query; intervals resample concepts."""
    category: str
    image: str | None = None
    """Query photo, relative to the data root."""
    options: tuple[str, ...]
    """What could be answered, in the order offered: concept ids, image paths, answers, or ``("yes", "no")``."""
    expected: int | None
    """Index of the right option; ``None`` if it was not among them (a retrieval miss)."""
    answered: int | None
    """Index of the chosen option; ``None`` if the answer was invalid or the item failed."""
    probabilities: tuple[float, ...] = ()
    """Over the options, summing to 1; for the game, P(yes) of each candidate."""
    scores: tuple[float, ...] = ()
    """Log-odds of yes per option, where options were scored by yes or no (game, ranking); natural logarithm."""
    captured_mass: float | None = None
    """Share of the model's probability that lay on the options, in [0, 1]; low: it wanted to say something else."""
    response: str | None = None
    """What the model wrote, where answers are read from text (``answers = "generation"``)."""
    tags: dict[str, str] = {}
    """What kind of item it is, e.g. ``{"mode": "oracle"}`` or ``{"negatives": "hard"}``."""
    error: str | None = None
    """Why the item failed; failed items are counted apart and never scored as an answer."""

    @property
    def is_correct(self) -> bool:
        """Whether the chosen option is the right one."""
        return self.answered is not None and self.answered == self.expected


class Metric(Record):
    """One reported number."""

    name: str
    """E.g. ``accuracy``, ``recall_at_k``, ``f1``."""
    value: float | None
    """``None`` when nothing could be measured; never 0 instead."""
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None
    """Upper end of the interval."""
    n: int
    """Items behind the number."""
    note: str = ""
    """What a reader must know, e.g. ``chance 0.17``."""


class EvaluationResult(Record):
    """All numbers of one evaluation of one speaker; ``metrics.json``."""

    evaluation: EvaluationName
    speaker: str
    """Name of the speaker in tables."""
    answering: str
    """Name of the model that answered, ``listener`` or ``independent``; empty for ``descriptions``."""
    metrics: tuple[Metric, ...]
    invalid: int = 0
    """Items whose answer could not be read."""
    failed: int = 0
    """Items that could not be asked (unreadable image, empty description, error)."""
    concepts: int = 0
    """Concepts behind the numbers."""
    verdict: str = ""
    """In words: is each kind of question answered better than by guessing?"""
    warnings: tuple[str, ...] = ()
    """In words: what a reader must know before believing a number (always the same answer, ties, leaks, failures)."""

    def value(self, name: str) -> float | None:
        """Look up a metric's value.

        Raises:
            KeyError: If there is no such metric.
        """
        return {metric.name: metric.value for metric in self.metrics}[name]


class PairedTest(Record):
    """Is the difference between two speakers on the same items more than chance?"""

    evaluation: EvaluationName
    answering: str
    metric: str
    baseline: float
    other: float
    difference: float
    """``other - baseline``."""
    low: float
    high: float
    """Interval of the difference, concepts resampled."""
    p_value: float
    """Two-sided paired permutation test, concepts as units."""
    p_holm: float | None = None
    """The same after Holm's correction for all tests of this comparison."""
    only_baseline: int | None = None
    """Items that only the baseline got right; ``None`` where a number is no count of right items (F1, mentions)."""
    only_other: int | None = None
    """Items that only the other speaker got right."""
    p_mcnemar: float | None = None
    """Exact McNemar test of these two counts: items as units, so it takes photos of one thing for independent."""
    n: int
    """Paired items."""
    concepts: int


class Comparison(Record):
    """Paired tests of one speaker against the baseline; ``comparison.json``."""

    baseline: str
    speaker: str
    tests: tuple[PairedTest, ...]


class SeedMetric(Record):
    """One number of several seeds."""

    evaluation: EvaluationName
    answering: str
    metric: str
    values: tuple[float, ...]
    """One per speaker, in their order."""
    mean: float
    deviation: float
    """Standard deviation between seeds (n - 1)."""
    low: float | None = None
    """Interval of the mean: concepts resampled, these very seeds."""
    high: float | None = None
    test: PairedTest | None = None
    """The seeds together against the baseline, these very seeds; concepts are swapped as in other tests."""
    low_seeds: float | None = None
    """Interval of the mean: concepts and seeds resampled; with few seeds still too narrow."""
    high_seeds: float | None = None
    n: int
    """Items of each seed."""
    concepts: int


class SeedSummary(Record):
    """Several trainings that differ in the seed only; ``seeds.json``."""

    group: str
    speakers: tuple[str, ...]
    metrics: tuple[SeedMetric, ...]

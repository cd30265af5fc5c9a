"""Intervals and paired tests with concepts, not items, as the independent units.

Photos of one thing share its one description, so items of a concept stand or fall together. Everything here draws
or swaps whole concepts. A :class:`Measure` keeps sums per concept, so a resample is one matrix product.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import metrics
from lewis_core.evaluation.records import Metric
from lewis_core.seeding import stable_rng

Floats = NDArray[np.float64]
Formula = Callable[[Floats], Floats]
EXACT_CONCEPTS = 12
"""Up to this many concepts all 2^C sign patterns are tried instead of random ones."""
TOLERANCE = 1e-12


class Measured(Protocol):
    """Something that can be computed anew when concepts are drawn with replacement."""

    @property
    def names(self) -> tuple[str, ...]:
        """Concepts, in the order of the weights' columns."""

    @property
    def n(self) -> int:
        """Items behind the number."""

    def evaluate(self, weights: Floats) -> Floats:
        """Compute the number for each row of how often every concept was drawn, ``(R, C)`` → ``(R,)``."""


@dataclass(frozen=True)
class Measure:
    """A number that is a formula of sums over items.

    Args:
        names: Concept ids, sorted, ``C`` of them.
        sums: What the formula needs, summed per concept, shape ``(C, K)``.
        formula: From totals ``(..., K)`` to values ``(...)``; NaN where undefined.
        n: Items behind the number.
    """

    names: tuple[str, ...]
    sums: Floats
    formula: Formula
    n: int

    def evaluate(self, weights: Floats) -> Floats:
        """Compute the number for each row of weights."""
        return self.formula(weights @ self.sums)


@dataclass(frozen=True)
class AreaMeasure:
    """AUC, which is no formula of sums, but of won pairs between concepts.

    Args:
        names: Concept ids, sorted, ``C`` of them.
        won: Pairs won by positives of concept c against negatives of concept d, shape ``(C, C)``.
        positives: Positives per concept, shape ``(C,)``.
        negatives: Negatives per concept, shape ``(C,)``.
    """

    names: tuple[str, ...]
    won: Floats
    positives: Floats
    negatives: Floats

    @property
    def n(self) -> int:
        """Items behind the number."""
        return int(self.positives.sum() + self.negatives.sum())

    def evaluate(self, weights: Floats) -> Floats:
        """Compute the AUC for each row of weights."""
        pairs = (weights @ self.positives) * (weights @ self.negatives)
        return metrics.ratio(((weights @ self.won) * weights).sum(axis=1), pairs)


def first_by_second(totals: Floats) -> Floats:
    """Divide the first total by the second: means and shares."""
    return metrics.ratio(totals[..., 0], totals[..., 1])


def formula_measure(concepts: Sequence[str], parts: ArrayLike, formula: Formula) -> Measure:
    """Build a measure from the parts of each item.

    Args:
        concepts: Concept id of each item, shape ``(N,)``.
        parts: What the formula needs of each item, shape ``(N, K)``.
        formula: From totals ``(..., K)`` to values ``(...)``.
    """
    if not concepts:
        return Measure((), np.zeros((0, 1)), _undefined, 0)
    names = tuple(sorted(set(concepts)))
    row = {name: index for index, name in enumerate(names)}
    matrix = np.asarray(parts, float)
    sums = np.zeros((len(names), matrix.shape[1]))
    np.add.at(sums, [row[name] for name in concepts], matrix)
    return Measure(names, sums, formula, len(concepts))


def mean_measure(items: Sequence[tuple[str, float]]) -> Measure:
    """Build the mean of ``(concept, value)`` items."""
    return formula_measure([name for name, _ in items], [(value, 1.0) for _, value in items], first_by_second)


def auc_measure(concepts: Sequence[str], scores: Sequence[float], labels: Sequence[bool]) -> AreaMeasure:
    """Build the AUC of items with a concept, a score and a label each."""
    names = tuple(sorted(set(concepts)))
    row = {name: index for index, name in enumerate(names)}
    positives: list[list[float]] = [[] for _ in names]
    negatives: list[list[float]] = [[] for _ in names]
    for name, score, label in zip(concepts, scores, labels, strict=True):
        (positives if label else negatives)[row[name]].append(score)
    won = np.array([[metrics.wins(mine, theirs) for theirs in negatives] for mine in positives])
    won = won.reshape(len(names), len(names))
    return AreaMeasure(
        names, won, np.array([float(len(p)) for p in positives]), np.array([float(len(q)) for q in negatives])
    )


def point(measure: Measured) -> float | None:
    """The number itself: every concept counts once."""
    return metrics.value_or_none(measure.evaluate(np.ones((1, len(measure.names))))[0])


class Interval(NamedTuple):
    """Lower and upper end; ``None`` when there is no basis for one."""

    low: float | None
    high: float | None


def draw_concepts(num_concepts: int, config: StatisticsConfig) -> Floats:
    """Draw concepts with replacement: how often each is in each resample, shape ``(resamples, C)``."""
    rng = stable_rng(config.seed, "bootstrap", num_concepts)
    share = np.full(num_concepts, 1 / num_concepts)
    return rng.multinomial(num_concepts, share, size=config.resamples).astype(float)


def interval(
    values: Floats, num_concepts: int, config: StatisticsConfig, limits: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """Take percentiles of resampled values.

    When no resample differs (every concept right), percentiles would claim certainty. The ends are then as far away
    as the exact binomial bound for that many concepts of one kind: 1 - (tail)^(1/C).

    Args:
        values: Resampled values, shape ``(R,)``, NaN where undefined.
        num_concepts: Concepts behind them.
        config: Coverage.
        limits: Least and greatest possible value.

    Returns:
        The ends; none when most resamples are undefined.
    """
    defined = values[~np.isnan(values)]
    if len(defined) < len(values) / 2 or len(defined) == 0:
        return Interval(None, None)
    tail = (1 - config.confidence) / 2
    low, high = (float(end) for end in np.quantile(defined, [tail, 1 - tail]))
    if np.ptp(defined) < TOLERANCE and limits[0] <= low <= limits[1]:
        reach = 1 - tail ** (1 / num_concepts)
        return Interval(max(limits[0], low - reach), min(limits[1], high + reach))
    return Interval(low, high)


def bootstrap(measure: Measured, config: StatisticsConfig, limits: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """Interval of a measure by resampling concepts; none for fewer than two concepts.

    Args:
        measure: What is resampled.
        config: Resamples, coverage, seed.
        limits: Least and greatest possible value.
    """
    count = len(measure.names)
    if count < 2:
        return Interval(None, None)
    return interval(measure.evaluate(draw_concepts(count, config)), count, config, limits)


def summarise(
    measures: Mapping[str, Measured], config: StatisticsConfig, notes: Mapping[str, str] | None = None
) -> tuple[Metric, ...]:
    """Turn measures into reported metrics with intervals.

    Args:
        measures: By metric name, in the order of the report.
        config: Resamples, coverage, seed.
        notes: What a reader must know, by metric name.
    """
    reported = []
    for name, measure in measures.items():
        value, ends = point(measure), bootstrap(measure, config)
        low, high = ends if value is not None else (None, None)
        note = (notes or {}).get(name, "")
        reported.append(Metric(name=name, value=value, low=low, high=high, n=measure.n, note=note))
    return tuple(reported)


class PairedResult(NamedTuple):
    """A difference between two speakers on the same items."""

    baseline: float
    other: float
    difference: float
    low: float
    high: float
    p_value: float


def sign_patterns(num_concepts: int, config: StatisticsConfig) -> NDArray[np.bool_]:
    """Which concepts are swapped in each permutation, shape ``(R, C)``.

    All patterns for up to :data:`EXACT_CONCEPTS` concepts, otherwise the identity and ``resamples`` random ones,
    so that a p-value is never 0.
    """
    if num_concepts <= EXACT_CONCEPTS:
        patterns: NDArray[np.bool_] = (np.arange(2**num_concepts)[:, None] >> np.arange(num_concepts) & 1).astype(bool)
        return patterns
    rng = stable_rng(config.seed, "permutation", num_concepts)
    drawn = rng.random((config.resamples, num_concepts)) < 0.5
    return np.vstack([np.zeros((1, num_concepts), bool), drawn])


def compare_measures(baseline: Measure, other: Measure, config: StatisticsConfig) -> PairedResult | None:
    """Test whether two speakers differ, swapping their answers concept by concept.

    For a mean, swapping a concept flips the sign of its summed differences. The p-value is two-sided: the share of
    swaps whose difference is at least as large as the observed one. The interval resamples concepts jointly.

    Args:
        baseline: A measure of the first speaker.
        other: The same measure of the second, over the same concepts.
        config: Resamples, coverage, seed.

    Returns:
        The comparison, or ``None`` when the measure is undefined for either, or there are fewer than two concepts.

    Raises:
        EvaluationError: If the concepts differ.
    """
    if baseline.names != other.names:
        missing = sorted(set(baseline.names) ^ set(other.names))[:5]
        raise EvaluationError(f"only one of the two speakers has items of {missing}; evaluate both on the same items")
    before, after = point(baseline), point(other)
    if before is None or after is None or len(other.names) < 2:
        return None
    observed = after - before
    patterns = sign_patterns(len(other.names), config).astype(float)
    swapped = _difference(baseline, other, patterns)
    as_large = np.abs(swapped[~np.isnan(swapped)]) >= abs(observed) - TOLERANCE
    weights = draw_concepts(len(other.names), config)
    differences = other.evaluate(weights) - baseline.evaluate(weights)
    low, high = interval(differences, len(other.names), config, limits=(-1.0, 1.0))
    if low is None or high is None:
        return None
    return PairedResult(before, after, observed, low, high, float(as_large.mean()))


def _difference(baseline: Measure, other: Measure, patterns: Floats) -> Floats:
    """Difference of the measure after the swaps of each pattern, ``(R, C)`` → ``(R,)``."""
    into_other = other.formula((1 - patterns) @ other.sums + patterns @ baseline.sums)
    return into_other - other.formula((1 - patterns) @ baseline.sums + patterns @ other.sums)


def _undefined(totals: Floats) -> Floats:
    """Answer NaN: there are no items."""
    return np.full(totals.shape[:-1], np.nan)

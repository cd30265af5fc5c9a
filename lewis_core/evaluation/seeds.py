"""Several trainings of one recipe, which differ in the seed only: their mean, and how far they spread.

Two things make a number uncertain: which concepts were asked about, and which seed was drawn. Both are reported: the
spread between seeds (standard deviation), the interval of the mean when concepts are resampled (the seeds as they
are), and the wider one when seeds are resampled too.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lewis_core.artifacts import ArtifactRef
from lewis_core.config.evaluation import StatisticsConfig
from lewis_core.errors import EvaluationError
from lewis_core.evaluation import io
from lewis_core.evaluation.compare import (
    HEADLINES,
    Key,
    Rows,
    both_described,
    check_items,
    load_speaker,
    paired_test,
)
from lewis_core.evaluation.records import EvaluationResult, PairedTest, SeedMetric, SeedSummary
from lewis_core.evaluation.statistics import Interval, Measure, draw_concepts, interval, point
from lewis_core.records import JsonObject, load_record, save_record
from lewis_core.seeding import stable_rng


def aggregate_seeds(
    group: str, evaluations: list[ArtifactRef], output_dir: Path, config: StatisticsConfig
) -> JsonObject:
    """Put the headline numbers of several seeds together.

    Args:
        group: Name of the recipe.
        evaluations: The same evaluations of each seed's speaker, in any order.
        output_dir: Receives ``seeds.json``.
        config: Resamples, coverage, seed.

    Returns:
        Mean and standard deviation by evaluation, answering model and metric.

    Raises:
        EvaluationError: If there are fewer than two speakers, or they were not asked the same.
    """
    by_speaker: dict[str, list[ArtifactRef]] = {}
    for ref in evaluations:
        by_speaker.setdefault(load_record(ref.file(io.METRICS), EvaluationResult).speaker, []).append(ref)
    if len(by_speaker) < 2:
        raise EvaluationError(
            f"seeds of {group!r}: expected evaluations of two speakers or more, found {[*by_speaker]}"
        )
    loaded = {name: load_speaker(refs)[1] for name, refs in by_speaker.items()}
    first, *others = loaded.values()
    for name, other in zip([*loaded][1:], others, strict=True):
        if set(first) != set(other):
            only = sorted(map(str, set(first) ^ set(other)))
            raise EvaluationError(f"seeds of {group!r}: {name} was not evaluated like the first, only one has: {only}")
    metrics = [metric for key in first for metric in pool_seeds(key, [rows[key] for rows in loaded.values()], config)]
    summary = SeedSummary(group=group, speakers=tuple(loaded), metrics=tuple(metrics))
    save_record(output_dir / "seeds.json", summary)
    return {
        "group": group,
        "speakers": list(summary.speakers),
        "metrics": {
            "/".join(filter(None, (m.evaluation, m.answering, m.metric))): {"mean": m.mean, "deviation": m.deviation}
            for m in metrics
        },
    }


def pool_seeds(
    key: Key, runs: Sequence[Rows], config: StatisticsConfig, baseline: Rows | None = None
) -> list[SeedMetric]:
    """Put the headline numbers of one evaluation together; those that a seed lacks are left out.

    Args:
        key: Evaluation and answering model.
        runs: Items of each seed.
        config: Resamples, coverage, seed.
        baseline: The baseline's items; all seeds' answers together are tested against it.

    Raises:
        EvaluationError: If the seeds were not asked the same items.
    """
    for other in (*runs[1:], *([] if baseline is None else [baseline])):
        check_items(key, runs[0], other)
    pooled = []
    for name, build in HEADLINES[key[0]].items():
        measures = [build(rows) for rows in runs]
        found = [point(measure) for measure in measures]
        values = [value for value in found if value is not None]
        if len(values) < len(found):
            continue
        fixed, drawn = _intervals(measures, config)
        pooled.append(
            SeedMetric(
                evaluation=key[0],
                answering=key[1],
                metric=name,
                values=tuple(values),
                mean=float(np.mean(values)),
                deviation=float(np.std(values, ddof=1)),
                test=None if baseline is None else _test_together(key, name, runs, baseline, config),
                low=fixed.low,
                high=fixed.high,
                low_seeds=drawn.low,
                high_seeds=drawn.high,
                n=measures[0].n,
                concepts=len(measures[0].names),
            )
        )
    return pooled


def _test_together(
    key: Key, name: str, runs: Sequence[Rows], baseline: Rows, config: StatisticsConfig
) -> PairedTest | None:
    """Test the answers of all seeds together against the baseline's, taken as many times."""
    before: Rows = [row for _ in runs for row in baseline]
    after: Rows = [row for rows in runs for row in rows]
    if key[0] == "descriptions":
        before, after = both_described(before, after)
    return paired_test(key, name, before, after, config)


def _intervals(measures: Sequence[Measure], config: StatisticsConfig) -> tuple[Interval, Interval]:
    """Interval of the mean with concepts resampled, and with seeds resampled as well; the same concepts in all."""
    names = measures[0].names
    if len(names) < 2 or any(measure.names != names for measure in measures):
        return Interval(None, None), Interval(None, None)
    values = np.stack([measure.evaluate(draw_concepts(len(names), config)) for measure in measures])  # (S, R)
    share = np.full(len(measures), 1 / len(measures))
    rng = stable_rng(config.seed, "seeds", len(measures))
    picks = rng.multinomial(len(measures), share, size=values.shape[1]).T / len(measures)  # (S, R)
    fixed, drawn = values.mean(axis=0), (picks * values).sum(axis=0)
    return interval(fixed, len(names), config), interval(drawn, len(names), config)

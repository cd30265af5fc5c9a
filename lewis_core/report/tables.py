"""The evaluations as rows: an interval for every number, a paired test for every difference."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lewis_core.evaluation.compare import HEADLINES
from lewis_core.evaluation.records import EvaluationResult, Metric, PairedTest
from lewis_core.report import labels
from lewis_core.report.charts import Estimate, forest_chart, interval_chart, speaker_style
from lewis_core.report.load import LISTENER, Evaluation, ReportData, Speaker

ORDER = ("game", "identification", "recognition", "vqa", "descriptions")
SIGNIFICANCE = 0.05
CHANCE = re.compile(r"chance ([01]\.\d+)")
NOTHING = re.compile(
    r"^(0 (pairs )?could not be asked|what could not be asked|(described concepts|answered items) only$)"
)


@dataclass(frozen=True)
class Difference:
    """A difference to the baseline in words and numbers."""

    text: str
    interval: str
    p: str
    verdict: str
    """``better``, ``worse``, ``unclear`` (may be chance) or ``neutral`` (no direction is better)."""


@dataclass(frozen=True)
class Row:
    """One estimate: a line of the forest plot."""

    speaker: str
    style: str
    value: str
    interval: str
    n: int
    plot: Markup
    difference: Difference | None


@dataclass(frozen=True)
class Block:
    """One metric of one evaluation, with a row for each speaker."""

    title: str
    question: str
    metric: str
    answering: str
    note: str
    chance: str
    unit: str
    rows: tuple[Row, ...]
    estimates: tuple[Estimate, ...]
    chance_value: float | None


@dataclass(frozen=True)
class Cell:
    """One number with its interval."""

    value: str
    interval: str


@dataclass(frozen=True)
class MatrixRow:
    """One metric, with a cell for each speaker."""

    evaluation: str
    answering: str
    metric: str
    name: str
    note: str
    n: str
    better: str
    cells: tuple[Cell, ...]
    difference: Difference | None


@dataclass(frozen=True)
class Trouble:
    """Items that count for nothing or could not be asked, for one evaluation and speaker."""

    title: str
    answering: str
    speaker: str
    invalid: int
    failed: int


def find_metric(result: EvaluationResult, name: str) -> Metric | None:
    """Look up a metric by name."""
    return next((metric for metric in result.metrics if metric.name == name), None)


def chance_level(metric: Metric) -> float | None:
    """Tell what guessing would score, as the metric's note says."""
    found = CHANCE.search(metric.note)
    return float(found.group(1)) if found else None


def describe_difference(test: PairedTest) -> Difference:
    """Put a paired test into words."""
    better = labels.metric_style(test.metric).better
    if not is_significant(test):
        verdict = "unclear"
    elif better == "neither":
        verdict = "neutral"
    else:
        verdict = "better" if (test.difference > 0) == (better == "higher") else "worse"
    return Difference(
        text=labels.format_difference(test.metric, test.difference),
        interval=labels.format_difference_interval(test.metric, test.low, test.high),
        p=labels.format_p(test.p_value),
        verdict=verdict,
    )


def is_significant(test: PairedTest) -> bool:
    """Whether a difference is unlikely to be chance: p below 0.05 and an interval without 0."""
    return test.p_value < SIGNIFICANCE and not test.low <= 0 <= test.high


def main_blocks(data: ReportData) -> tuple[Block, ...]:
    """Make the blocks of the main table: tested metrics and the headline ones that are shares."""
    blocks = []
    for evaluation, answering in _asked(data):
        if evaluation == "descriptions":
            continue
        found = _found(data, evaluation, answering)
        names = [m.name for m in found[0][1].result.metrics if _is_main(data, evaluation, answering, m.name)]
        blocks += [_block(data, found, name) for name in names or [m.name for m in found[0][1].result.metrics[:1]]]
    return tuple(blocks)


def matrix(data: ReportData, evaluations: Sequence[str]) -> tuple[MatrixRow, ...]:
    """List every metric of the named evaluations, with a cell for each speaker."""
    rows = []
    for evaluation, answering in _asked(data):
        if evaluation not in evaluations:
            continue
        found = _found(data, evaluation, answering)
        names = dict.fromkeys(metric.name for _, item in found for metric in item.result.metrics)
        rows += [_matrix_row(data, found, name) for name in names]
    return tuple(rows)


def troubles(data: ReportData) -> tuple[Trouble, ...]:
    """List evaluations in which items failed or had no readable answer."""
    return tuple(
        Trouble(labels.EVALUATION_TITLES[r.evaluation], r.answering, r.speaker, r.invalid, r.failed)
        for r in (item.result for item in data.evaluations)
        if r.invalid or r.failed
    )


def forest_plot(blocks: Sequence[Block]) -> Markup:
    """Draw all blocks whose unit is a share as one forest plot."""
    rows = [
        (
            f"{block.title}: {block.metric}" + (f" ({block.answering})" if block.answering != LISTENER else ""),
            block.estimates,
            block.chance_value,
        )
        for block in blocks
    ]
    return forest_chart("Evaluations with 95 % intervals", rows)


def _asked(data: ReportData) -> Iterator[tuple[str, str]]:
    """Evaluation and answering model, in the order of the page; the training's listener before others."""
    pairs = {(item.result.evaluation, item.result.answering) for item in data.evaluations}
    yield from sorted(pairs, key=lambda pair: (ORDER.index(pair[0]), pair[1] != LISTENER, pair[1]))


def _found(data: ReportData, evaluation: str, answering: str) -> list[tuple[Speaker, Evaluation]]:
    items = [(speaker, data.find(evaluation, speaker.name, answering)) for speaker in data.speakers]
    return [(speaker, item) for speaker, item in items if item is not None]


def _is_main(data: ReportData, evaluation: str, answering: str, metric: str) -> bool:
    tested = any(data.test(evaluation, answering, metric, speaker.name) for speaker in data.speakers)
    preferred = metric in HEADLINES.get(evaluation, ())
    return (tested or preferred) and labels.metric_style(metric).unit != "number"


def _block(data: ReportData, found: Sequence[tuple[Speaker, Evaluation]], name: str) -> Block:
    result = found[0][1].result
    metrics = [(speaker, item, metric) for speaker, item in found if (metric := find_metric(item.result, name))]
    chance = next((level for _, _, metric in metrics if (level := chance_level(metric)) is not None), None)
    rows = tuple(_row(data, speaker, item.result, metric, chance) for speaker, item, metric in metrics)
    return Block(
        title=labels.EVALUATION_TITLES[result.evaluation],
        question=labels.EVALUATION_QUESTIONS[result.evaluation],
        metric=labels.metric_name(result.evaluation, name),
        answering=result.answering,
        note=_note(metrics[0][2].note),
        chance="" if chance is None else labels.format_value(name, chance),
        unit=labels.metric_style(name).unit,
        rows=rows,
        estimates=tuple(_estimate(speaker, metric) for speaker, _, metric in metrics),
        chance_value=chance,
    )


def _row(data: ReportData, speaker: Speaker, result: EvaluationResult, metric: Metric, chance: float | None) -> Row:
    test = data.test(result.evaluation, result.answering, metric.name, speaker.name)
    title = f"{speaker.name}: {labels.metric_name(result.evaluation, metric.name)}"
    return Row(
        speaker=speaker.name,
        style=speaker_style(speaker.slot),
        value=labels.format_value(metric.name, metric.value),
        interval=labels.format_interval(metric.name, metric.low, metric.high),
        n=metric.n,
        plot=interval_chart(title, [_estimate(speaker, metric)], chance),
        difference=describe_difference(test) if test else None,
    )


def _estimate(speaker: Speaker, metric: Metric) -> Estimate:
    return Estimate(speaker_style(speaker.slot), metric.value, metric.low, metric.high, speaker.name)


def _matrix_row(data: ReportData, found: Sequence[tuple[Speaker, Evaluation]], name: str) -> MatrixRow:
    result = found[0][1].result
    by_speaker = {speaker.name: find_metric(item.result, name) for speaker, item in found}
    known = [metric for metric in by_speaker.values() if metric]
    main = data.main.name if data.main else ""
    test = data.test(result.evaluation, result.answering, name, main)
    sizes = sorted({metric.n for metric in known})
    return MatrixRow(
        evaluation=labels.EVALUATION_TITLES[result.evaluation],
        answering=result.answering,
        metric=labels.metric_name(result.evaluation, name),
        name=name,
        note=_note(known[0].note),
        n="–".join(f"{size:,}" for size in (sizes if len(sizes) < 2 else (sizes[0], sizes[-1]))),
        better=labels.metric_style(name).better,
        cells=tuple(_cell(name, by_speaker.get(speaker.name)) for speaker in data.speakers),
        difference=describe_difference(test) if test else None,
    )


def _cell(name: str, metric: Metric | None) -> Cell:
    if metric is None:
        return Cell("–", "")
    return Cell(labels.format_value(name, metric.value), labels.format_interval(name, metric.low, metric.high))


def _note(note: str) -> str:
    """A metric's note without its chance level, which has a place of its own, and without what did not happen."""
    parts = (part.strip() for part in CHANCE.sub("", note).split(";"))
    return "; ".join(part for part in parts if part and not NOTHING.match(part))
